"""ATM-Net (arXiv 2504.03476): Swin UNETR encoder, text-guided decoder, contrast with class prompts in training.

Silent in the paper and decided here (marked as ours in the code): the full-resolution skip (Swin UNETR's first block),
instance norm before each ReLU, the position encodings, a frozen text encoder, what CCAE pools, and where prompts come
from when nobody has drawn anything (`sources.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn
from torch.nn import functional as F

from ...anatomy import KINDS
from ...errors import ConfigError
from ...hints import Hints
from ..base import COORDINATE_SCALE_MM, Batch, Context, Method, Passes, Readout, Tiling
from ..blocks import rank_map
from ..losses import group_channels, marginal_cross_entropy, partial_dice_loss, rank_loss
from ..options import switch_option
from ..text.bank import TextBank
from . import sources
from .config import TEXT_BANK, AtmNetConfig
from .fusion import FusionStage
from .losses import contrastive_loss, dice_focal_loss, presence_loss
from .prompts import THIRDS, Prompt, draw_prompt
from .tokens import TextTokens

STAGES = 5
GRID = 16
"""Side of the grid that a class's map is averaged on for the contrast."""


@dataclass
class Output:
    """What the network says.

    Attributes:
        logits: (B, C, H, W).
        features: (B, C0, H, W) of the last decoder stage.
        presence: (B, C−1) logits of “is it in the slice”.
        rank: (B, H, W), or None.
    """

    logits: Tensor
    features: Tensor
    presence: Tensor
    rank: Tensor | None


