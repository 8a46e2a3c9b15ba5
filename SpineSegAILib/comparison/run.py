"""Trains and scores what a comparison names, entry by entry. What is done is a file; killed, it goes on from there."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..checkpoints import CheckpointInfo, find_checkpoint, read_header
from ..datasets.manifest import read_manifest
from ..errors import ConfigError, OutputError
from ..evaluation import evaluate_dataset, write_report
from ..evaluation.page import write_page
from ..evaluation.summary import merge_reports
from ..evaluation.worst import WorstCases
from ..files import read_json
from ..inference import Predictor
from ..methods.catalog import make_config
from ..training.config import TrainingConfig, configure, fill_in, flatten
from ..training.request import TrainingRequest
from ..training.run import RunDirectory
from ..training.trainer import run_training
from .config import ENTRY_PREFIX, ComparisonConfig, Entry
from .folds import Fold, with_supervision, write_folds, write_never_scored
from .hints import visible_levels

Say = Callable[[str], None]
_ENDLESS = 10_000_000  # steps of a run that ends by its hours
_REHEARSED_CASES = 2


@dataclass(frozen=True)
class Work:
    """How a comparison is run.

    Attributes:
        output: folder of the entries' runs and reports.
        device: see `inference.choose_device`.
        only: names of entries; the others are taken as far as they are done.
        rehearse: every entry in its smallest preset for two steps, on two cases: whether all of it works.
        worst: how many worst cases each entry's page shows.
        train: trains, or resumes; replaced by the shell, which stops a run on Ctrl-C.
        say: told what is being done.
    """

    output: Path
    device: str = "auto"
    only: Sequence[str] = ()
    rehearse: bool = False
    worst: int = 3
    train: Callable[[TrainingRequest], Any] = run_training
    say: Say = lambda sentence: None


@dataclass(frozen=True)
class _Part:
    """One entry with one seed.

    Attributes:
        entry: the row.
        seed: of the training; None for a checkpoint that is taken.
        fold: of a cross-validation; None without one, and for what is trained once for all folds.
        folder: of its files.
        config: of the training; None for a checkpoint that is taken.
        info: the checkpoint that is taken.
    """

    entry: Entry
    seed: int | None
    folder: Path
    fold: Fold | None = None
    config: TrainingConfig | None = None
    info: CheckpointInfo | None = None

    @property
    def run(self) -> RunDirectory:
        """Its training."""
        return RunDirectory(self.folder / "run")

    @property
    def experiment(self) -> str:
        """What was trained, whatever the seed, or taken."""
        return (self.folder if self.seed is None else self.folder.parent).name

    @property
    def label(self) -> str:
        """What to call it while it is done."""
        words = [self.entry.name]
        words += [] if self.seed is None else [f"seed {self.seed}"]
        words += [] if self.fold is None else [f"fold {self.fold.number + 1}"]
        return ", ".join(words)

    @property
    def weights(self) -> Path:
        """What another entry may start from."""
        return self.run.last if self.info is None else self.info.path


def run_comparison(config: ComparisonConfig, work: Work) -> list[dict[str, Any]]:
    """Does what is not done yet, and returns everything that is.

    All entries are looked at before the first one is trained, so that a mistake in the last one is found at once.

    Returns:
        One document per entry and seed, in the configuration's order: ``name``, ``seed``, ``checkpoint`` (the file that
        was scored), ``report`` (of `evaluate_dataset`) and what else its row shows.

    Raises:
        ConfigError, DatasetError, CheckpointError, TrainingError: from what the configuration names; nothing is
            written before it has been looked at.
        OutputError: the folder cannot be made.
    """
    cases = [c for c in read_manifest(config.dataset).cases(config.split) if c.label is not None]
    unknown = set(work.only) - {entry.name for entry in config.entries}
    if unknown:
        names = ", ".join(entry.name for entry in config.entries)
        raise ConfigError(f"There is no entry “{sorted(unknown)[0]}”.", f"There are: {names}.")
    try:
        work.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {work.output} cannot be made: {error.strerror}.", "Choose another.") from None
    parts = _parts(config, work)
    wanted = _with_starts(config, work.only)
    scored = {case.name for case in cases}
    done: dict[tuple[str, int | None], list[tuple[_Part, Path]]] = {}
    for number, part in enumerate(parts, start=1):
        report_file = part.folder / f"report-{_digest(*_scoring(part, config, work))}.json"
        result = report_file if part.entry.shown else part.run.last
        finished = part.config is None or part.run.status().get("state") == "finished"
        if not (result.exists() and finished):
            if part.entry.name not in wanted:
                continue
            work.say(f"{number} of {len(parts)}: {part.label}")
            part.folder.mkdir(parents=True, exist_ok=True)
            _train(part, work)
            if part.entry.shown:
                _score(part, config, work, report_file)
        if part.entry.shown:
            done.setdefault((part.entry.name, part.seed), []).append((part, report_file))
    folds = config.folds if config.folds and not work.rehearse else 1
    found = [_document(of, config, scored, work) for of in done.values() if len(of) == folds]
    order = [entry.name for entry in config.entries]
    return sorted(found, key=lambda document: order.index(document["name"]))


def describe(config: ComparisonConfig, work: Work) -> dict[str, Any]:
    """What was asked for, and where it ran, for the table's head."""
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
        "rehearsal": work.rehearse,
        "library": __version__,
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


