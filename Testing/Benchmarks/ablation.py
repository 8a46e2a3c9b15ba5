"""Compares variants of a method: the same folds, steps and seed for each, differences case by case.

A row is a variant. It is trained once per fold of a manifest's `training` split and scored on the cases left out, so
that after all folds every case has one score per row. The cases make the differences and their intervals: a bootstrap
over cases says how far the mean difference could be chance of the sample. It does not say what another seed would do.

Killed, it goes on where it was: a fold that is done is a file, a fold half done a training run that resumes. A row
whose settings change is trained anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from SpineSegAILib.anatomy import STRUCTURES
from SpineSegAILib.datasets.manifest import read_manifest
from SpineSegAILib.evaluation import surface_distances
from SpineSegAILib.evaluation.on_grid import ValidationCase, load_validation, structures_found
from SpineSegAILib.files import staged
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import Preprocessing
from SpineSegAILib.inference import Predictor
from SpineSegAILib.inference.sliding_window import volume_evidence
from SpineSegAILib.training.config import DataConfig, OptimizationConfig, TrainingConfig
from SpineSegAILib.training.run import RunDirectory
from SpineSegAILib.training.trainer import TrainingRequest, run_training

FOLDS = 3
TOLERANCE_MM = 1.0
"""Of the surface Dice."""
START_PHANTOMS = 40
"""Of `with_own_starts`."""

METRICS = {
    "raw_dice": "Dice, raw classes",
    "dice": "Dice",
    "vertebra_dice": "vertebrae",
    "disc_dice": "discs",
    "surface_dice": f"surface Dice, {TOLERANCE_MM:g} mm",
    "matched_dice": "any level",
    "levels_right": "levels right",
    "keypoint_mm": "key points, mm",
}
"""Scores of a case and their column titles; Dice is level-strict but for “any level”."""

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        name: short, also the name of its folder.
        method: the method's configuration.
        entries: makes the row's training cases (manifest entries) of the fold's; None leaves them as they are.
        options: run-time options of the method when it is scored; ``allow_label_leak`` hands it the reference.
        resources: `TrainingConfig.resources`.
        data, optimization: what differs from the other rows' settings; nothing should that the comparison is not about.
        trained_as: name of the row with the same training, whose weights are scored; itself if not given.
        view: changes a case before it is scored; None leaves it as it is.
        hints: what the method is told about a case when it is scored. The consistency step is not told.
        start_from: as in `Screening`, for this row alone.
        after: a row whose training in the same fold this one goes on from, where the weights fit.
    """

    name: str
    method: Mapping[str, Any]
    entries: Callable[[Entries], Entries] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    trained_as: str = ""
    view: Callable[[ValidationCase], ValidationCase] | None = None
    hints: Callable[[ValidationCase], Hints] | None = None
    start_from: str | None = None
    after: Row | None = None


@dataclass(frozen=True)
class Comparison:
    """A question: is `row` better than `base`?"""

    row: str
    base: str


