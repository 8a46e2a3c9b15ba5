"""Scores of a checkpoint for films of the spine: outlines, levels, corners, Cobb angles, time, uncertainty.

    python Testing/Benchmarks/films.py CHECKPOINT DATASET.json [--split validation] [--first N] [--output FILE.json]
        [--table FILE.md]

Films are segmented as a user's are, on their own pixels. Cobb angles are those of the set's rule: what the set
publishes where the manifest has it, else what its corners give. SMAPE is the challenge's: of a film, the sum of the
three differences over the sum of the six angles; then the mean of the films. Angles are scored twice: those that a user
sees, where all three are given; and of all films, from whatever vertebrae could be measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from refinement import auroc
from scipy import ndimage

from SpineSegAILib.datasets.manifest import Case, read_case, read_manifest
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.inference import Predictor
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.measurement import FilmSpine
from SpineSegAILib.results.measurement.cobb import set_angles
from SpineSegAILib.results.measurement.scoliosis import film_rows

EDGE = 0.01
"""Share of the film's height to either side of the reference's outlines, where uncertainty is judged."""


LEAST_FILMS = 5
"""Of fewer, mean errors and correlations say nothing."""


def corners_of(case: Case, image: sitk.Image) -> dict[int, np.ndarray]:
    """Vertebra's id → (4, 2) column and row of its reference corners."""
    index = image.TransformPhysicalPointToContinuousIndex
    return {sid: np.array([index(point)[:2] for point in quad]) for sid, quad in case.corners.items()}


def outline_scores(found: np.ndarray, reference: np.ndarray) -> tuple[list[float], list[float], int, dict[int, int]]:
    """Dice of each reference vertebra with the one of its name, and with the one that covers most of it; how many of
    these have its name; and reference id → id of what covers it."""
    strict, matched, right, pairs = [], [], 0, {}
    for sid in (int(v) for v in np.unique(reference) if v):
        mask = reference == sid
        covering = np.bincount(found[mask], minlength=1)
        covering[0] = 0
        other = int(covering.argmax()) if covering.any() else 0
        strict.append(_dice(mask, found == sid))
        matched.append(_dice(mask, found == other) if other else 0.0)
        right += other == sid
        if other:
            pairs[sid] = other
    return strict, matched, right, pairs


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(one.sum() + other.sum(), 1))


def uncertainty_score(result: Segmentation, reference: np.ndarray) -> float | None:
    """AUROC of the uncertainty for wrong pixels (vertebra or not) near the reference's edges."""
    if result.uncertainty is None:
        return None
    values = sitk.GetArrayFromImage(result.uncertainty)[0]
    drawn = reference > 0
    wrong = (sitk.GetArrayFromImage(result.labels)[0] > 0) != drawn
    reach = EDGE * len(reference)
    band = np.where(drawn, ndimage.distance_transform_edt(drawn), ndimage.distance_transform_edt(~drawn)) <= reach
    return auroc(values[band], wrong[band]) if 0 < wrong[band].sum() < band.sum() else None