class AtmNet(Method):
    """The method. Images (B, 1, H, W) with sides that are multiples of 32; see `AtmNetConfig`."""

    readout = Readout(("head",))
    options: Mapping[str, str] = {
        "prompt_source": "where the sentence comes from: range (the hint), self (a first pass), presence (the "
        "network's guess), generic, or none (no attention to text); default: range where the hint is given, else "
        "what the checkpoint says, mostly self",
        "rank": "off: without the auxiliary rank head",
        "allow_label_leak": "evaluation only: permits prompt_source=oracle, which reads the reference",
    }

    def __init__(self, config: AtmNetConfig) -> None:
        super().__init__(config)
        self.config: AtmNetConfig = config
        base = config.feature_size
        self.tiling = Tiling(context_mm=config.context_mm, around_column=config.around_column)
        self.reads_text = config.option > 0
        improved = partial(sources.improved, self.scheme, config.smallest_mm2)
        self.passes = Passes(sources.SELF_PASSES, improved)
        if config.option > 1:
            self.validation_options = {"prompt_source": "generic"}  # one pass; `self` takes two or three
        heads = tuple(config.encoder_heads * 2**i for i in range(4))
        trunk = _Trunk(config.input_channels, 1, feature_size=base, num_heads=heads, spatial_dims=2)
        self.widths = [base, *(base * 2**i for i in range(STAGES))]  # of the stages 0 (full resolution) to 5
        if config.use_hasf:
            self.vit, self.stem = trunk.swinViT, trunk.encoder1
            self.stages = nn.ModuleList(
                FusionStage(
                    self.widths[i], self.widths[i - 1], config.tokens, config.heads, config.sa_max_tokens,
                    config.alpha if self.reads_text else None, config.normalisation, config.decoder,
                )
                for i in range(STAGES, 0, -1)
            )  # fmt: skip
        else:
            self.plain = trunk
        self.text = TextTokens(config, self.widths[:0:-1] if self.reads_text else ())
        outputs = self.scheme.channels if config.output == "classes" else self.scheme.head_kinds
        self.head: nn.Module = nn.Conv2d(base, outputs, 1)
        if config.head_width is not None:  # levels along a line are hard to tell apart linearly in few channels
            hidden = nn.Conv2d(base, config.head_width, 1)
            self.head = nn.Sequential(hidden, nn.GELU(), nn.Conv2d(config.head_width, outputs, 1))
        self.presence_head = nn.Linear(self.widths[-1], self.scheme.channels - 1)
        self.contrast = _Contrast(config) if config.use_ccae and config.output == "classes" else None
        self.rank_head = nn.Conv2d(base, 1, 1) if config.rank_weight or config.output == "kind-rank" else None

    # --- the network ---------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, coordinates: Tensor, texts: Sequence[str] | None = None) -> Output:
        """One pass.

        Args:
            images: (B, 1, H, W).
            coordinates: (B, 2, H, W).
            texts: a sentence per image; None skips the attention to text.
        """
        return self._decode(self._encode(images, coordinates), texts)

    def _encode(self, images: Tensor, coordinates: Tensor) -> list[Tensor]:
        """Features of the stages 0 to 5, and for the plain network its own."""
        x = self.network_input(images, coordinates)
        if not self.config.use_hasf:
            return self.plain(x)
        return [self.stem(x), *self.vit(x, True)]

    def _decode(self, encoded: list[Tensor], texts: Sequence[str] | None) -> Output:
        deepest = encoded[-1]
        features = encoded[0]
        if self.config.use_hasf:
            tokens = self.text(texts) if texts is not None and self.reads_text else [None] * STAGES
            features = deepest
            for stage, skip, said in zip(self.stages, encoded[-2::-1], tokens, strict=True):
                features = stage(features, skip, said)
        rank = None
        if self.rank_head is not None:
            # The level is a coarse fact about the place: read it at a quarter of the resolution.
            rank = rank_map(self.rank_head(F.avg_pool2d(features, 4)), features.shape[2:])
        return Output(self.head(features), features, self._presence(encoded), rank)

    def _presence(self, encoded: list[Tensor]) -> Tensor:
        return self.presence_head(encoded[-1].mean((2, 3)))

    # --- learning ------------------------------------------------------------------------------------------------

    def open_resources(self, resources: Mapping[str, str]) -> None:
        if self.config.needs_bank:
            if TEXT_BANK not in resources:
                self.config.with_resources(resources)  # says what is missing
            self.text.attach(TextBank(resources[TEXT_BANK]))

    def export_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")}
        return {**state, **{f"text.{name}": value for name, value in self.text.exported(own).items()}}

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        present, possible = self._observed(batch)
        texts = self._drawn_texts(present, possible, batch) if self.reads_text else None
        out = self(batch.image, batch.coordinates, texts)
        allowed = batch.allowed
        if config.output == "kind-rank":
            allowed = group_channels(allowed, self.scheme.kinds, self.scheme.head_kinds)
        losses: dict[str, Tensor] = {}
        if config.loss == "dice-focal":
            losses["segmentation"] = dice_focal_loss(out.logits, allowed)
        else:
            losses["segmentation"] = marginal_cross_entropy(out.logits, allowed) + partial_dice_loss(
                out.logits, allowed
            )
        total = losses["segmentation"]
        if config.kind_weight and config.output == "classes":
            losses["kinds"] = self._kind_loss(out.logits, allowed)
            total = total + config.kind_weight * losses["kinds"]
        if self.contrast is not None:
            losses["contrast"] = self._contrastive(out, present, possible)
            total = total + config.contrast_weight * losses["contrast"]
        target = present.float().masked_fill(possible & ~present, torch.nan)[:, 1:]
        losses["presence"] = presence_loss(out.presence, target)
        total = total + config.presence_weight * losses["presence"]
        if out.rank is not None:
            losses["rank"] = rank_loss(out.rank, batch.rank)
            total = total + (config.rank_weight or 0.5) * losses["rank"]
        return {"total": total, **losses}

    def _kind_loss(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """Of kinds, whose probabilities are the sums of their classes': what a thing is before which it is."""
        kinds = torch.tensor(self.scheme.kinds, device=logits.device)
        grouped = [torch.logsumexp(logits[:, kinds == k].float(), 1) for k in range(len(KINDS)) if (kinds == k).any()]
        groups = torch.unique(kinds, return_inverse=True)[1].tolist()
        may_be = group_channels(allowed, groups, len(grouped))
        stacked = torch.stack(grouped, 1)
        return marginal_cross_entropy(stacked, may_be) + partial_dice_loss(stacked, may_be)

    def _observed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, C) bool: structures labeled in an image, and those of which that is not known."""
        pixel = _pixel_mm2(batch.coordinates)
        label, count = batch.label, batch.allowed.shape[1]
        rows = torch.arange(len(label), device=label.device).view(-1, 1, 1) * count + label
        labelled = torch.bincount(rows[label >= 0], minlength=len(label) * count).view(-1, count) * pixel
        undecided = torch.stack([a[:, m].sum(1) for a, m in zip(batch.allowed, label < 0, strict=True)]) * pixel
        present = (labelled > 0) & (labelled >= self.config.smallest_mm2)
        # A few labeled pixels at the edge of the view are neither presence nor absence.
        return present, ~present & ((undecided > 0) | (labelled > 0))

    def _drawn_texts(self, present: Tensor, possible: Tensor, batch: Batch) -> list[str]:
        """A sentence per image, from its labels; unknown structures say nothing."""
        # The trainer seeds torch from the step, so a resumed run draws the same sentences.
        seed = int(torch.randint(2**31, (1,)))
        config = self.config
        texts = []
        for row, (there, maybe) in enumerate(zip(present.tolist(), possible.tolist(), strict=True)):
            place = 0.5 if batch.position is None else float(batch.position[row])
            prompt = draw_prompt(
                np.random.default_rng([seed, row]), self.scheme, config.mixture, config.option, self._ids(there),
                self._ids(maybe), THIRDS[min(int(3 * place), 2)], config.corruption,
            )  # fmt: skip
            texts.append(prompt.text(self.scheme))
        return texts

    def _ids(self, channels: Sequence[bool]) -> set[int]:
        return {sid for sid, yes in zip(self.scheme.ids, channels[1:], strict=True) if yes}

    def _contrastive(self, out: Output, present: Tensor, possible: Tensor) -> Tensor:
        assert self.contrast is not None
        there, absent = (f.to(out.logits.device) for f in self.text.class_features())
        said = torch.where(present[..., None], there, absent)
        taking_part = present if self.config.absent == "masked" else present | ~possible
        visual, text = self.contrast(out.logits, out.features, said)
        return contrastive_loss(visual, text, taking_part, self.config.temperature)

    # --- predicting ----------------------------------------------------------------------------------------------

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        source = self._source(context.hints, context.options)
        ranked = self.config.output == "kind-rank" or switch_option(context.options, "rank", True)
        context.memory[sources.SOURCE] = source
        encoded = self._encode(images, context.coordinates)
        texts = None
        if source != "none":
            prompts = self._prompts(source, encoded, context)
            texts = [prompt.text(self.scheme) for prompt in prompts]
            sources.note(source, prompts, texts, context)
        out = self._decode(encoded, texts)
        probabilities = out.logits.float().softmax(1)
        maps = {"kinds" if self.config.output == "kind-rank" else "classes": probabilities}
        if out.rank is not None and ranked:
            maps["rank"] = out.rank.float()
        return maps

    def _source(self, hints: Hints, options: Mapping[str, Any]) -> str:
        most = self.config.option if self.config.output == "classes" else min(self.config.option, 1)
        return sources.choose(most, self.config.usual_source, hints, options)

    def _prompts(self, source: str, encoded: list[Tensor], context: Context) -> list[Prompt]:
        found: list[set[int]] = [set()] * len(encoded[0])
        if source == "presence":
            likely = (self._presence(encoded) > 0).tolist()
            found = [self._ids([False, *row]) for row in likely]
        pixel = _pixel_mm2(context.coordinates)
        return sources.prompts(source, self.scheme, self.config, context, found, pixel)


class _Trunk(SwinUNETR):
    """Swin UNETR without its last layer."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        del self.out

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of the last decoder block (B, feature_size, H, W), and of the deepest stage of the encoder."""
        hidden = self.swinViT(x, self.normalize)
        y = self.decoder5(self.encoder10(hidden[4]), hidden[3])
        y = self.decoder4(y, self.encoder4(hidden[2]))
        y = self.decoder3(y, self.encoder3(hidden[1]))
        y = self.decoder2(y, self.encoder2(hidden[0]))
        return [self.decoder1(y, self.encoder1(x)), hidden[4]]


class _Contrast(nn.Module):
    """CCAE (section 3.4): descriptors of the classes' maps and of their prompts in one space.

    Average pooling a class's map to a single number, taken literally, leaves nothing to contrast; so the map is
    averaged on a grid, or used as weights to average features (`AtmNetConfig.descriptor`; our choice).
    """

    def __init__(self, config: AtmNetConfig) -> None:
        super().__init__()
        self.descriptor = config.descriptor
        inputs = GRID**2 if config.descriptor == "grid" else config.feature_size
        self.visual = nn.Linear(inputs, config.contrast_width)
        self.visual_norm = nn.LayerNorm(config.contrast_width)
        self.textual = nn.Linear(config.text_width, config.contrast_width)
        self.textual_norm = nn.LayerNorm(config.contrast_width)

    def forward(self, logits: Tensor, features: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W), features (B, C0, H, W), prompts (B, C, width) → two (B, C, K) of unit length."""
        maps = logits.float().softmax(1)
        if self.descriptor == "grid":
            pooled = F.adaptive_avg_pool2d(maps, GRID).flatten(2)
        else:
            weights = maps.flatten(2)
            pooled = weights @ features.float().flatten(2).transpose(1, 2)
            pooled = pooled / weights.sum(2, keepdim=True).clamp(min=1e-6)
        visual = self.visual_norm(self.visual(pooled))
        return F.normalize(visual, dim=2), F.normalize(self.textual_norm(self.textual(said)), dim=2)


def _pixel_mm2(coordinates: Tensor) -> float:
    """Area of a pixel, from the coordinates (B, 2, H, W); the images of a batch share their spacing."""
    steps = (coordinates[0, 0, 1, 0] - coordinates[0, 0, 0, 0], coordinates[0, 1, 0, 1] - coordinates[0, 1, 0, 0])
    return float(steps[0] * steps[1]) * COORDINATE_SCALE_MM**2


def build(config: AtmNetConfig) -> AtmNet:
    """The method of a configuration."""
    if config.output == "kind-rank" and not set(config.label_scheme.kinds) - {0}:
        raise ConfigError(f"The scheme {config.scheme} has no levels to rank.", "Use output=classes.")
    return AtmNet(config)