@dataclass(frozen=True)
class Screening:
    """What all rows share. Coarse pixels and few channels, so that many steps fit into few minutes; the patch shows the
    whole height of an image, since levels are counted from the sacrum.

    Attributes:
        slices: how many slices in the middle of a case's labelled ones are scored; None for the whole volume.
        start_from: checkpoint whose weights are taken where they fit. Never one that has seen the cases scored.
    """

    steps: int = 300
    batch: int = 4
    learning_rate: float = 2e-3
    pixel_mm: float = 2.5
    patch: tuple[int, ...] = (160, 96)
    slices: int | None = 3
    phantoms: int = 0
    seed: int = 35
    start_from: str | None = None

    def training(self, row: Row, dataset: Path) -> TrainingConfig:
        """The run of a row in a fold."""
        return TrainingConfig(
            name=row.trained_as or row.name,
            method=dict(row.method),
            dataset=str(dataset),
            preprocessing=Preprocessing(pixel_mm=self.pixel_mm),
            data=DataConfig(**{"patch": self.patch, "phantoms": self.phantoms, **row.data}),
            optimization=OptimizationConfig(
                **{
                    "steps": self.steps,
                    "batch": self.batch,
                    "learning_rate": self.learning_rate,
                    "warmup": min(50, self.steps // 10),
                    "ema": 0.99,
                    "save_every": 200,
                    "workers": 0,
                    **row.optimization,
                }
            ),
            seed=self.seed,
            start_from=row.start_from or self.start_from,
            resources=dict(row.resources),
        )


def train_start(
    row: Row,
    manifest: Path,
    sources: Sequence[str],
    output: Path,
    screening: Screening,
    steps: int,
    phantoms: int,
    folder: str = "start",
) -> Path:
    """A checkpoint for `Screening.start_from` that no case to be scored has taught: from phantoms and other sources.

    Args:
        row: whose network it is; the others take what they have in common with it.
        sources: which cases of the manifest's `training` split it may see besides phantoms.
        folder: of the run, in `output`.
    """
    table = json.loads(manifest.read_text(encoding="utf-8"))
    table["training"] = [entry for entry in table["training"] if entry.get("source") in sources]
    table["validation"] = table["test"] = []
    dataset = manifest.with_name("start.json")
    dataset.write_text(json.dumps(table, indent=1), encoding="utf-8")
    longer = replace(screening, steps=steps, phantoms=phantoms, start_from=None)
    config = longer.training(replace(row, data={**row.data, "phantom_share": 0.8}), dataset)
    return _finish(RunDirectory(output / folder), config, output).last


def with_own_starts(
    rows: Sequence[Row], manifest: Path, sources: Sequence[str], output: Path, screening: Screening, steps: int
) -> list[Row]:
    """Rows that each start from a training of their own (`train_start`), with as many phantoms and steps for all."""
    started = []
    for row in rows:
        config = screening.training(row, manifest)
        folder = f"start-{config.name}-{_digest(config.model_dump(mode='json'), steps)}"
        start = train_start(row, manifest, sources, output, screening, steps, START_PHANTOMS, folder)
        started.append(replace(row, start_from=str(start)))
    return started


def write_folds(
    manifest: Path, output: Path, sources: Sequence[str] | None = None, folds: int = FOLDS
) -> list[tuple[Path, Path]]:
    """(training manifest, manifest of the left-out cases) per fold, of the `training` split alone, by patient.

    Args:
        manifest: nothing of its other splits is read.
        output: folder for the files.
        sources: only cases from these are ever left out and scored; the others are always trained on. None for all.
    """
    table = json.loads(manifest.read_text(encoding="utf-8"))
    entries, cases = table["training"], read_manifest(manifest).cases("training")
    output.mkdir(parents=True, exist_ok=True)
    scored = [c.label is not None and (sources is None or c.source in sources) for c in cases]
    patients = list(dict.fromkeys((c.source, c.patient) for c, s in zip(cases, scored, strict=True) if s))
    fold_of = {patient: number % folds for number, patient in enumerate(patients)}
    for entry in entries:
        for key in ("image", "label"):
            if entry.get(key):
                path = (manifest.parent / entry[key]).resolve()
                entry[key] = os.path.relpath(path, output.resolve())
    result = []
    for fold in range(folds):
        out = [s and fold_of[c.source, c.patient] == fold for c, s in zip(cases, scored, strict=True)]
        pair = []
        for name, split, wanted in (("training", "training", False), ("left-out", "validation", True)):
            chosen = [e for e, o in zip(entries, out, strict=True) if o is wanted]
            others = {s: [] for s in ("training", "validation", "test")}
            path = output / f"fold{fold}-{name}.json"
            path.write_text(json.dumps({**table, **others, split: chosen}, indent=1), encoding="utf-8")
            pair.append(path)
        result.append((pair[0], pair[1]))
    return result


def run_rows(
    rows: Sequence[Row], folds: Sequence[tuple[Path, Path]], output: Path, screening: Screening
) -> dict[str, dict[str, Any]]:
    """Train and score what is not done yet, row by row.

    Returns:
        row name → ``{"cases": {case: scores}, "seconds": …, "steps": …, "folds": …, "parameters": …,
        "scoring_seconds": …}``; seconds are of training.
    """
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        merged: dict[str, Any] = {"cases": {}, "seconds": 0.0, "scoring_seconds": 0.0, "folds": len(folds)}
        for number, (training, left_out) in enumerate(folds):
            found = run_fold(row, number, training, left_out, output, screening)
            merged["cases"] |= found["cases"]
            merged["seconds"] += found["seconds"]
            merged["steps"] = found["steps"]  # fewer than asked for, where the time was up
            merged["scoring_seconds"] += found.get("scoring_seconds", 0.0)
            merged["parameters"] = found.get("parameters")
        results[row.name] = merged
        means = ", ".join(f"{k} {v:.4f}" for k, v in _means(merged["cases"]).items())
        print(f"{row.name}: {means}; {merged['seconds']:.0f} s", flush=True)
    return results


def run_fold(
    row: Row, number: int, training: Path, left_out: Path, output: Path, screening: Screening
) -> dict[str, Any]:
    """One training and its scores, taken from the file where it is done."""
    config, entries = _plan(row, number, training, output, screening)
    folder = _place(config, entries, number, output).folder.parent
    scoring = [screening.slices, dict(row.options), *(f.__name__ for f in (row.view, row.hints) if f)]
    done = folder / f"fold{number}-{row.name}-{_digest(scoring)}.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    run = _run(row, number, training, output, screening)
    trained = run.status()
    predictor = Predictor(run.last)
    torch.manual_seed(screening.seed)
    scores = {}
    cases = _left_out(left_out, config.preprocessing)
    started = time.perf_counter()
    for case in cases:
        case = middle_slices(row.view(case) if row.view else case, screening.slices)
        scores[case.name] = score(predictor, case, row.options, row.hints(case) if row.hints else None)
    result = {
        "cases": scores,
        "seconds": float(trained["elapsed"]),
        "steps": int(trained["step"]),
        "parameters": sum(p.numel() for p in predictor.method.parameters()),
        "scoring_seconds": time.perf_counter() - started,
    }
    with staged(done) as (part,):
        Path(part).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _run(row: Row, number: int, training: Path, output: Path, screening: Screening) -> RunDirectory:
    """The finished run of a row in a fold, after the one that it goes on from."""
    config, entries = _plan(row, number, training, output, screening)
    if row.after:
        _run(row.after, number, training, output, screening)
    Path(config.dataset).write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return _finish(_place(config, entries, number, output), config, output)


def _finish(run: RunDirectory, config: TrainingConfig, output: Path) -> RunDirectory:
    """Train, or what is left of it."""
    if run.status().get("state") != "finished":
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        run_training(TrainingRequest(config, run.folder, run.config_file.exists(), cache=output / "cache"))
    return run


def _plan(
    row: Row, number: int, training: Path, output: Path, screening: Screening
) -> tuple[TrainingConfig, dict[str, Any]]:
    """Configuration and manifest of a row's training in a fold."""
    entries = json.loads(training.read_text(encoding="utf-8"))
    if row.entries is not None:
        entries["training"] = row.entries(entries["training"])
    if row.after:
        before = _place(*_plan(row.after, number, training, output, screening), number, output)
        row = replace(row, start_from=str(before.last))
    name = row.trained_as or row.name
    return screening.training(row, training.with_name(f"{training.stem}-{name}.json")), entries


def _place(config: TrainingConfig, entries: Mapping[str, Any], number: int, output: Path) -> RunDirectory:
    """Where a fold is trained; other settings are another place."""
    digest = _digest(config.model_dump(mode="json"), entries["training"])
    return RunDirectory(output / f"{config.name}-{digest}" / f"run{number}")


def _digest(*settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


@cache
def _left_out(manifest: Path, preprocessing: Preprocessing) -> list[ValidationCase]:
    """The cases to be scored, which are the same for all rows."""
    return load_validation(read_manifest(manifest).cases("validation"), preprocessing)


def score(
    predictor: Predictor, case: ValidationCase, options: Mapping[str, Any], hints: Hints | None = None
) -> dict[str, float]:
    """`METRICS` of one case, on the network's grid, averaged over its annotated structures."""
    evidence = volume_evidence(
        predictor.method, case.volume, predictor.device, patch=predictor.patch, hints=hints, options=options,
        reference=case.label if "allow_label_leak" in options else None,
    )  # fmt: skip
    found = structures_found(evidence)
    raw = None
    if evidence.classes is not None:
        raw = np.array([0, *predictor.scheme.ids], np.int16)[evidence.classes.argmax(0)]
    values: dict[str, list[float]] = {}
    for sid in case.annotated:
        reference = case.label == sid
        if not reference.any():
            continue
        strict = dice(reference, found == sid)
        values.setdefault("dice", []).append(strict)
        values.setdefault(f"{STRUCTURES[sid].kind.value}_dice", []).append(strict)
        values.setdefault("surface_dice", []).append(surface_scores(reference, found == sid, evidence.spacing)[0])
        if raw is not None:
            values.setdefault("raw_dice", []).append(dice(reference, raw == sid))
        inside = np.bincount(found[reference].astype(np.int64))
        inside[:1] = 0
        best = int(inside.argmax()) if inside.any() else 0
        values.setdefault("levels_right", []).append(float(best == sid))
        values.setdefault("matched_dice", []).append(dice(reference, found == best) if best else 0.0)
        if sid in evidence.keypoints:
            away = (np.argwhere(reference).mean(0) - evidence.keypoints[sid]) * evidence.spacing
            values.setdefault("keypoint_mm", []).append(float(np.linalg.norm(away[1:])))
    return {name: float(np.mean(v)) for name, v in values.items() if name in METRICS}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks, one of which is not empty."""
    return 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))


def surface_scores(reference: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Surface Dice and HD95 of two masks (D, H, W), of which the reference is not empty.

    Distances are taken inside slices. In a slice that only one of the masks has, its surface counts as missed for the
    surface Dice, and has no distance; HD95 is NaN where no slice has both.
    """
    ways: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    total = 0
    for ours, theirs in zip(reference, predicted, strict=True):
        for way, distances in zip(ways, surface_distances(ours, theirs, spacing[1:]), strict=True):
            way.append(distances)
        for mask in (ours, theirs):
            total += surface_distances(mask, mask, spacing[1:])[0].size
    forth, back = (np.concatenate(way) for way in ways)
    close = int((forth <= TOLERANCE_MM).sum()) + int((back <= TOLERANCE_MM).sum())
    hd95 = max(np.percentile(forth, 95), np.percentile(back, 95)) if forth.size else math.nan
    return close / total, float(hd95)


def middle_slices(case: ValidationCase, count: int | None) -> ValidationCase:
    """The slices in the middle of the labelled ones."""
    labelled = np.flatnonzero((case.label > 0).any((1, 2)))
    if count is None or len(case.label) <= count or not len(labelled):
        return case
    first = int(np.clip((labelled[0] + labelled[-1] + 1 - count) // 2, 0, len(case.label) - count))
    chosen = slice(first, first + count)
    volume = replace(case.volume, array=np.ascontiguousarray(case.volume.array[chosen]))
    return replace(case, volume=volume, label=case.label[chosen])


# --- what it says ------------------------------------------------------------------------------------------------


def paired(
    results: Mapping[str, Mapping[str, Any]], comparison: Comparison, metric: str, *, resamples: int = 10000
) -> dict[str, Any]:
    """Mean difference row − base over the cases that both have, and its 95 % bootstrap interval.

    “Better” and “worse” respect that less is better for distances.
    """
    row, base = (results[name]["cases"] for name in (comparison.row, comparison.base))
    names = sorted(n for n in row if metric in row[n] and metric in base.get(n, {}))
    differences = [row[n][metric] - base[n][metric] for n in names]
    found = interval(differences, less_is_better=metric.endswith("_mm"), resamples=resamples)
    return {"row": comparison.row, "base": comparison.base, "metric": metric, **found}


def interval(differences: Sequence[float], *, less_is_better: bool = False, resamples: int = 10000) -> dict[str, Any]:
    """Mean of the cases' differences, its 95 % bootstrap interval, and a verdict.

    The verdict is “undecided” unless the interval leaves zero out, and “tie” where no case differs at all.
    """
    values = np.asarray(differences, float)
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    verdict = "undecided"
    if not values.any():
        verdict = "tie"
    elif low > 0 or high < 0:
        verdict = "better" if bool(low + high > 0) != less_is_better else "worse"
    return {
        "cases": len(values), "difference": float(values.mean()), "low": float(low), "high": float(high),
        "verdict": verdict,
    }  # fmt: skip


def screening_head(command: str, steps: int) -> str:
    """What stands above the tables of a method's own screening, whose rows all start from one network.

    Args:
        command: script and arguments, without the steps and the report.
        steps: of each training.
    """
    name = command.split()[0].removeprefix("ablate_").removesuffix(".py").replace("_", "-")
    return (
        f"## Screening of the parts\n\n`python Testing/Benchmarks/{command} --steps {steps} --report "
        f"Testing/Benchmarks/RESULTS-{name}`\n\n"
        f"Small networks on pixels of {Screening.pixel_mm:g} mm, {steps} steps from a start that no scored case has "
        "taught; three folds of the\n`training` split, the middle slices of the cases left out. So the figures compare "
        "rows; they are not what the checkpoint\nreaches.\n\n"
    )


def run_and_report(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    deciding: Sequence[str],
    folds: Sequence[tuple[Path, Path]],
    output: Path,
    screening: Screening,
    path: Path | None,
    *,
    seeds: Sequence[int] = (),
    head: str = "",
) -> None:
    """Run the rows, print the tables of the comparisons that they allow, and write them beside `path` (.md, .json).

    Args:
        seeds: all rows with each of these, whose scores are averaged case by case; the screening's own if empty.
        head: what stands above the tables.
    """
    every = [run_rows(rows, folds, output, replace(screening, seed=s)) for s in seeds or (screening.seed,)]
    results = {row.name: merge_seeds([found[row.name] for found in every]) for row in rows}
    found = report(results, [c for c in comparisons if {c.row, c.base} <= results.keys()], deciding)
    tables = head + markdown(found)
    print(tables)
    if path:
        path.with_suffix(".md").write_text(tables, encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def merge_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row out of the same one with several seeds: every case's scores are averaged, the seconds added."""
    cases = {
        name: {m: float(np.mean([f["cases"][name][m] for f in found if m in f["cases"][name]])) for m in scores}
        for name, scores in found[0]["cases"].items()
    }
    seconds = {key: sum(f.get(key, 0.0) for f in found) for key in ("seconds", "scoring_seconds")}
    by_seed = [_means(f["cases"]).get("dice") for f in found]
    return {**found[0], "cases": cases, **seconds, "seeds": len(found), "dice_by_seed": by_seed}


def report(
    results: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Comparison], metrics: Sequence[str]
) -> dict[str, Any]:
    """Everything that was found, JSON-able."""
    return {
        "rows": {n: {**r, "means": _means(r["cases"])} for n, r in results.items()},
        "comparisons": [paired(results, c, m) for c in comparisons for m in metrics],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables: the rows' means, and the differences with their intervals."""
    shown = [m for m in METRICS if any(m in r["means"] for r in found["rows"].values())]
    costs = [c for c in ("parameters", "scoring_seconds") if any(r.get(c) for r in found["rows"].values())]
    titles = {"parameters": "parameters, M", "scoring_seconds": "s per case"}
    several = any(r.get("seeds", 1) > 1 for r in found["rows"].values())
    columns = [*(METRICS[m] for m in shown), *(["Dice by seed"] if several else []), *(titles[c] for c in costs)]
    lines = [
        f"| row | cases | {' | '.join(columns)} | steps | training |",
        f"|---|---|{'---|' * len(columns)}---|---|",
    ]
    for name, row in found["rows"].items():
        numbers = [_number(row["means"].get(m), 2 if m.endswith("_mm") else 3) for m in shown]
        numbers += [", ".join(_number(d, 3) for d in row.get("dice_by_seed", ()))] if several else []
        seeds, scored = row.get("seeds", 1), len(row["cases"])
        by = {"parameters": 1e6, "scoring_seconds": scored * seeds}
        numbers += [_number(row[c] / by[c] if row.get(c) else None, 2) for c in costs]
        folds = row.get("folds", FOLDS)
        trainings = f"{seeds} × {folds}" if seeds > 1 else str(folds)
        lines.append(
            f"| {name} | {scored} | {' | '.join(numbers)} | {trainings} × {row['steps']} "
            f"| {row['seconds'] / 60:.1f} min |"
        )
    lines += ["", "| difference | in | cases | mean | 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    for c in found["comparisons"]:
        digits = 2 if c["metric"].endswith("_mm") else 3
        interval = f"{c['low']:+.{digits}f} to {c['high']:+.{digits}f}"
        lines.append(
            f"| {c['row']} − {c['base']} | {METRICS[c['metric']]} | {c['cases']} | {c['difference']:+.{digits}f} "
            f"| {interval} | {c['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def _means(cases: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the cases that have the score."""
    found = {m: [c[m] for c in cases.values() if m in c] for m in METRICS}
    return {m: float(np.mean(v)) for m, v in found.items() if v}


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
