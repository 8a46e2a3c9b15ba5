"""Does sampling make a Verdiff-Net checkpoint's prior better, and does its uncertainty mean something?

    python Testing/Benchmarks/refinement.py CHECKPOINT DATASET.json --split validation --report refinement

writes ``refinement.md`` and ``refinement.json``. Every case is segmented by the prior alone and by 1, 3 and 5 samples
of 1, 2, 5, 10 and 20 steps, and compared with the prior structure by structure; a bootstrap over cases gives the
intervals.

What is measured is what the network says, on its own grid, so that nothing is resampled; names are those that follow
by anatomical consistency. Surfaces are those of slices, since the network sees slices and the stacks have gaps. Where
the checkpoint has a calibration, which moves edges too, it is also measured with it; it was chosen for the checkpoint's
own number of samples and steps, and serves the prior and other numbers less.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import interval, middle_slices, surface_scores
from scipy import ndimage, stats

from SpineSegAILib.anatomy import STRUCTURES, LabelScheme
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.evaluation import dice
from SpineSegAILib.evaluation.on_grid import LabelledVolume, load_labelled, structures_found
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.files import atomic_write
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.calibration import Calibration
from SpineSegAILib.inference.sliding_window import predict_volume

BAND_MM = 3.0
"""Around the predicted edges: there masks are wrong, and there a reader looks."""

METRICS = {
    "surface_dice": "surface Dice, 1 mm",
    "dice": "Dice",
    "raw_dice": "Dice, raw classes",
    "hd95_mm": "HD95, mm",
    "calibrated_surface_dice": "surface Dice, calibrated",
    "calibrated_dice": "Dice, calibrated",
}
"""Scores of a structure and their column titles; all are level-strict."""


@dataclass(frozen=True)
class Setting:
    """A row: run-time options of the method."""

    name: str
    options: Mapping[str, Any]


PRIOR = Setting("prior", {"preview": "on"})
SETTINGS = (
    *(
        Setting(f"{samples} × {steps} steps", {"sampler": "ddim", "samples": samples, "steps": steps})
        for samples in (1, 3, 5)
        for steps in (1, 2, 5, 10, 20)
    ),
    Setting("5 × 5 steps from 300", {"sampler": "ddim", "samples": 5, "steps": 5, "t_start": 300}),
)


def measure(
    predictor: Predictor, cases: Iterable[LabelledVolume], settings: Sequence[Setting] = SETTINGS
) -> dict[str, dict[str, Any]]:
    """Scores and seconds of the prior and of each setting.

    Returns:
        row → case → ``{"structures": {name: {metric: value or None}}, "seconds": …, "slices": …, "aurocs": {…}}``.
    """
    rows: dict[str, dict[str, Any]] = {setting.name: {} for setting in (PRIOR, *settings)}
    warm = False
    for case in cases:
        if not warm:  # the first pass pays for memory and kernels
            _evidence(predictor, case, PRIOR)
            warm = True
        prior, seconds = _evidence(predictor, case, PRIOR)
        scores = _scores(prior, case, seconds, predictor.calibration)
        rows[PRIOR.name][case.name] = scores | {"aurocs": _prior_auroc(prior, case)}
        for setting in settings:
            found, seconds = _evidence(predictor, case, setting)
            scores = _scores(found, case, seconds, predictor.calibration)
            rows[setting.name][case.name] = scores | {"aurocs": aurocs(found, prior, case)}
        print(f"{case.name}: done", file=sys.stderr, flush=True)
    return rows


def _evidence(predictor: Predictor, case: LabelledVolume, setting: Setting) -> tuple[Evidence, float]:
    started = time.perf_counter()
    evidence = predict_volume(
        predictor.method, case.volume, predictor.device, patch=predictor.patch, options=setting.options
    )
    return evidence, time.perf_counter() - started


# --- how good the masks are ------------------------------------------------------------------------------------------


def _scores(evidence: Evidence, case: LabelledVolume, seconds: float, calibration: Calibration) -> dict[str, Any]:
    found = structures_found(evidence)
    calibrated = calibration.apply(evidence)
    moved = None if calibrated is evidence else structures_found(calibrated)
    raw = np.array([0, *evidence.scheme.ids], np.int16)[evidence.classes.argmax(0)]  # type: ignore[union-attr]
    structures = {}
    for sid, reference in references(case, evidence.scheme).items():
        predicted = found == sid
        surface, hd95 = surface_scores(reference, predicted, evidence.spacing)
        structures[STRUCTURES[sid].name] = {
            "surface_dice": surface,
            "dice": dice(reference, predicted),
            "raw_dice": dice(reference, raw == sid),
            "hd95_mm": None if math.isnan(hd95) else hd95,
            "calibrated_surface_dice": None,
            "calibrated_dice": None,
        }
        if moved is not None:
            structures[STRUCTURES[sid].name] |= {
                "calibrated_surface_dice": surface_scores(reference, moved == sid, evidence.spacing)[0],
                "calibrated_dice": dice(reference, moved == sid),
            }
    return {"structures": structures, "seconds": seconds, "slices": len(case.label)}


def references(case: LabelledVolume, scheme: LabelScheme) -> dict[int, np.ndarray]:
    """Id in the scheme → mask of what is annotated and there; all of a kind together where the scheme has no levels."""
    masks: dict[int, np.ndarray] = {}
    for sid in case.annotated:
        channel, mask = scheme.channel_for(sid), case.label == sid
        if channel and mask.any():
            target = scheme.ids[channel - 1]
            masks[target] = masks[target] | mask if target in masks else mask
    return masks


# --- what the uncertainty says ---------------------------------------------------------------------------------------


def aurocs(found: Evidence, prior: Evidence, case: LabelledVolume) -> dict[str, float]:
    """How well maps tell the wrong voxels near the edges of a result: its deviation, and the prior's own doubt.

    Both are asked about the same voxels. Empty where there is no deviation, or where nothing or everything is wrong.
    """
    band, wrong = near_edges(found, case)
    if found.uncertainty is None or not 0 < wrong[band].sum() < band.sum():
        return {}
    return {
        "deviation": auroc(found.uncertainty[band], wrong[band]),
        "prior": auroc(doubt(prior)[band], wrong[band]),
    }


def _prior_auroc(prior: Evidence, case: LabelledVolume) -> dict[str, float]:
    """The prior's own doubt, asked about the prior's own errors."""
    band, wrong = near_edges(prior, case)
    return {"own": auroc(doubt(prior)[band], wrong[band])} if 0 < wrong[band].sum() < band.sum() else {}


def doubt(evidence: Evidence) -> np.ndarray:
    """(D, H, W) ½·(1 − Σ_c p_c²): p·(1 − p) for two classes, and its like for more."""
    assert evidence.classes is not None
    return (1 - np.square(evidence.classes.astype(np.float32)).sum(0)) / 2


def near_edges(evidence: Evidence, case: LabelledVolume) -> tuple[np.ndarray, np.ndarray]:
    """Masks (D, H, W) of the band around the predicted edges, and of the voxels taken for a wrong kind.

    Edges and errors are those of kinds (vertebra, disc, canal, sacrum): a level that is off by one is no matter of
    edges. Voxels taken for what is not annotated in the case are left out, since nobody knows.
    """
    scheme = evidence.scheme
    kinds = np.array(scheme.kinds)
    channels = evidence.classes.argmax(0)  # type: ignore[union-attr]
    predicted = kinds[channels]
    reference = np.zeros_like(predicted)
    annotated = {sid: scheme.channel_for(sid) for sid in case.annotated}
    for sid, channel in annotated.items():
        reference[case.label == sid] = kinds[channel]
    known = np.isin(channels, [0, *annotated.values()])
    return edge_band(predicted, evidence.spacing) & known, predicted != reference


def edge_band(labels: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Mask of what lies within `BAND_MM` of an edge between labels (D, H, W), inside the slice."""
    edges = np.zeros(labels.shape, bool)
    for axis in (1, 2):
        n = labels.shape[axis]
        low, high = (labels.take(range(a, b), axis) for a, b in ((0, n - 1), (1, n)))
        differs = low != high
        for first in (0, 1):  # the voxels on both sides
            part = [slice(None)] * 3
            part[axis] = slice(first, n - 1 + first)
            edges[tuple(part)] |= differs
    band = np.zeros_like(edges)
    for index, here in enumerate(edges):
        if here.any():
            band[index] = ndimage.distance_transform_edt(~here, sampling=spacing[1:]) <= BAND_MM
    return band


