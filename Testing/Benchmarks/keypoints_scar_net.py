"""How far SCAR-Net's keypoints are from the masks' centroids, and what moving one of them changes.

    python Testing/Benchmarks/keypoints_scar_net.py CHECKPOINT DATASET.json [--split validation] [--output FILE.md]

Each labeled vertebra in turn is the one whose point is moved by 15 mm, once down and once backward; all others
stay where they were found. What changes is looked at in the middle slices, as a share of the voxels that are anything
but background before or after: near the vertebra (within 20 mm of its centroid), and elsewhere (farther than 50 mm).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measures import middle_slices

from SpineSegAILib.anatomy import STRUCTURES, Kind
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation.on_grid import LabelledVolume, load_labelled
from SpineSegAILib.hints import Hints
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import predict_volume

MOVE_MM, NEAR_MM, FAR_MM = 15.0, 20.0, 50.0
SLICES = 3
MOVES = {"down": (0, 1, 0), "backward": (0, 0, 1)}


def errors(predictor: Predictor, case: LabelledVolume) -> dict[int, tuple[float, float]]:
    """Structure id → distance (mm) of its keypoint from the mask's centroid, in the volume and in the slice's plane.

    A structure that was not found is infinitely far.
    """
    evidence = predict_volume(predictor.method, case.volume, predictor.device, patch=predictor.patch)
    found = {}
    for sid in case.annotated:
        if not (case.label == sid).any():
            continue
        away = np.full(3, np.inf)
        if sid in evidence.keypoints:
            away = (np.argwhere(case.label == sid).mean(0) - evidence.keypoints[sid]) * evidence.spacing
        found[sid] = (float(np.linalg.norm(away)), float(np.linalg.norm(away[1:])))
    return found


def moved(predictor: Predictor, case: LabelledVolume) -> list[dict[str, float | str]]:
    """For each vertebra and direction: the share of voxels that become something else, near it and far from it."""
    volume = case.volume

    def segment(points: dict[int, tuple[float, ...]]) -> tuple[np.ndarray, np.ndarray]:
        hints = Hints(keypoints={i: volume.point_of(p) for i, p in points.items()})
        found = predict_volume(predictor.method, volume, predictor.device, patch=predictor.patch, hints=hints)
        return found.classes.astype(np.float32), found.classes.argmax(0)

    points = predict_volume(predictor.method, volume, predictor.device, patch=predictor.patch).keypoints
    before, first = segment(points)
    result: list[dict[str, float | str]] = []
    for sid in case.annotated:
        mask = case.label == sid
        if STRUCTURES[sid].kind is not Kind.VERTEBRA or sid not in points or not mask.any():
            continue
        centre = np.argwhere(mask).mean(0)[:, None, None, None]
        offsets = np.linalg.norm(((np.indices(mask.shape) - centre).T * volume.spacing).T, axis=0)
        for name, direction in MOVES.items():
            step = np.array(direction) * MOVE_MM / np.array(volume.spacing)
            target = np.clip(np.add(points[sid], step), 0, np.array(mask.shape) - 1)
            after, second = segment({**points, sid: tuple(target.tolist())})
            drawn = (first > 0) | (second > 0)
            change = np.abs(after - before).max(0)
            entry: dict[str, float | str] = {"move": name, "structure": STRUCTURES[sid].name}
            for place, inside in (("near", offsets < NEAR_MM), ("far", offsets > FAR_MM)):
                entry[place] = float((first != second)[inside & drawn].mean()) if (inside & drawn).any() else 0.0
                entry[f"{place} probability"] = float(change[inside & drawn].mean()) if (inside & drawn).any() else 0.0
            result.append(entry)
    return result


def report(predictor: Predictor, cases: list[LabelledVolume]) -> str:
    """Two tables as Markdown."""
    table = [
        "| case | structures | median, mm | largest, mm | in the plane: median | largest |",
        "|---|---|---|---|---|---|",
    ]
    every: list[tuple[float, float]] = []
    changes = []
    for case in cases:
        found = list(errors(predictor, case).values())
        every += found
        table.append(_row(case.name, found))
        changes += moved(predictor, middle_slices(case, SLICES))
        print(table[-1], flush=True)
    lines = ["## Keypoints", "", "Distance of the keypoints found from the centroids of the masks.", ""]
    lines += [*table, _row("**all**", every), ""]
    lines += [
        f"A vertebra's keypoint moved by {MOVE_MM:g} mm, the others as found: mean share of the structures' voxels "
        f"(middle {SLICES} slices, raw classes) that become something else, and mean change of the most changed "
        f"probability, within {NEAR_MM:g} mm of the vertebra's centroid and beyond {FAR_MM:g} mm.",
        "",
        "| moved | n | voxels near | far | probability near | far | largest share near |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (*MOVES, "**all**"):
        rows = [c for c in changes if name in (c["move"], "**all**")]
        means = [
            float(np.mean([r[key] for r in rows])) for key in ("near", "far", "near probability", "far probability")
        ]
        near, far, p_near, p_far = means
        largest = max(r["near"] for r in rows)
        lines.append(f"| {name} | {len(rows)} | {near:.2%} | {far:.2%} | {p_near:.4f} | {p_far:.4f} | {largest:.1%} |")
    return "\n".join(lines) + "\n"


def _row(name: str, found: list[tuple[float, float]]) -> str:
    whole, plane = zip(*found, strict=True)
    numbers = [np.median(whole), max(whole), np.median(plane), max(plane)]
    return f"| {name} | {len(found)} | {' | '.join(f'{n:.1f}' for n in numbers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Key points of SCAR-Net.")
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    predictor = Predictor(arguments.checkpoint)
    cases = load_labelled(read_manifest(arguments.dataset).cases(arguments.split), predictor.preprocessing)
    text = report(predictor, cases)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
