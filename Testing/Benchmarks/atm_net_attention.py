"""Has the attention to the text collapsed? What each decoder stage of an ATM-Net makes of two ranges of levels.

    python Testing/Benchmarks/atm_net_attention.py CHECKPOINT DATASET.json [--split validation] [--report FILE.md]

For the middle labeled slice of each case and each stage, from the coarsest: the entropy of the weights over its
tokens, as a share of the largest there is; how many tokens win anywhere; which share of what is gathered is the same at
every pixel; how much that changes (relative to itself) where the sentence says a range that is one level higher; and
which share of the named pixels change where that stage alone reads the other range. A collapsed stage has an entropy of
about zero, one token that wins everywhere, and does not notice the range.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation.on_grid import LabelledVolume, load_labelled
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.atm_net.network import AtmNet
from SpineSegAILib.methods.atm_net.prompts import Prompt, level_run, tubes
from SpineSegAILib.methods.base import between_slices, context_offsets, coordinate_channels


@dataclass
class Stage:
    """What a stage does with two texts; see the module."""

    entropy: float
    winners: float
    constant: float
    changed: float
    renamed: float


@torch.inference_mode()
def stages(method: AtmNet, images: Tensor, coordinates: Tensor, texts: tuple[str, str]) -> list[Stage]:
    """Measures of each stage, from the coarsest.

    Args:
        images: (B, N, H, W) as the method takes them.
        coordinates: (B, 2, H, W).
        texts: two sentences that say different levels.
    """
    encoded = method._encode(images, coordinates)
    first, second = (method.text([text] * len(images)) for text in texts)
    seen = [watched(method, encoded, tokens) for tokens in (first, second)]
    named = seen[0][1].argmax(1)
    result = []
    for number, layer in enumerate(method.stages):
        (queries, keys, gathered), (_, _, other) = seen[0][0][number], seen[1][0][number]
        weights = layer.cross_attention.weights(queries, keys)
        entropy = -(weights * weights.clamp(min=1e-12).log()).sum(-1).mean() / np.log(weights.shape[-1])
        winners = np.mean([len(w.unique()) for head in weights.argmax(-1) for w in head])
        a, b = layer.cross_norm(gathered), layer.cross_norm(other)
        constant = a.mean(1).square().sum(1) / a.square().sum(2).mean(1)
        mixed = [second[i] if i == number else first[i] for i in range(len(first))]
        renamed = watched(method, encoded, mixed)[1].argmax(1)
        spine = (named > 0) | (renamed > 0)
        result.append(
            Stage(
                float(entropy),
                float(winners),
                float(constant.mean()),
                float((a - b).norm() / a.norm()),
                float((named != renamed)[spine].float().mean()) if spine.any() else 0.0,
            )
        )
    return result


def watched(method: AtmNet, encoded: list[Tensor], tokens: Sequence[Tensor]) -> tuple[list[Any], Tensor]:
    """For each stage (queries, keys, what is gathered) of its attention to the text; and the logits."""
    found: list[Any] = []

    def watch(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        found.append((given[0], given[1], result))

    handles = [stage.cross_attention.register_forward_hook(watch) for stage in method.stages]
    try:
        features = encoded[-1]
        for stage, skip, said in zip(method.stages, encoded[-2::-1], tokens, strict=True):
            features = stage(features, skip, said)
    finally:
        for handle in handles:
            handle.remove()
    return found, method.head(features)


def ranges(method: AtmNet, case: LabelledVolume) -> tuple[str, str]:
    """The sentence of the levels that are labeled in a case, and that of the same run one level higher."""
    chain = [s for s in method.scheme.structures if s.is_vertebral and s.order is not None and s.id not in (25, 28)]
    chain.sort(key=lambda s: s.order or 0)
    there = [i for i, s in enumerate(chain) if s.id in case.annotated and (case.label == s.id).any()]
    rest = tubes(method.scheme)
    runs = [(max(there[0] - up, 0), max(there[-1] - up, 0)) for up in (0, 1)]
    first, second = (
        Prompt(method.config.option, level_run(method.scheme, chain[a].id, chain[b].id) + rest).text(method.scheme)
        for a, b in runs
    )
    return first, second


def middle(method: AtmNet, case: LabelledVolume) -> tuple[Tensor, Tensor]:
    """Image (1, N, H, W) and coordinates of the middle labeled slice, cut to what the network takes."""
    at = int(np.median(np.flatnonzero((case.label > 0).any((1, 2)))))
    offsets = context_offsets(method.tiling.context_mm) / case.volume.spacing[0]
    shown = torch.from_numpy(between_slices(case.volume.array, at + offsets))[None]
    rows, columns = (n // 32 * 32 for n in shown.shape[2:])
    place = coordinate_channels(shown.shape[2:], case.volume.spacing[1:])[None]
    return shown[..., :rows, :columns], place[..., :rows, :columns]


def report(method: AtmNet, cases: Sequence[LabelledVolume]) -> str:
    """A table as Markdown: means over the cases."""
    found = []
    for case in cases:
        if any(i in case.annotated for i in method.scheme.ids if 16 <= i <= 26):
            images, place = middle(method, case)
            found.append(stages(method, images, place, ranges(method, case)))
    lines = [
        "| stage | α | entropy / largest | tokens that win | same at every pixel | changed by the range | "
        "renamed by this stage's range |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, stage in enumerate(method.stages):
        mean = {key: np.mean([vars(case[number])[key] for case in found]) for key in Stage.__annotations__}
        lines.append(
            f"| {len(method.stages) - number} | {stage.alpha.item():.3f} | {mean['entropy']:.2f} | "
            f"{mean['winners']:.1f} | {mean['constant']:.3f} | {mean['changed']:.3f} | {mean['renamed']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    predictor = Predictor(args.checkpoint, "cpu")
    cases = load_labelled(read_manifest(args.dataset).cases(args.split), predictor.preprocessing)
    text = report(predictor.method, cases)  # type: ignore[arg-type]
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
