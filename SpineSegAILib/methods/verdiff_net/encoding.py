"""How labels become the state of the diffusion, and back (the paper is binary; the rest is our choice).

Every encoding is a table of codes in {−1, +1}: the state at a voxel is a row, and the prior f is the mean row under the
prior's class probabilities. For a binary mask that is f = 2p − 1, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...anatomy import LabelScheme, sorted_ids
from ..losses import group_channels
from .config import VerdiffNetConfig

_NEAR = 15
"""Side of the neighborhood, in pixels, that names what the prior does not."""


class Encoding(nn.Module):
    """A table of codes, one per class of the state.

    Args:
        codes: (S, n) of −1 and +1, a row per class of the state.
        groups: for each of the scheme's K channels, its class of the state.
        exclusive: n = S one-hot channels, of which a softmax chooses one; otherwise channels are independent bits.
        temperature: standard deviation of a bit when classes are read off.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, groups: tuple[int, ...], *, exclusive: bool, temperature: float) -> None:
        super().__init__()
        self.register_buffer("codes", codes, persistent=False)
        self.groups = groups
        self.exclusive = exclusive
        self.temperature = temperature

    @property
    def channels(self) -> int:
        """Channels n of the state."""
        return self.codes.shape[1]

    @property
    def is_grouped(self) -> bool:
        """True where the state knows less than the scheme: what kind of structure, or that it is one, not its name."""
        return self.groups != tuple(range(len(self.codes)))

    def states(self, allowed: Tensor) -> Tensor:
        """(B, K, H, W) channels that a voxel may be → (B, S, H, W) classes of the state."""
        return group_channels(allowed, self.groups, len(self.codes)) if self.is_grouped else allowed

    def encode(self, state: Tensor) -> Tensor:
        """(B, H, W) classes of the state → (B, n, H, W) codes."""
        return self.codes[state].movedim(-1, 1)

    def center(self, probabilities: Tensor) -> Tensor:
        """f = Σ_c p_c·code_c: (B, K, H, W) probabilities → (B, n, H, W) in −1…1."""
        return combine(self.codes[list(self.groups)].T, probabilities)

    def estimate(self, logits: Tensor) -> Tensor:
        """ŷ0 of the denoiser's logits: 2σ(l) − 1, or 2·softmax(l) − 1: (B, n, H, W) in −1…1."""
        return 2 * (logits.softmax(1) if self.exclusive else logits.sigmoid()) - 1

    def naming(self, prior: Tensor) -> Tensor:
        """(B, K, H, W) the share of each class in its class of the state, as the prior's probabilities have it.

        Where the prior knows of none of them, as just beyond the edge of a hard mask, the neighborhood does.
        """
        if not self.is_grouped:
            return torch.ones_like(prior)
        near = F.avg_pool2d(F.avg_pool2d(prior, (_NEAR, 1), 1, (_NEAR // 2, 0)), (1, _NEAR), 1, (0, _NEAR // 2))
        named = prior + 1e-3 * near + 1e-9
        whole = named.new_zeros((len(prior), len(self.codes), *prior.shape[2:]))
        whole.index_add_(1, torch.tensor(self.groups, device=prior.device), named)
        return named / whole[:, list(self.groups)]

    def decode(self, state: Tensor, naming: Tensor) -> Tensor:
        """Class probabilities of a sampled state.

        Bits are compared with the codes that exist, so a class that does not exist has no probability.

        Args:
            state: (B, n, H, W), about −1…1.
            naming: (B, K, H, W) as `naming` gives it.

        Returns:
            (B, K, H, W) probabilities.
        """
        if self.exclusive:
            found = (state + 1).clamp(min=0) + 1e-6
            found = found / found.sum(1, keepdim=True)
        elif self.channels == 1:
            share = ((state + 1) / 2).clamp(0, 1)
            found = torch.cat([1 - share, share], 1)
        else:
            # exp(−‖y − code‖² / 2τ²): ‖y‖² and ‖code‖² = n are the same for all codes and cancel.
            found = combine(self.codes / self.temperature**2, state).softmax(1)
        return found[:, list(self.groups)] * naming if self.is_grouped else found

    def prior_logits(self, center: Tensor, surest: float) -> Tensor:
        """Logits whose `estimate` is the prior f (B, n, H, W), none surer than that."""
        share = ((center.float() + 1) / 2).clamp(1 - surest, surest)
        return share.log() if self.exclusive else share.logit()


def combine(table: Tensor, maps: Tensor) -> Tensor:
    """(R, C) weights, (B, C, H, W) maps → (B, R, H, W) weighted sums, in full precision: these are probabilities and
    their logarithms, which half precision would round."""
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("rc,bchw->brhw", table.float(), maps.float())


def gray_codes(count: int, bits: int) -> Tensor:
    """(count, bits) of −1 and +1; successive rows differ in one bit.

    Raises:
        ValueError: fewer codes than rows.
    """
    if count > 2**bits:
        raise ValueError(f"{bits} bits make {2**bits} codes, not {count}")
    numbers = torch.arange(count)
    return ((numbers ^ (numbers >> 1))[:, None] >> torch.arange(bits) & 1).float() * 2 - 1


def make_encoding(config: VerdiffNetConfig) -> Encoding:
    """The encoding of a configuration."""
    scheme = config.label_scheme
    kind = config.resolved_encoding
    same = tuple(range(scheme.channels))
    if kind == "bits":
        codes = gray_codes(scheme.channels, config.resolved_bits)[_places(scheme)]
        return Encoding(codes, same, exclusive=False, temperature=config.temperature)
    if kind == "onehot":
        codes = 2 * torch.eye(scheme.channels) - 1
        return Encoding(codes, same, exclusive=True, temperature=config.temperature)
    if kind == "kind+label":
        groups = kind_groups(scheme)
        codes = 2 * torch.eye(1 + max(groups)) - 1
        return Encoding(codes, groups, exclusive=True, temperature=config.temperature)
    groups = (0, *(1 for _ in scheme.ids))
    return Encoding(torch.tensor([[-1.0], [1.0]]), groups, exclusive=False, temperature=config.temperature)


def kind_groups(scheme: LabelScheme) -> tuple[int, ...]:
    """For each channel the number of its kind, in the order in which kinds appear; 0 is the background."""
    kinds = list(dict.fromkeys(s.kind for s in scheme.structures))
    return (0, *(1 + kinds.index(s.kind) for s in scheme.structures))


def _places(scheme: LabelScheme) -> list[int]:
    """For each channel its place from top to bottom, background first: neighbors along the spine get codes that differ
    in one bit, so that a doubtful border between them leaves the other bits alone."""
    order = [0, *(scheme.channel_of[i] for i in sorted_ids(scheme.ids))]
    return [order.index(channel) for channel in range(scheme.channels)]
