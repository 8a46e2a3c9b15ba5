"""Verdiff-Net: a conditional U-Net's mask, refined by a diffusion that is centered on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, HintError
from ..base import Batch, Context, Method, Readout, Tiling
from ..losses import group_channels, grouped_logits, marginal_cross_entropy, partial_dice_loss, rank_loss
from .conditional_unet import ConditionalUNet, ResidualConditionalUNet
from .config import VerdiffNetConfig
from .corruption import corrupted
from .diffusion import SAMPLERS, RecentredDiffusion, Sampling
from .diffusion_unet import DiffusionUNet, Guidance
from .dynamic_condition import DynamicCondition
from .encoding import kind_groups, make_encoding
from .losses import code_cross_entropy, weighted_square_error
from .msfm import MSFM, PlainStem


@dataclass
class _Condition:
    """What is computed once per image.

    Attributes:
        fused: (B, C, H, W) image features X.
        features: of the conditional U-Net's encoder.
        logits: (B, K, H, W) of the prior; zero without one.
        rank: (B, H, W) or None.
    """

    fused: Tensor
    features: list[Tensor]
    logits: Tensor
    rank: Tensor | None


class VerdiffNet(Method):
    """The method, and with `config.prior` off the plain diffusion baseline.

    Source: Zhang et al., Verdiff-Net: a conditional diffusion framework for spinal medical image segmentation.
    Bioengineering 2024. Its equations are lost in the text at hand; what was reconstructed, and what is our choice, is
    said where it is computed.
    """

    options: Mapping[str, str] = {
        "sampler": f"how masks are drawn: {', '.join(SAMPLERS)} (default {next(iter(SAMPLERS))})",
        "steps": "steps per sample (default: the checkpoint's; with another sampler than its "
        + ", ".join(f"{n} for {s}" for s, n in list(SAMPLERS.items())[1:])
        + ")",
        "samples": "masks that are drawn and averaged; from two on with an uncertainty map (default: the checkpoint's)",
        "t_start": "start at this time, nearer to the prior, so that fewer steps do, e.g. 300 of 1000 (default: all)",
        "seed": "of the noise (default 0)",
        "preview": "on: the prior alone, without diffusion (default off)",
    }
    validation_options: Mapping[str, Any] = {"samples": 1, "steps": 2}

    def __init__(self, config: VerdiffNetConfig) -> None:
        super().__init__(config)
        self.config: VerdiffNetConfig = config
        self.encoding = make_encoding(config)
        self.kinds = kind_groups(self.scheme)
        self.diffusion = RecentredDiffusion(config.timesteps, config.beta, config.kl_clip, config.mask_scale)
        inputs, width = config.input_channels, config.msfm_width
        self.fusion: nn.Module = MSFM(inputs, width, config.msfm_kernels) if config.msfm else PlainStem(inputs, width)
        # Background's logit is zero, so that with one structure its probability is σ(l), as in the paper.
        outputs, rank = self.scheme.channels - 1, config.rank_weight > 0
        self.conditional: nn.Module | None = None
        if config.prior and config.prior_blocks:
            self.conditional = ResidualConditionalUNet(
                inputs + width, config.prior_widths, config.prior_blocks, outputs, rank=rank
            )
        elif config.prior:
            self.conditional = ConditionalUNet(width, config.prior_widths, outputs, rank=rank)
        self.denoiser = DiffusionUNet(
            self.encoding.channels,
            width,
            config.prior_widths if config.prior else (),
            config.widths,
            config.blocks,
            config.attention_levels,
            config.nsa_kernel if config.nsa else None,
            config.patch,
            DynamicCondition(config.widths, parser=config.frequency_parser) if config.dynamic_condition else None,
        )
        prior_head = Readout(("conditional.head",), {"preview": "on"})
        self.readout = Readout(("denoiser.head",)) if self.conditional is None else prior_head
        if config.around_prior:  # at first it says nothing of its own
            for parameter in self.denoiser.head[-1].parameters():
                nn.init.zeros_(parameter)
        depth = len(config.prior_widths) if config.prior else 1
        self.tiling = Tiling(
            max(config.patch * 2 ** (len(config.widths) - 1), 2 ** (depth - 1)),
            context_mm=config.context_mm,
            around_column=config.around_column,
        )
        if config.stage == "prior":
            self.denoiser.requires_grad_(False)
        elif config.stage == "denoise" and self.conditional is not None:
            self.fusion.requires_grad_(False)
            self.conditional.requires_grad_(False)

    # --- the two networks ------------------------------------------------------------------------------------------

    def condition(self, images: Tensor, coordinates: Tensor) -> _Condition:
        """Image features and prior."""
        own = self.network_input(images, coordinates)
        fused = self.fusion(own)
        if self.conditional is None:
            shape = (len(images), self.scheme.channels, *images.shape[2:])
            return _Condition(fused, [], torch.zeros(shape, device=images.device), None)
        logits, rank, features = self.conditional(torch.cat([own, fused], 1) if self.config.prior_blocks else fused)
        return _Condition(fused, features, F.pad(logits.float(), (0, 0, 0, 0, 1, 0)), rank)

    def center(self, probabilities: Tensor) -> Tensor:
        """The prior f (B, n, H, W) of class probabilities (B, K, H, W); zero where there is no prior."""
        f = self.encoding.center(probabilities)
        return f if self.config.prior else torch.zeros_like(f)

    def _guidance(self, c: _Condition, center: Tensor, probabilities: Tensor) -> Guidance:
        # (f + 1) / 2 for a binary mask; without a prior f = 0, which is one half.
        share = 1 - probabilities[:, :1] if self.config.prior else torch.full_like(probabilities[:, :1], 0.5)
        return self.denoiser.guidance(c.fused, c.features, center, share)

    def clean_logits(self, noisy: Tensor, time: Tensor, guidance: Guidance, center: Tensor) -> Tensor:
        """(B, n, H, W) of the clean mask, in full precision."""
        logits = self.denoiser(self.diffusion.leveled(noisy, time), time, guidance).float()
        if not self.config.around_prior:
            return logits
        return logits + self.encoding.prior_logits(center, self.config.surest)

    def remap_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also the default method's network, for a conditional U-Net made like it; the fused features count nothing
        at first."""
        if not self.config.prior_blocks or not any(name.startswith("network.") for name in state):
            return dict(state)
        mine = self.state_dict()
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            name = f"conditional.{name}" if name.startswith(("network.", "rank_head.")) else name
            if name in mine and mine[name].ndim == 4 == value.ndim and mine[name].shape[1] > value.shape[1]:
                value = F.pad(value, (0, 0, 0, 0, 0, mine[name].shape[1] - value.shape[1]))
            found[name] = value
        return found

    # --- training --------------------------------------------------------------------------------------------------

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`config.stage` says which of the losses make the total.

        Noise and times come from torch's global generator, which the trainer seeds again for every step.
        """
        stage = self.config.stage
        frozen = stage == "denoise" and self.conditional is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            c = self.condition(batch.image, batch.coordinates)
        losses: dict[str, Tensor] = {}
        if self.conditional is not None and stage != "denoise":
            losses |= self._prior_losses(c, batch)
        if stage != "prior":
            losses |= self._denoising_losses(c, batch)
        weights = {"rank": self.config.rank_weight, "kind": self.config.kind_weight, "kl": self.config.kl_weight}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        return {"total": total, **losses}

    def _prior_losses(self, c: _Condition, batch: Batch) -> dict[str, Tensor]:
        losses = {
            "prior_cross_entropy": marginal_cross_entropy(c.logits, batch.allowed),
            "prior_dice": partial_dice_loss(c.logits, batch.allowed),
        }
        if c.rank is not None:
            losses["rank"] = rank_loss(c.rank, batch.rank)
        if self.config.kind_weight > 0:
            logits = grouped_logits(c.logits, self.kinds)
            allowed = group_channels(batch.allowed, self.kinds, logits.shape[1])
            losses["kind"] = marginal_cross_entropy(logits, allowed) + partial_dice_loss(logits, allowed)
        return losses

    def _denoising_losses(self, c: _Condition, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():  # the diffusion never teaches the prior what is easy to refine
            probabilities = c.logits.softmax(1)
            prior = corrupted(probabilities, self.config.corruption) if self.config.corruption else probabilities
            center = self.center(prior)
            allowed = self.encoding.states(batch.allowed)
            decided = allowed.sum(1) == 1
            # Where a voxel may be several things, the clean mask shows the likeliest of them; no loss asks for it.
            likeliest = (probabilities + 1e-6).masked_fill(~batch.allowed, 0).argmax(1)
            groups = torch.tensor(self.encoding.groups, device=likeliest.device)
            mask = self.encoding.encode(groups[likeliest])
            time = torch.randint(self.diffusion.timesteps, (len(mask),), device=mask.device)
            noisy = self.diffusion.noisy(mask, center, time, torch.randn_like(mask))
        guidance = self._guidance(c, center, prior)
        if self.config.recycling and float(torch.rand(())) < self.config.recycling:
            noisy = self._recycled(mask, center, time, guidance)
        logits = self.clean_logits(noisy, time, guidance, center)
        weight = self.diffusion.kl_weight[time]
        return {
            "cross_entropy": code_cross_entropy(self.encoding, logits, allowed),
            "kl": weighted_square_error(self.encoding.estimate(logits), mask, decided, weight),
        }

    @torch.no_grad()
    def _recycled(self, mask: Tensor, center: Tensor, time: Tensor, guidance: Guidance) -> Tensor:
        """y_t of what the denoiser answers at a noisier time, as in sampling, where its first answer may be wrong."""
        last = self.diffusion.timesteps - 1
        earlier = time + ((last - time + 1) * torch.rand(time.shape, device=time.device)).long()
        noisy = self.diffusion.noisy(mask, center, earlier, torch.randn_like(mask))
        answer = self.encoding.estimate(self.clean_logits(noisy, earlier, guidance, center))
        return self.diffusion.noisy(answer, center, time, torch.randn_like(mask))

    # --- inference -------------------------------------------------------------------------------------------------

    def evidence(self, images: Tensor, context: Context) -> dict[str, Tensor]:
        """Mean class probabilities over the samples, and where there are several the standard deviation of a sample.

        Of masks drawn without end, a voxel's class would have the variance ½·(1 − Σ_c p_c²), p(1 − p) for two classes.
        A few masks tell it badly, since each has decided every voxel. What the denoiser expects at the first step, when
        nothing is decided, tells it better (our choice): p is the mean of that over the samples, so that the variance
        is what the samples' expectations differ by and what each leaves open (the law of total variance). The classes
        are kinds (vertebra, disc …): the map is of uncertain outlines, not about which level a body is.
        """
        sampling = self._asked(context.options)
        if sampling.preview and self.conditional is None:
            raise ConfigError("This checkpoint has no prior to preview.", "Turn the option preview off.")
        if self.config.stage == "prior" and context.prior is not None and not sampling.preview:
            raise HintError(
                "This checkpoint holds the prior alone: it cannot refine a mask.",
                "Omit the prior, or use a checkpoint whose diffusion was trained.",
            )
        if self.conditional is None and context.prior is not None:
            raise HintError(
                "The diffusion of this checkpoint starts from noise alone: it cannot refine a mask.",
                "Omit the prior, or use a checkpoint that was trained with one.",
            )
        c = self.condition(images, context.coordinates)
        prior = c.logits.softmax(1)
        if context.prior is not None:
            prior = F.one_hot(context.prior, self.scheme.channels).movedim(-1, 1).to(prior.dtype)
        if sampling.preview or self.config.stage == "prior":
            return {"classes": prior}
        center = self.center(prior)
        guidance = self._guidance(c, center, prior).repeated(sampling.samples)

        expected: list[Tensor] = []

        def denoise(noisy: Tensor, time: Tensor) -> Tensor:
            clean = self.encoding.estimate(self.clean_logits(noisy, time, guidance, many))
            if not expected:
                expected.append(clean)
            return clean

        numbers = context.slices or tuple(range(len(images)))
        noise = _Noise(sampling, numbers, center)
        many = center.repeat_interleave(sampling.samples, 0)
        states = self.diffusion.sample(denoise, many, noise, sampling, context.tick)
        naming = self.encoding.naming(prior)
        maps = {"classes": self._mean(states, sampling.samples, naming)}
        if sampling.samples > 1:
            first = self._of_kinds(self._mean(expected[0], sampling.samples, naming))
            maps["uncertainty"] = ((1 - first.square().sum(1)) / 2).clamp(min=0).sqrt()
        return maps

    def _of_kinds(self, probabilities: Tensor) -> Tensor:
        """(B, K, H, W) class probabilities → (B, kinds, H, W)."""
        found = probabilities.new_zeros((len(probabilities), 1 + max(self.kinds), *probabilities.shape[2:]))
        return found.index_add_(1, torch.tensor(self.kinds, device=found.device), probabilities)

    def images_per_slice(self, options: Mapping[str, Any]) -> int:
        sampling = self._asked(options)
        return 1 if sampling.preview or self.config.stage == "prior" else sampling.samples

    def _asked(self, options: Mapping[str, Any]) -> Sampling:
        return Sampling.from_options(options, self.diffusion.timesteps, self.config.samples, self.config.steps)

    def _mean(self, states: Tensor, samples: int, naming: Tensor) -> Tensor:
        """(B·N, n, H, W) → (B, K, H, W) class probabilities, decoded sample by sample: K classes need much memory."""
        total = torch.zeros_like(naming)
        for state in states.unflatten(0, (-1, samples)).unbind(1):
            total += self.encoding.decode(state, naming)
        return total / samples


class _Noise:
    """Standard normal noise that depends on seed, slice and sample alone, not on what else is in the batch.

    Args:
        sampling: number of samples and seed.
        slices: index of each image.
        like: (B, n, H, W) one image's state.
    """

    def __init__(self, sampling: Sampling, slices: tuple[int, ...], like: Tensor) -> None:
        self.generators = [
            np.random.default_rng([sampling.seed, number, sample])
            for number in slices
            for sample in range(sampling.samples)
        ]
        self.shape = tuple(like.shape[1:])
        self.device = like.device

    def __call__(self) -> Tensor:
        """(B·N, n, H, W), the samples of an image in succession."""
        drawn = [torch.from_numpy(g.standard_normal(self.shape, np.float32)) for g in self.generators]
        return torch.stack(drawn).to(self.device)


def build(config: VerdiffNetConfig) -> VerdiffNet:
    """The method of a configuration."""
    return VerdiffNet(config)