def score(predictor: Predictor, case: Case, published: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one film."""
    image, drawn = read_case(case)
    reference = sitk.GetArrayFromImage(drawn)[0].astype(int)
    started = time.perf_counter()
    try:
        result = predictor.segment(image)
    except SpineSegAIError as error:
        return {"case": case.name, "failure": str(error)}
    seconds = time.perf_counter() - started
    found = sitk.GetArrayFromImage(result.labels)[0].astype(int)
    strict, matched, right, pairs = outline_scores(found, reference)
    spine, truth = FilmSpine(result), corners_of(case, image)
    away = [
        float(np.linalg.norm(spine.quads[other].corners - truth[sid], axis=1).mean() / len(reference))
        for sid, other in pairs.items()
        if other in spine.quads and sid in truth
    ]
    corners = [quad.corners for quad in spine.quads.values()]
    whole = film_rows(result)[-1]
    told = [whole[key] for key in ("cobb_main_deg", "cobb_upper_deg", "cobb_lower_deg")]
    given = None not in told
    angles = told if given else set_angles(np.stack(corners), len(reference)) if len(corners) > 2 else None
    return {
        "case": case.name,
        "dice": float(np.mean(strict)),
        "dice_any_level": float(np.mean(matched)),
        "levels": len(strict),
        "levels_right": right,
        "corner_share": float(np.mean(away)) if away else None,
        "corners_found": len(away),
        "cobb": angles,
        "main_given": told[0],
        "cobb_given": given,
        "cobb_true": published.get("cobb_angles") or set_angles(np.stack(list(truth.values())), len(reference)),
        "auroc": uncertainty_score(result, reference),
        "seconds": seconds,
        "doubted": any("uncertain" in warning for warning in result.warnings),
        "warnings": result.warnings,
    }


def summary(films: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all."""
    done = [film for film in films if "failure" not in film]
    with_angles = [film for film in done if film["cobb"] is not None]
    result: dict[str, Any] = {"films": len(films), "failed": len(films) - len(done)}
    if not done:
        return result
    corners = [film["corner_share"] for film in done if film["corner_share"] is not None]
    aurocs = [film["auroc"] for film in done if film["auroc"] is not None]
    result |= {
        "dice": np.mean([film["dice"] for film in done]),
        "dice_any_level": np.mean([film["dice_any_level"] for film in done]),
        "levels_right": sum(f["levels_right"] for f in done) / sum(f["levels"] for f in done),
        "films_right": np.mean([film["levels_right"] == film["levels"] for film in done]),
        "corner_percent_of_height": 100 * np.mean(corners) if corners else None,
        "auroc": np.mean(aurocs) if aurocs else None,
        "corners_given": sum(f["corners_found"] for f in done) / sum(f["levels"] for f in done),
        "seconds_median": np.median([film["seconds"] for film in done]),
        "films_with_given_angles": sum(film["cobb_given"] for film in done),
    }
    for name, right in (("right", True), ("wrong", False)):
        chosen = [film for film in done if (film["levels_right"] == film["levels"]) is right]
        result[f"doubted_{name}"] = [sum(film["doubted"] for film in chosen), len(chosen)]
    main = [(f["main_given"], f["cobb_true"][0]) for f in done if f["main_given"] is not None]
    if main:
        result["main_given"] = [len(main), float(np.mean(np.abs(np.subtract(*zip(*main, strict=True)))))]
    for name, chosen in (("all", with_angles), ("given", [film for film in with_angles if film["cobb_given"]])):
        if len(chosen) >= LEAST_FILMS:
            ours, theirs = (np.array([film[key] for film in chosen]) for key in ("cobb", "cobb_true"))
            off = np.abs(ours - theirs)
            result[f"cobb_{name}"] = {
                "films": len(chosen),
                "mean_absolute_error": off.mean(0).tolist(),
                "smape_percent": 100 * np.mean(off.sum(1) / (ours + theirs).sum(1)),
                "pearson": [float(np.corrcoef(ours[:, i], theirs[:, i])[0, 1]) for i in range(3)],
            }
    return result


def table(found: dict[str, Any], command: str) -> str:
    """The figures as a section in Markdown, to be added to a model's results (`publish --append`)."""

    def angles(name: str, title: str) -> list[tuple[str, str]]:
        told = found.get(f"cobb_{name}")
        if told is None:
            return []
        off, r = (
            " / ".join(f"{x:.{n}f}" for x in told[key]) for key, n in (("mean_absolute_error", 1), ("pearson", 2))
        )
        return [
            (f"{title}: films", str(told["films"])),
            (f"{title}: mean absolute error, main / proximal thoracic / thoracolumbar, degrees", off),
            (f"{title}: Pearson", r),
            (f"{title}: SMAPE of the three", f"{told['smape_percent']:.1f} %"),
        ]

    def optional(value: float | None, text: str) -> str:
        return "–" if value is None else text.format(value)

    rows = [
        ("films", str(found["films"])),
        ("vertebrae: Dice, level-strict", f"{found['dice']:.3f}"),
        ("vertebrae: Dice, ignoring level", f"{found['dice_any_level']:.3f}"),
        ("levels correctly identified", f"{found['levels_right']:.1%}"),
        ("films with all levels", f"{found['films_right']:.1%}"),
        ("corners: mean distance, of the film's height", optional(found["corner_percent_of_height"], "{:.2f} %")),
        ("results with a wrong level whose levels are called uncertain", "{}/{}".format(*found["doubted_wrong"])),
        ("results without one whose levels are called uncertain", "{}/{}".format(*found["doubted_right"])),
        ("vertebrae whose corners are given", f"{found['corners_given']:.1%}"),
        ("main Cobb angle: films in which it is given, mean absolute error there", _main(found.get("main_given"))),
        *angles("given", "all three Cobb angles given"),
        *angles("all", "Cobb angles of all vertebrae that could be measured"),
        ("uncertainty: AUROC for wrong pixels near edges", optional(found["auroc"], "{:.2f}")),
        ("seconds for a film, median", f"{found['seconds_median']:.1f}"),
    ]
    lines = [
        "## Films on their own pixels",
        "",
        "<!-- not run: the data do not come with SpineSegAI -->",
        "```sh",
        command,
        "```",
        "",
        "| | |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows)]) + "\n"


def _main(told: list[float] | None) -> str:
    return "none" if told is None else f"{told[0]}, {told[1]:.1f}°"


def main() -> None:
    parser = argparse.ArgumentParser(description="Films of the spine.")
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--first", type=int, help="only so many films")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path, help="write the figures as Markdown")
    arguments = parser.parse_args()
    predictor = Predictor(arguments.checkpoint)
    cases = read_manifest(arguments.dataset).cases(arguments.split)[: arguments.first]
    manifest = json.loads(arguments.dataset.read_text(encoding="utf-8"))
    entries = {Path(entry["image"]).name: entry for entry in manifest[arguments.split] if isinstance(entry, dict)}
    films = []
    for case in cases:
        films.append(score(predictor, case, entries.get(case.image.name, {})))
        print(json.dumps({k: v for k, v in films[-1].items() if k != "warnings"}), flush=True)
    found = {"summary": summary(films), "films": films}
    print(json.dumps(found["summary"], indent=1, default=float))
    if arguments.table:
        name = Path(arguments.checkpoint).name.removesuffix(".safetensors")
        command = f"python Testing/Benchmarks/films.py {name} RUN/data/xray_aasce/dataset.json"
        arguments.table.write_text(table(found["summary"], command), encoding="utf-8")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
