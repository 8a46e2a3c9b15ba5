"""Does the text act? What an ATM-Net checkpoint makes of right, wrong and no prompts.

    python Testing/Benchmarks/atm_net_text.py CHECKPOINT DATASET.json [--split validation] [--report FILE]

Says the weight α of each stage; what the text costs of a pass, by the same network with the attention to text skipped,
in the same run; and scores the split's cases, as they are and without a third of the view: with prompts from each
source, with a range that is wrong by one level, and without text. Each as the network's own classes (`raw`), with the
consistency step but not the auxiliary rank head (`no rank`), and as delivered. The consistency step is never told the
range, so that what changes is the text's doing. For checkpoints whose prompts are of option 2 or 3.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import LEAK, bottom_off, top_off, visible

from SpineSegAILib.anatomy import STRUCTURES, Kind
from SpineSegAILib.consistency import resolve_levels
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation import dice
from SpineSegAILib.evaluation.on_grid import LabelledVolume, load_labelled
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.hints import Hints
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.base import Context, coordinate_channels

VIEWS: dict[str, Callable[[LabelledVolume], LabelledVolume]] = {
    "full": lambda c: c,
    "top third off": top_off,
    "bottom third off": bottom_off,
}
SOURCES: dict[str, dict[str, str]] = {
    "no text (α = 0)": {"prompt_source": "none"},
    "generic": {"prompt_source": "generic"},
    "self": {"prompt_source": "self"},
    "presence": {"prompt_source": "presence"},
    "range": {"prompt_source": "range"},
    "range, one level too high": {"prompt_source": "range"},
    "oracle (leak)": LEAK,
}
DECODINGS = ("raw", "no rank", "as delivered")


def shifted(hints: Hints, predictor: Predictor) -> Hints:
    """The range one level higher, at both ends where the scheme has another."""
    chain = [s.id for s in predictor.scheme.structures if s.is_vertebral and s.order is not None]
    chain = sorted((i for i in chain if i not in (25, 28)), key=lambda i: STRUCTURES[i].order or 0)
    assert hints.visible is not None
    first, last = (max(chain.index(end) - 1, 0) for end in hints.visible)
    return replace(hints, visible=(chain[first], chain[last]))


def thinned(case: LabelledVolume, every: int) -> LabelledVolume:
    """Every n-th slice, as a stack of thicker steps."""
    middle = slice((len(case.label) - 1) % every // 2, None, every)
    spacing = (case.volume.spacing[0] * every, *case.volume.spacing[1:])
    volume = replace(case.volume, array=np.ascontiguousarray(case.volume.array[middle]), spacing=spacing)
    return replace(case, volume=volume, label=np.ascontiguousarray(case.label[middle]))


def decoded(evidence: Evidence) -> dict[str, np.ndarray]:
    """Structure ids (D, H, W) by each of `DECODINGS`."""
    ids = np.array([0, *evidence.scheme.ids], np.int16)
    assert evidence.classes is not None
    return {
        "raw": ids[evidence.classes.argmax(0)],
        "no rank": resolve_levels(replace(evidence, rank=None)).labels,
        "as delivered": resolve_levels(evidence).labels,
    }


def structure_scores(case: LabelledVolume, found: np.ndarray) -> list[dict[str, Any]]:
    """Per annotated structure in view: level-strict Dice, and whether what covers most of it has its name."""
    rows = []
    for sid in case.annotated:
        reference = case.label == sid
        if not reference.any():
            continue
        inside = np.bincount(found[reference].astype(np.int64))
        inside[:1] = 0
        best = int(inside.argmax()) if inside.any() else 0
        rows.append(
            {"case": case.name, "id": sid, "dice": dice(reference, found == sid), "right": best == sid, "found": best}
        )
    return rows


def scores(predictor: Predictor, cases: Sequence[LabelledVolume]) -> dict[str, Any]:
    """view → source → decoding → rows of `structure_scores`; and, for the wrong range, how many voxels it moved."""
    result: dict[str, Any] = {}
    for view, change in VIEWS.items():
        found: dict[str, Any] = {name: {d: [] for d in DECODINGS} for name in SOURCES}
        moved = []
        for case in map(change, cases):
            labels: dict[str, np.ndarray] = {}
            for name, options in SOURCES.items():
                hints = visible(case) if name.startswith("range") else None
                if hints and "too high" in name:
                    hints = shifted(hints, predictor)
                evidence = predict_volume(
                    predictor.method, case.volume, predictor.device, hints=hints, options=options,
                    reference=case.label if options is LEAK else None,
                )  # fmt: skip
                for decoding, ids in decoded(evidence).items():
                    found[name][decoding] += structure_scores(case, ids)
                    if decoding == "raw":
                        labels[name] = ids
            right = labels["range"]
            spine = right > 0
            moved.append(float((labels["range, one level too high"] != right)[spine].mean()) if spine.any() else 0.0)
            print(f"{view}: {case.name}", flush=True)
        result[view] = {"sources": found, "moved": float(np.mean(moved))}
    return result


def cost(predictor: Predictor, size: int, repeats: int) -> dict[str, float]:
    """Seconds of a pass over a batch of slices with text and with the attention to it skipped, taken in turns."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn((4, 1, size, size), generator=g).to(predictor.device)
    mm = predictor.preprocessing.pixel_mm
    coordinates = coordinate_channels((size, size), (mm, mm), predictor.device)[None].expand(4, -1, -1, -1)
    times: dict[str, list[float]] = {"range": [], "none": []}
    ends = [s.id for s in predictor.scheme.structures if s.name in ("T11", "S1")]
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for source, taken in times.items():
                hints = Hints(visible=(ends[0], ends[1])) if source == "range" else Hints()
                context = Context(
                    coordinates, slices=(0, 1, 2, 3), slice_count=4, hints=hints, options={"prompt_source": source}
                )
                started = time.process_time() if predictor.device.type == "cpu" else time.perf_counter()
                predictor.method.evidence(images, context)
                ended = time.process_time() if predictor.device.type == "cpu" else time.perf_counter()
                if turn:  # the first one warms up
                    taken.append(ended - started)
    with_text, without = float(np.median(times["range"])), float(np.median(times["none"]))
    return {"with_text": with_text, "without": without, "share": 1 - without / with_text, "repeats": repeats}


