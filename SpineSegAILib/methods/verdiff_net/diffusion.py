"""The diffusion that is centered on a prior (section 2.2): noising, and three ways back.

The paper's equations 2–7 are lost; its words fit the form of CARD (Han et al., NeurIPS 2022):

    q(y_t | y_{t−1}) = N(√α_t·y_{t−1} + (1 − √α_t)·f, β_t·I)
    y_t = √ᾱ_t·y0 + (1 − √ᾱ_t)·f + √(1 − ᾱ_t)·ε,  so that y_T ≈ N(f, I).

Then r = y − f obeys an ordinary diffusion, and so it is computed. Mask and prior may be scaled down against the noise
(`scale`; Chen et al., Analog bits, ICLR 2023): at full size a mask can be read off y_t alone, blurred and cut, for a
third of all times, and a denoiser that learns to do so repeats in sampling what it said first.

The steps are written out here and tested against MONAI's schedulers instead of calling those: they draw the noise of a
batch from one generator, by which a slice's result would depend on its neighbors in the batch, and their times are
spaced from T, which a later start breaks.

Times are counted from 0: index t here is the literature's t + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..options import choice_option, switch_option, whole_option

SAMPLERS: Mapping[str, int] = {"ddim": 20, "dpm++2m": 12, "ddpm": 1000}
"""Names of the samplers → steps where none are asked for; the first is the default, and a configuration may say another
number for it."""


@dataclass(frozen=True)
class Sampling:
    """How to draw masks.

    Attributes:
        sampler: one of `SAMPLERS`.
        steps: evaluations of the denoiser per sample.
        samples: masks per image.
        start: number of times from which to begin; the diffusion's length for pure noise around the prior.
        seed: of the noise.
        preview: the prior alone.
    """

    sampler: str = "ddim"
    steps: int = 20
    samples: int = 5
    start: int = 1000
    seed: int = 0
    preview: bool = False

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], timesteps: int, samples: int = samples, steps: int = steps
    ) -> Sampling:
        """Read and check run-time options.

        Args:
            options: ``sampler``, ``steps``, ``samples``, ``t_start``, ``seed`` and ``preview``, all optional.
            timesteps: length of the diffusion.
            samples: where the options say none.
            steps: of the default sampler, where the options say none.

        Raises:
            ConfigError: a value that cannot be.
        """
        default = next(iter(SAMPLERS))
        sampler = choice_option(options, "sampler", tuple(SAMPLERS), default)
        start = whole_option(options, "t_start", timesteps)
        if not 1 <= start <= timesteps:
            raise ConfigError(
                f"The diffusion has {timesteps} times: it cannot start at {start}.", f"Choose t_start 1 to {timesteps}."
            )
        usual = steps if sampler == default else SAMPLERS[sampler]
        steps = whole_option(options, "steps", min(usual, start))
        if not 1 <= steps <= start:
            raise ConfigError(
                f"{steps} steps cannot lead from time {start} to the result.", f"Choose 1 to {start} steps."
            )
        samples = whole_option(options, "samples", samples)
        if samples < 1:
            raise ConfigError(f"{samples} samples make no result.", "Choose at least 1 (5 are usual).")
        seed = whole_option(options, "seed", 0)
        if seed < 0:
            raise ConfigError(f"The seed {seed} is negative.", "Choose 0 or more.")
        preview = switch_option(options, "preview", False)
        return cls(sampler, steps, samples, start, seed, preview)

    @property
    def times(self) -> tuple[int, ...]:
        """Time indices at which the denoiser is asked, from noisy to clean, evenly spaced from the start."""
        return tuple(round(self.start * (self.steps - i) / self.steps) - 1 for i in range(self.steps))


class RecentredDiffusion(nn.Module):
    """The process and its samplers.

    Args:
        timesteps: length T.
        beta: first and last variance of the linear schedule.
        kl_clip: range of the KL term's weight.
        scale: factor of mask and prior in what is noised; what goes in and comes out here is not scaled.
    """

    keep: Tensor
    spread: Tensor
    kl_weight: Tensor

    def __init__(
        self,
        timesteps: int = 1000,
        beta: tuple[float, float] = (1e-4, 0.02),
        kl_clip: tuple[float, float] = (0.01, 5),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.betas = np.linspace(*beta, timesteps)
        self.remaining = np.cumprod(1 - self.betas)  # ᾱ
        weights = np.clip(scale**2 * self.kl_weights(), *kl_clip)
        for name, value in (
            ("keep", np.sqrt(self.remaining)),
            ("spread", np.sqrt(1 - self.remaining)),
            ("kl_weight", weights),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    @property
    def timesteps(self) -> int:
        """Length T."""
        return len(self.betas)

    def posterior(self, time: int, later: int | None = None) -> tuple[float, float, float, float]:
        """(γ0, γ1, γ2, β̃) of q(y_later | y_time, y0) = N(γ0·y0 + γ1·y_time + γ2·f, β̃·I).

        Args:
            time: index of the noisy state.
            later: index of the less noisy one; the next where not given, −1 for the clean mask.
        """
        later = time - 1 if later is None else later
        here, there = self.remaining[time], self.remaining[later] if later >= 0 else 1.0
        alpha = here / there
        clean = (1 - alpha) * math.sqrt(there) / (1 - here)
        noisy = (1 - there) * math.sqrt(alpha) / (1 - here)
        return clean, noisy, 1 - clean - noisy, (1 - alpha) * (1 - there) / (1 - here)

    def kl_weights(self) -> np.ndarray:
        """(T,) w_t = γ0² / 2β̃_t: the KL divergence between posteriors of equal variance is w_t·‖ŷ0 − y0‖².

        Infinite at index 0, where the posterior has no variance.
        """
        weights = np.full(self.timesteps, np.inf)
        for time in range(1, self.timesteps):
            clean, _, _, variance = self.posterior(time)
            weights[time] = clean**2 / (2 * variance)
        return weights

    def noisy(self, mask: Tensor, center: Tensor, time: Tensor, noise: Tensor) -> Tensor:
        """y_t of the clean mask y0 and the prior f, all (B, n, H, W), at the time indices (B,); scaled."""
        at = (-1, *[1] * (mask.ndim - 1))
        clean = center + self.keep[time].view(at) * (mask - center)
        return self.scale * clean + self.spread[time].view(at) * noise

    def leveled(self, noisy: Tensor, time: Tensor) -> Tensor:
        """y_t as a network sees it, of about the same size at every time whatever the scale; unchanged at scale 1."""
        at = (-1, *[1] * (noisy.ndim - 1))
        size = (self.scale**2 * self.keep[time] ** 2 + self.spread[time] ** 2).sqrt()
        return noisy / size.view(at)

    def sample(
        self,
        denoise: Callable[[Tensor, Tensor], Tensor],
        center: Tensor,
        noise: Callable[[], Tensor],
        sampling: Sampling,
        tick: Callable[[float], None] = lambda fraction: None,
    ) -> Tensor:
        """Draw clean masks.

        A start before T takes the prior for the clean mask: y = f + √(1 − ᾱ_t)·ε (pre-segmentation sampling, Guo et
        al., ISBI 2023).

        Args:
            denoise: (y_t (B, n, H, W), scaled, time indices (B,)) → ŷ0 (B, n, H, W), not scaled.
            center: (B, n, H, W) the prior f.
            noise: returns a new (B, n, H, W) of standard normal noise at each call.
            sampling: sampler, times.
            tick: called with the fraction done after each step.

        Returns:
            (B, n, H, W) masks in about −1…1.
        """
        times, center = sampling.times, self.scale * center
        rest = float(self.spread[times[0]]) * noise()  # r = y − f
        before: tuple[Tensor, float] | None = None  # the last estimate of r0, and how far its step went
        for number, time in enumerate(times):
            later = times[number + 1] if number + 1 < len(times) else -1
            found = denoise(center + rest, torch.full(center.shape[:1], time, device=center.device))
            clean = self.scale * found - center
            if sampling.sampler == "ddpm":
                g0, g1, _, variance = self.posterior(time, later)
                rest = g0 * clean + g1 * rest
                if later >= 0:
                    rest = rest + math.sqrt(variance) * noise()
            else:
                target = clean
                if sampling.sampler == "dpm++2m" and later >= 0:
                    # Two-step extrapolation in the log signal-to-noise ratio λ (Lu et al., DPM-Solver++, algorithm 2);
                    # its first-order step is DDIM's. The last one, to λ = ∞, is of first order.
                    length = self._log_ratio(later) - self._log_ratio(time)
                    if before is not None:
                        target = clean + (clean - before[0]) * (length / (2 * before[1]))
                    before = clean, length
                rest = self._deterministic(rest, target, time, later)
            tick((number + 1) / len(times))
        return (center + rest) / self.scale

    def _deterministic(self, rest: Tensor, clean: Tensor, time: int, later: int) -> Tensor:
        """DDIM's step without noise (η = 0; Song et al. 2021, equation 12)."""
        here, there = self.remaining[time], self.remaining[later] if later >= 0 else 1.0
        ratio = math.sqrt((1 - there) / (1 - here))
        return ratio * rest + (math.sqrt(there) - ratio * math.sqrt(here)) * clean

    def _log_ratio(self, time: int) -> float:
        """λ = log(√ᾱ / √(1 − ᾱ))."""
        return 0.5 * math.log(self.remaining[time] / (1 - self.remaining[time]))