# --- what is to be done ----------------------------------------------------------------------------------------------


def _parts(config: ComparisonConfig, work: Work) -> list[_Part]:
    """Every entry with every seed in every fold; all entries of a seed before the next seed, so that a table is there
    early."""
    made: list[_Part] = []
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
                    info = find_checkpoint(entry.checkpoint)
                    name = f"{_slug(entry.name)}-{_file_digest(info.path)}"
                    made.append(_Part(entry, None, work.output / name, info=info))
                continue
            for fold in folds if not entry.once else [None]:
                manifest = Path(config.dataset)
                if fold is not None:
                    manifest = with_supervision(fold.training, entry.supervision, data)
                elif config.folds:
                    manifest = write_never_scored(manifest, config.split, config.scored_sources, data)
                elif entry.supervision != "full":
                    manifest = with_supervision(manifest, entry.supervision, data)
                training = _training(entry, seed, config, manifest, work.rehearse)
                mine = (p for p in made if p.seed in (seed, None) and (p.fold is None or p.fold == fold))
                start, origin = {f"{ENTRY_PREFIX}{p.entry.name}": p for p in mine}.get(entry.start_from), ""
                if entry.start_from:
                    path = find_checkpoint(entry.start_from).path if start is None else start.weights
                    origin = _file_digest(path) if start is None else start.experiment
                    training = training.model_copy(update={"start_from": str(path.resolve())})
                told = training.model_dump(mode="json", exclude={"name", "seed", "dataset", "start_from", "resources"})
                digest = _digest(told, _content(training), origin)
                number = -1 if fold is None else fold.number
                own = work.output / f"{_slug(entry.name)}-{digest}" / f"seed{seed}"
                if fold is not None:
                    own = own.with_name(f"seed{seed}-fold{number}")
                folder = folders.setdefault((digest, seed, number), own)
                made.append(_Part(entry, seed, folder, fold, config=training))
    return made


def _training(entry: Entry, seed: int, config: ComparisonConfig, manifest: Path, rehearse: bool) -> TrainingConfig:
    """The run of an entry, at its share of the budget."""
    changes = fill_in({**dict(flatten(config.set)), **dict(flatten(entry.set))}, config.resources)
    if config.budget.steps:
        changes["optimization.steps"] = max(round(config.budget.steps * entry.share), 1)
    if config.budget.hours:
        changes["optimization.hours"] = config.budget.hours * entry.share
        if not config.budget.steps:
            changes["optimization.steps"] = _ENDLESS
    method = {key.removeprefix("method."): value for key, value in changes.items() if key.startswith("method.")}
    preset = entry.preset
    if rehearse:
        preset = "tiny"
        method = {key: value for key, value in method.items() if key not in ("widths", "window", "text_encoder")}
        dims = make_config(entry.method, preset).dims
        patch = [64, 64] if dims == 2 else [8, 32, 32]
        if entry.method == "unetr":
            method["window"] = patch
        changes = {key: value for key, value in changes.items() if key.startswith(("method.", "preprocessing."))}
        changes |= {
            "optimization.steps": 2, "optimization.batch": 2, "optimization.warmup": 0, "optimization.workers": 0,
            "data.patch": patch, "preprocessing.pixel_mm": 4.0,
        }  # fmt: skip
    made = make_config(entry.method, preset, **method)
    training = configure(made, str(manifest), name=_slug(entry.name), changes=changes.items())
    return training.model_copy(update={"seed": seed, "resources": {**training.resources, **config.resources}})


def _with_starts(config: ComparisonConfig, only: Sequence[str]) -> set[str]:
    """The entries asked for, and those that they start from; all, if none is named."""
    by_name = {entry.name: entry for entry in config.entries}
    wanted: set[str] = set()
    ahead = list(only) or list(by_name)
    while ahead:
        name = ahead.pop()
        wanted.add(name)
        start = by_name[name].start_from
        if start.startswith(ENTRY_PREFIX):
            ahead.append(start.removeprefix(ENTRY_PREFIX))
    return wanted


