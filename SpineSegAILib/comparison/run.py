"""Trains and scores what a comparison names, entry by entry. What is done is a file, from which it resumes."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoints import find_checkpoint
from ..datasets.manifest import Case, learned_from, read_manifest
from ..errors import Cancelled, ConfigError, OutputError, SpineSegAIError, TrainingError
from ..evaluation import write_report
from ..evaluation.page import write_page
from ..evaluation.summary import merge_reports
from ..evaluation.worst import WorstCases
from ..files import read_json, real_path
from .config import ARG_MAX, ENTRY_PREFIX, ComparisonConfig
from .folds import Fold, with_supervision, write_folds, write_never_scored
from .nnunet.part import nnunet_part
from .parts import (
    Part,
    TrainedPart,
    Work,
    cases_digest,
    cases_of,
    content,
    digest,
    file_digest,
    slug,
    taken_part,
    training_of,
)


def run_comparison(config: ComparisonConfig, work: Work) -> list[dict[str, Any]]:
    """Does what is not done yet, and returns everything that is.

    An entry that fails stops none of the others, save those that start from it; `Work.failed` says why. All entries are
    looked at before the first one is trained, so that a mistake in the last one is found at once.

    Returns:
        One document per entry and seed, in the configuration's order: ``name``, ``seed``, ``checkpoint`` (the file that
        was scored), ``report`` (of `evaluate_dataset`) and what else its row shows.

    Raises:
        ConfigError, DatasetError, CheckpointError, TrainingError: from what the configuration names; nothing is
            written before it has been looked at.
        MissingPackageError: an entry needs what is not installed.
        OutputError: the folder cannot be made.
    """
    scored = cases_of(Path(config.dataset), config.split)
    names = {entry.name for entry in config.entries}
    for name in (*work.only, *work.without):
        if name not in names:
            known = ", ".join(entry.name for entry in config.entries)
            raise ConfigError(f"There is no entry “{name}”.", f"There are: {known}.")
    try:
        work.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {work.output} cannot be made: {error.strerror}.", "Choose another.") from None
    parts = plan(config, work)
    wanted = _wanted(config, work)
    reports = {id(p): p.folder / f"report-{digest(*_scoring(p, config, work))}.json" for p in parts}
    open_parts = [p for p in parts if not (p.is_trained and (reports[id(p)].exists() or not p.entry.shown))]
    for part in open_parts:
        if part.entry.name in wanted:
            part.check()
    done: dict[tuple[str, int | None], list[tuple[Part, Path]]] = {}
    for number, part in enumerate(parts, start=1):
        if part in open_parts:
            if part.entry.name not in wanted:
                continue
            work.say(f"{number} of {len(parts)}: {part.label}")
            start = part.entry.start_from.removeprefix(ENTRY_PREFIX)
            try:
                if start in {p.entry.name for p in parts if p.label in work.failed}:
                    raise TrainingError(f"“{start}”, which it starts from, has failed.")
                part.folder.mkdir(parents=True, exist_ok=True)
                if not part.is_trained:
                    part.train(work)
                if part.entry.shown:
                    _score(part, config, work, reports[id(part)])
            except Cancelled:
                raise
            except Exception as error:
                foreseen = isinstance(error, (SpineSegAIError, OSError))
                work.failed[part.label] = str(error) if foreseen else f"{type(error).__name__}: {error}"
                work.say(f"{part.label} failed: {work.failed[part.label]}")
                continue
        if part.entry.shown:
            done.setdefault((part.entry.name, part.seed), []).append((part, reports[id(part)]))
    folds = config.folds if config.folds and not work.rehearse else 1
    found = [_document(of, config, scored, work) for of in done.values() if len(of) == folds]
    order = [entry.name for entry in config.entries]
    return sorted(found, key=lambda document: order.index(document["name"]))


def describe(config: ComparisonConfig, work: Work, documents: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What was asked for, and where it ran, for the table's head.

    Args:
        documents: of `run_comparison`; some may have been scored by an earlier version.
    """
    versions = {document["report"]["library"] for document in documents} or {__version__}
    cuda = torch.cuda.is_available() and work.device != "cpu"
    return {
        "title": config.title,
        "about": config.about,
        "dataset": read_manifest(config.dataset).name,
        "split": config.split,
        "folds": config.folds,
        "budget": config.budget.model_dump(),
        "seeds": list(config.seeds),
        "weights": config.taken_weights,
        "grid": config.grid,
        "rehearsal": work.rehearse,
        "failed": dict(work.failed),
        "library": ", ".join(sorted(versions)),
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def plan(config: ComparisonConfig, work: Work) -> list[Part]:
    """Every entry with every seed in every fold; all entries of a seed before the next seed, so that a table is there
    early."""
    for file in config.resources.values():
        file_digest(Path(file))  # a mistyped one is said, whoever needs it
    made: list[Part] = []
    folders: dict[tuple[str, int, int], Path] = {}  # two rows of the same training, scored otherwise, share it
    data = work.output / "data"
    folds: list[Fold | None] = [None]
    if config.folds:
        folds = list(write_folds(Path(config.dataset), config.split, config.folds, config.scored_sources, data))
        folds = folds[:1] if work.rehearse else folds
    for seed in config.seeds[:1] if work.rehearse else config.seeds:
        for entry in config.entries:
            if entry.checkpoint:
                if seed == config.seeds[0]:
                    made.append(taken_part(entry, work.output))
                continue
            for fold in folds if not entry.once else [None]:
                manifest = Path(config.dataset)
                if fold is not None:
                    manifest = with_supervision(fold.training, entry.supervision, data)
                elif config.folds:
                    manifest = write_never_scored(manifest, config.split, config.scored_sources, data)
                elif entry.supervision != "full":
                    manifest = with_supervision(manifest, entry.supervision, data)
                number = -1 if fold is None else fold.number
                own = f"seed{seed}" if fold is None else f"seed{seed}-fold{number}"
                if entry.program:
                    made.append(nnunet_part(entry, seed, fold, config, work, manifest, own))
                    continue
                training = training_of(entry, seed, config, manifest, work.rehearse)
                mine = (p for p in made if p.seed in (seed, None) and (p.fold is None or p.fold == fold))
                start, origin = {f"{ENTRY_PREFIX}{p.entry.name}": p for p in mine}.get(entry.start_from), ""
                if entry.start_from:
                    path = find_checkpoint(entry.start_from).path if start is None else start.weights
                    origin = file_digest(path) if start is None else start.experiment
                    training = training.model_copy(update={"start_from": str(real_path(path))})
                told = training.model_dump(mode="json", exclude={"name", "seed", "dataset", "start_from", "resources"})
                key = digest(told, content(training), origin)
                folder = folders.setdefault((key, seed, number), work.output / f"{slug(entry.name)}-{key}" / own)
                made.append(TrainedPart(entry, seed, folder, fold, training=training))
    return made


def _wanted(config: ComparisonConfig, work: Work) -> set[str]:
    """The entries asked for, and those that they start from; all, if none is named. A name stands for the row of the
    same training that is scored by the network's own classes, too."""
    by_name = {entry.name: entry for entry in config.entries}

    def rows(names: Iterable[str]) -> list[str]:
        return [row for name in names for row in (name, f"{name}, {ARG_MAX}") if row in by_name]

    wanted: set[str] = set()
    without = set(rows(work.without))
    ahead = [name for name in rows(work.only) or by_name if name not in without]
    while ahead:
        name = ahead.pop()
        wanted.add(name)
        start = by_name[name].start_from
        if start.startswith(ENTRY_PREFIX):
            ahead.append(start.removeprefix(ENTRY_PREFIX))
    return wanted


def _score(part: Part, config: ComparisonConfig, work: Work, path: Path) -> None:
    worst = WorstCases(1 if work.rehearse else work.worst, config.variants[0])
    report = part.segment_and_score(config, work, worst)
    write_page(report, path.with_suffix(".html"), worst.drawn())
    write_report(report, path)  # last: it says that all is done


def _scoring(part: Part, config: ComparisonConfig, work: Work) -> tuple[Any, ...]:
    """What the scores depend on, besides the weights."""
    entry = part.entry
    told = entry.options, entry.allow_label_leak, entry.hints, part.scored_with(config), work.rehearse
    cases = cases_digest(part.scored_manifest(config), [part.scored_split(config)])
    boxes = file_digest(find_checkpoint(None).path) if entry.hints == "found" else ""
    return config.split, config.variants, config.grid, *told, cases, boxes


def _document(
    done: Sequence[tuple[Part, Path]], config: ComparisonConfig, scored: Sequence[Case], work: Work
) -> dict[str, Any]:
    """What a row shows of an entry with one seed; the folds of a cross-validation together."""
    part, _ = done[0]
    told = [p.document(config) for p, _ in done]
    reports = [read_json(path, OutputError) for _, path in done]
    seen: set[str] = set()
    for (p, _), about in zip(done, told, strict=True):
        own = scored if p.fold is None else cases_of(p.scored_manifest(config), p.scored_split(config))
        seen |= {case.name for case in learned_from(own, about.pop("trained_on"))}
    hours = [about["hours"] for about in told]
    return {
        "name": part.entry.name,
        "paper": part.entry.paper_row,
        "seed": part.seed,
        "taken": part.entry.checkpoint,
        "named_by_us": part.entry.is_named_by_us,
        **told[0],
        "hours": None if hours[0] is None else sum(hours),
        "seen": sorted(seen),
        "pages": [path.with_suffix(".html").relative_to(work.output).as_posix() for _, path in done],
        "report": merge_reports(reports) if len(reports) > 1 else reports[0],
    }