def auroc(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the receiver operating characteristic: how often a positive has more than another; ties count half."""
    ranks = stats.rankdata(values)
    wanted, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - wanted * (wanted + 1) / 2) / (wanted * others))


# --- what it says ----------------------------------------------------------------------------------------------------


def report(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the rows, differences to the prior, and what the maps tell, JSON-able."""
    base = rows[PRIOR.name]
    sampled = [name for name in rows if name != PRIOR.name]
    differences = [
        {"row": name, "metric": metric, **found}
        for metric in METRICS
        for name in sampled
        if (found := _interval(_differences(rows[name], base, metric), metric))
    ]
    maps = []
    for name in sampled:
        both = [case["aurocs"] for case in rows[name].values() if case["aurocs"]]
        if both:
            means = {key: float(np.mean([a[key] for a in both])) for key in ("deviation", "prior")}
            maps.append({"row": name, **means, **interval([a["deviation"] - a["prior"] for a in both])})
    own = [case["aurocs"]["own"] for case in base.values() if case["aurocs"]]
    return {
        "rows": {name: _means(cases) for name, cases in rows.items()},
        "differences": differences,
        "uncertainty": maps,
        "prior_own_auroc": float(np.mean(own)) if own else None,
        "cases": rows,
    }


def _interval(differences: Sequence[float], metric: str) -> dict[str, Any]:
    return interval(differences, less_is_better=metric.endswith("_mm")) if differences else {}


def _differences(row: Mapping[str, Any], base: Mapping[str, Any], metric: str) -> list[float]:
    """Per case the mean difference over the structures of which both have the score."""
    result = []
    for name, case in row.items():
        before = base[name]["structures"]
        pairs = [(scores[metric], before[structure][metric]) for structure, scores in case["structures"].items()]
        found = [a - b for a, b in pairs if a is not None and b is not None]
        if found:
            result.append(float(np.mean(found)))
    return result


def _means(cases: Mapping[str, Any]) -> dict[str, Any]:
    """Means over cases of the means over their structures; what has no distance is counted."""
    result: dict[str, Any] = {"cases": len(cases)}
    for metric in METRICS:
        values = [[s[metric] for s in case["structures"].values() if s[metric] is not None] for case in cases.values()]
        means = [np.mean(v) for v in values if v]
        result[metric] = float(np.mean(means)) if means else None
    result["missed"] = sum(s["hd95_mm"] is None for case in cases.values() for s in case["structures"].values())
    result["seconds"] = float(np.mean([case["seconds"] for case in cases.values()]))
    result["seconds_per_slice"] = float(np.mean([case["seconds"] / case["slices"] for case in cases.values()]))
    return result


def markdown(found: Mapping[str, Any]) -> str:
    """Three tables: rows, differences to the prior, and what the maps tell."""
    about = found["about"]
    lines = [
        f"Checkpoint {about['checkpoint']}, {about['split']} of {about['dataset']}: {about['cases']} cases, "
        f"{about['slices']} slices each, {about['pixel_mm']:g} mm pixels, {about['device']}. Means over cases; "
        "distances inside slices.",
        "",
        f"| row | {' | '.join(METRICS.values())} | not found | s per case | s per slice |",
        f"|---|{'---|' * len(METRICS)}---|---|---|",
    ]
    for name, row in found["rows"].items():
        numbers = [_number(row[m], m) for m in METRICS]
        lines.append(
            f"| {name} | {' | '.join(numbers)} | {row['missed']} | {row['seconds']:.1f} "
            f"| {row['seconds_per_slice']:.2f} |"
        )
    lines += ["", "| sampling − prior | in | cases | mean | 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    for d in found["differences"]:
        lines.append(f"| {d['row']} | {METRICS[d['metric']]} | {_interval_cells(d, d['metric'])} |")
    lines += [
        "",
        f"AUROC for voxels of a wrong kind within {BAND_MM:g} mm of the predicted edges: of the samples' deviation, "
        "and of the prior's ½·(1 − Σp²), which is p·(1 − p) for two classes, for the same voxels. For its own errors "
        f"the prior's has {_number(found['prior_own_auroc'], '')}.",
        "",
        "| row | deviation | prior's | cases | difference | 95 % interval | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for u in found["uncertainty"]:
        lines.append(f"| {u['row']} | {u['deviation']:.3f} | {u['prior']:.3f} | {_interval_cells(u, '')} |")
    return "\n".join(lines) + "\n"


def _interval_cells(found: Mapping[str, Any], metric: str) -> str:
    digits = 2 if metric.endswith("_mm") else 3
    low, mean, high = (f"{found[key]:+.{digits}f}" for key in ("low", "difference", "high"))
    return f"{found['cases']} | {mean} | {low} to {high} | {found['verdict']}"


def _number(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{value:.{2 if metric.endswith('_mm') else 3}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="name or file")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--slices", type=int, default=3, help="how many in the middle of a case (default 3); 0 for all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--report", type=Path, required=True, help="written with .md and .json at its end")
    args = parser.parse_args(arguments)
    if args.slices < 0:
        parser.error("--slices must be 0 or more")
    try:
        predictor = Predictor(args.checkpoint, args.device)
        loaded = load_labelled(read_manifest(args.dataset).cases(args.split), predictor.preprocessing)
        cases = [middle_slices(case, args.slices or None) for case in loaded]
        cases = [case for case in cases if references(case, predictor.scheme)]
        if not cases:
            sys.exit(f"No case of {args.split} shows an annotated structure of this checkpoint: choose another split.")
        rows = measure(predictor, cases)
    except SpineSegAIError as error:
        sys.exit(str(error))
    threads = torch.get_num_threads()
    about = {
        "checkpoint": predictor.info.name,
        "dataset": args.dataset.name,
        "split": args.split,
        "cases": len(cases),
        "slices": args.slices or "all",
        "pixel_mm": predictor.preprocessing.pixel_mm,
        "device": f"CPU with {threads} thread{'s' * (threads > 1)}" if predictor.device.type == "cpu" else "GPU",
    }
    found = {"about": about, **report(rows)}
    tables = markdown(found)
    print(tables)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.report.with_suffix(".md"), args.report.with_suffix(".json")) as (text, data):
        Path(text).write_text(tables, encoding="utf-8")
        Path(data).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