def tables(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    lines = [
        "α of the stages from the coarsest: " + ", ".join(f"{a:.3f}" for a in found["alpha"]) + ".",
        "",
        f"A pass over 4 slices takes {found['cost']['with_text']:.2f} s of processor time with text, "
        f"{found['cost']['without']:.2f} s with the attention to it skipped (median of {found['cost']['repeats']}, in "
        f"turns): the text is {found['cost']['share']:.1%} of the pass.",
    ]
    for view, summary in found["views"].items():
        lines += [
            "",
            f"### {view}",
            "",
            "| prompts | " + " | ".join(DECODINGS) + " | levels correctly identified, raw | as delivered |",
        ]
        lines.append("|---|" + "---|" * (len(DECODINGS) + 2))
        for source, row in summary["sources"].items():
            numbers = [f"{row[d]['vertebra_dice']:.3f}" for d in DECODINGS]
            levels = [f"{row[d]['right']}/{row[d]['count']}" for d in ("raw", "as delivered")]
            lines.append(f"| {source} | {' | '.join(numbers)} | {' | '.join(levels)} |")
        fixed = summary["fixed"]
        lines += [
            "",
            f"A range that is one level too high changes {summary['moved']:.1%} of the voxels that the right range "
            "gives a name (raw).",
            "; ".join(
                f"{d}: of {fixed[d]['wrong']} level errors with the generic prompt the right range corrects "
                f"{fixed[d]['fixed']}, and of {fixed[d]['correct']} right levels it spoils {fixed[d]['spoilt']}"
                for d in ("raw", "as delivered")
            )
            + ".",
        ]
    lines += ["", "Columns of decodings: level-strict Dice of the vertebrae, mean over all of them in all cases."]
    return "\n".join(lines) + "\n"


def summarized(view: dict[str, Any]) -> dict[str, Any]:
    """Means of a view's rows, and what the right range does to the errors of the generic prompt."""
    sources: dict[str, Any] = {}
    for source, decodings in view["sources"].items():
        sources[source] = {}
        for decoding, rows in decodings.items():
            vertebrae = [r for r in rows if STRUCTURES[r["id"]].kind is Kind.VERTEBRA]
            sources[source][decoding] = {
                "vertebra_dice": float(np.mean([r["dice"] for r in vertebrae])),
                "dice": float(np.mean([r["dice"] for r in rows])),
                "right": sum(r["right"] for r in rows),
                "count": len(rows),
            }
    fixed = {}
    for decoding in DECODINGS:
        pairs = list(zip(view["sources"]["generic"][decoding], view["sources"]["range"][decoding], strict=True))
        fixed[decoding] = {
            "wrong": sum(not a["right"] for a, _ in pairs),
            "fixed": sum(not a["right"] and b["right"] for a, b in pairs),
            "correct": sum(a["right"] for a, _ in pairs),
            "spoilt": sum(a["right"] and not b["right"] for a, b in pairs),
        }
    return {"sources": sources, "moved": view["moved"], "fixed": fixed}


def main() -> None:
    parser = argparse.ArgumentParser(description="Does the text of an ATM-Net act?")
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--every", type=int, default=1, help="score only every n-th slice, to save time")
    parser.add_argument("--size", type=int, default=320, help="side of the slices whose pass is timed")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--report", type=Path, help="also write this file with .md and .json")
    arguments = parser.parse_args()
    predictor = Predictor(arguments.checkpoint)
    cases = load_labelled(read_manifest(arguments.dataset).cases(arguments.split), predictor.preprocessing)
    cases = [thinned(case, arguments.every) for case in cases]
    found = {
        "checkpoint": predictor.info.name,
        "split": arguments.split,
        "every": arguments.every,
        "alpha": [stage.alpha.item() for stage in predictor.method.stages],
        "cost": cost(predictor, arguments.size, arguments.repeats),
        "views": {view: summarized(v) for view, v in scores(predictor, cases).items()},
    }
    text = tables(found)
    print(text)
    if arguments.report:
        arguments.report.with_suffix(".md").write_text(text, encoding="utf-8")
        arguments.report.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
