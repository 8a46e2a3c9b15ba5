"""The optimizer, how far a training is, and what follows from that: the learning rate, whether it is done."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import OptimizationConfig


def make_optimizer(o: OptimizationConfig, method: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of what learns; parameters of one dimension are biases and normalizations."""
    learning = [p for p in method.parameters() if p.requires_grad]
    decay, plain = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
    spared = o.weight_decay if o.optimizer == "adam" else 0.0
    groups = [{"params": decay, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": spared}]
    kind = torch.optim.Adam if o.optimizer == "adam" else torch.optim.AdamW
    return kind([g for g in groups if g["params"]], lr=o.learning_rate)


def precision(o: OptimizationConfig, cpu: bool) -> str:
    if o.mixed_precision != "auto":
        return o.mixed_precision
    if cpu:
        # Not bfloat16, though some processors multiply it in hardware: there gradients of small 3D convolutions are
        # wrong at random, by orders of magnitude (torch 2.13; LA-CAF's tiny preset in one run of two).
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def progress_of(o: OptimizationConfig, step: int, elapsed: float) -> float:
    """Share of the training that is done: of the steps, or of the hours if those end sooner."""
    progress = step / o.steps
    if o.hours is not None:
        progress = max(progress, elapsed / (3600 * o.hours))
    return min(progress, 1.0)


def is_done(o: OptimizationConfig, step: int, elapsed: float) -> bool:
    steps = min(o.steps, o.stop_steps or o.steps)
    hours = min(o.hours or math.inf, o.stop_hours or math.inf)
    return step >= steps or elapsed >= 3600 * hours


def learning_rate(o: OptimizationConfig, step: int, elapsed: float) -> float:
    """Warm-up, then decay over the steps, or over the hours if those end sooner."""
    progress = progress_of(o, step, elapsed)
    if o.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    elif o.schedule == "poly":
        shape = (1 - progress) ** 0.9
    elif o.schedule == "constant":
        shape = 1.0
    else:
        shape = 0.2 ** int(3 * progress)
    rate = o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * shape
    return rate * min(1.0, (step + 1) / max(o.warmup, 1))
