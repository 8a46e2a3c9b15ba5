"""A method whose network has one softmax output per structure: most baselines."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from .base import Batch, Context, Method, Readout, Tiling
from .config import MethodConfig
from .losses import marginal_cross_entropy, partial_dice_loss


class ClassNetwork(Method):
    """Softmax over the scheme, trained with marginal cross-entropy and partial Dice.

    Args:
        config: the configuration.
        network: (B, `config.input_channels`, *spatial) → (B, C, *spatial) logits.
        tiling: what inputs the network takes.
        last: name of the network's part that reads the last features, see `Method.readout`.
    """

    def __init__(self, config: MethodConfig, network: nn.Module, tiling: Tiling, last: str = "") -> None:
        super().__init__(config)
        self.network = network
        self.tiling = replace(tiling, context_mm=config.context_mm, around_column=config.around_column)
        self.readout = Readout((f"network.{last}",) if last else ())

    def forward(self, images: Tensor, coordinates: Tensor) -> Tensor:
        """Logits (B, C, *spatial)."""
        return self.network(self.network_input(images, coordinates))

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        logits = self(batch.image, batch.coordinates)
        ce = marginal_cross_entropy(logits, batch.allowed)
        dice = partial_dice_loss(logits, batch.allowed)
        return {"total": ce + dice, "cross_entropy": ce, "dice": dice}

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        return {"classes": self(images, context.coordinates).float().softmax(1)}