def _train(part: _Part, work: Work) -> None:
    if part.config is None or part.run.status().get("state") == "finished":
        return
    resume = part.run.config_file.exists()
    device = _training_device(work.device)
    work.train(TrainingRequest(part.config, part.run.folder, resume, device, work.output / "cache"))
    if part.run.status().get("state") != "finished":
        raise KeyboardInterrupt


def _training_device(device: str) -> str:
    return device.split(":")[0] if device.split(":")[0] in ("cpu", "cuda") else "auto"


def _score(part: _Part, config: ComparisonConfig, work: Work, path: Path) -> None:
    predictor = Predictor(_checkpoint(part, config), device=work.device)
    torch.manual_seed(part.seed or 0)
    options = dict(part.entry.options)
    if part.entry.allow_label_leak:
        options["allow_label_leak"] = True
    worst = WorstCases(1 if work.rehearse else work.worst, config.variants[0])
    report = evaluate_dataset(
        config.dataset if part.fold is None else part.fold.left_out,
        config.split if part.fold is None else "validation",
        predictor,
        variants=config.variants,
        about={"checkpoint": part.entry.name, "method": predictor.info.method, "device": str(predictor.device)},
        options=options,
        label_leak=part.entry.allow_label_leak,
        hints=visible_levels if part.entry.hints == "visible" else None,
        trained_on=predictor.info.trained_on,
        watch=worst,
        limit=_REHEARSED_CASES if work.rehearse else None,
        progress=lambda fraction, sentence: work.say(f"{part.label}: {sentence}"),
    )
    report["weights"] = "" if part.info else predictor.info.name  # a run that was not validated has no best ones
    report["parameters"] = sum(p.numel() for p in predictor.method.parameters())
    write_page(report, path.with_suffix(".html"), worst.drawn())
    write_report(report, path)  # last: it says that all is done


def _checkpoint(part: _Part, config: ComparisonConfig) -> CheckpointInfo:
    if part.info is not None:
        return part.info
    run = part.run
    return read_header(run.best if config.taken_weights == "best" and run.best.exists() else run.last)


def _document(
    done: Sequence[tuple[_Part, Path]], config: ComparisonConfig, scored: set[str], work: Work
) -> dict[str, Any]:
    """What a row shows of an entry with one seed; the folds of a cross-validation together."""
    part, _ = done[0]
    infos = [_checkpoint(p, config) for p, _ in done]
    trainings = [info.metadata.get("training", {}) for info in infos]
    reports = [read_json(path, OutputError) for _, path in done]
    seen = {name for (p, _), info in zip(done, infos, strict=True) for name in _left_out(p, scored) & info.trained_on}
    return {
        "name": part.entry.name,
        "paper": part.entry.paper_row,
        "seed": part.seed,
        "checkpoint": str(infos[0].path),
        "method": infos[0].method,
        "preset": part.entry.preset,
        "taken": part.entry.checkpoint,
        "steps": trainings[0].get("steps"),
        "hours": sum(t.get("hours") or 0.0 for t in trainings) if trainings[0] else None,
        "seen": sorted(seen),
        "pages": [path.with_suffix(".html").relative_to(work.output).as_posix() for _, path in done],
        "report": merge_reports(reports) if len(reports) > 1 else reports[0],
    }


def _left_out(part: _Part, scored: set[str]) -> set[str]:
    """Names of the cases that a part scores."""
    if part.fold is None:
        return scored
    return {case.name for case in read_manifest(part.fold.left_out).cases("validation")}


# --- what makes an experiment the same -------------------------------------------------------------------------------


def _scoring(part: _Part, config: ComparisonConfig, work: Work) -> tuple[Any, ...]:
    """What the scores depend on, besides the weights."""
    entry = part.entry
    weights = config.taken_weights if part.config else ""
    told = entry.allow_label_leak, entry.hints
    cases = _listed(config.dataset if part.fold is None else str(part.fold.left_out))
    return config.split, config.variants, entry.options, *told, weights, work.rehearse, cases


def _content(training: TrainingConfig) -> list[str]:
    """The data set's list of cases, and the files to learn from."""
    return [_listed(training.dataset), *(_file_digest(Path(f)) for _, f in sorted(training.resources.items()))]


def _listed(dataset: str) -> str:
    return _file_digest(Path(dataset))


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    except FileNotFoundError:
        raise ConfigError(
            f"The file {path} does not exist.", "Correct the path, or give --resource NAME=FILE."
        ) from None


def _digest(*settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:10]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "entry"
