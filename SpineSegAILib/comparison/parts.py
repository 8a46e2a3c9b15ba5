"""What a comparison has to do, part by part: an entry with one seed in one fold, trained here or taken as it is."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import CheckpointInfo, find_checkpoint, read_header
from ..datasets.manifest import Case, read_manifest
from ..errors import ConfigError
from ..evaluation import evaluate_dataset
from ..evaluation.dataset import Segmenter
from ..evaluation.worst import WorstCases
from ..files import known_checksum
from ..inference import Predictor
from ..methods.catalog import make_config, method_info
from ..training.config import AugmentationConfig, TrainingConfig, configure, fill_in, flatten
from ..training.request import TrainingRequest
from ..training.run import RunDirectory
from ..training.trainer import run_training
from .config import ComparisonConfig, Entry
from .folds import Fold
from .hints import hint_maker

Say = Callable[[str], None]
REHEARSED_CASES = 2
_ENDLESS = 10_000_000  # steps of a run that ends by its hours


@dataclass(frozen=True)
class Work:
    """How a comparison is run.

    Attributes:
        output: folder of the entries' runs and reports.
        device: see `inference.choose_device`.
        only: names of entries; the others are taken as far as they are done.
        without: names of entries that are omitted.
        rehearse: every entry in its smallest preset for two steps, on two cases: whether all of it works.
        worst: how many worst cases each entry's page shows.
        train: trains, or resumes; replaced by the shell, which stops a run on Ctrl-C.
        say: told what is being done.
        failed: what could not be done → why.
    """

    output: Path
    device: str = "auto"
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    rehearse: bool = False
    worst: int = 3
    train: Callable[[TrainingRequest], Any] = run_training
    say: Say = lambda sentence: None
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One entry with one seed.

    Attributes:
        entry: the row.
        seed: of the training; None for a checkpoint that is taken.
        folder: of its files.
        fold: of a cross-validation; None without one, and for what is trained once for all folds.
    """

    entry: Entry
    seed: int | None
    folder: Path
    fold: Fold | None = None

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
        raise NotImplementedError

    @property
    def is_trained(self) -> bool:
        """Whether nothing is left to be trained."""
        raise NotImplementedError

    def check(self) -> None:
        """What can be known to be missing before hours of work.

        Raises:
            MissingPackageError: a package that the entry needs is not installed.
        """

    def train(self, work: Work) -> None:
        """Trains, or goes on with it."""
        raise NotImplementedError

    def segment_and_score(self, config: ComparisonConfig, work: Work, worst: WorstCases) -> dict[str, Any]:
        """The report of `evaluate_dataset`, with ``weights`` (which were scored, where that is said) and
        ``parameters``."""
        raise NotImplementedError

    def scored_with(self, config: ComparisonConfig) -> Any:
        """What of the part the scores depend on besides its training and its entry."""
        return None

    def document(self, config: ComparisonConfig) -> dict[str, Any]:
        """``checkpoint`` (the file that was scored), ``method``, ``preset``, ``steps``, ``hours`` and ``cases``
        (names of those that it has learned from)."""
        raise NotImplementedError

    def evaluated(
        self, segmenter: Segmenter, config: ComparisonConfig, work: Work, worst: WorstCases, **more: Any
    ) -> dict[str, Any]:
        """`evaluate_dataset` of the part's cases.

        Args:
            more: arguments that are the part's own.
        """
        return evaluate_dataset(
            self.scored_manifest(config),
            self.scored_split(config),
            segmenter,
            variants=config.variants,
            grid=config.grid,
            watch=worst,
            limit=REHEARSED_CASES if work.rehearse else None,
            progress=lambda fraction, sentence: work.say(f"{self.label}: {sentence}"),
            **more,
        )

    def scored_manifest(self, config: ComparisonConfig) -> Path:
        """Where the cases are that it is scored on."""
        return Path(config.dataset) if self.fold is None else self.fold.left_out

    def scored_split(self, config: ComparisonConfig) -> str:
        """Their split there."""
        return config.split if self.fold is None else "validation"


@dataclass(frozen=True)
class _CheckpointPart(Part):
    """What leaves a checkpoint of ours."""

    def checkpoint(self, config: ComparisonConfig) -> CheckpointInfo:
        """The one that is scored."""
        raise NotImplementedError

    def segment_and_score(self, config: ComparisonConfig, work: Work, worst: WorstCases) -> dict[str, Any]:
        predictor = Predictor(self.checkpoint(config), device=work.device)
        torch.manual_seed(self.seed or 0)
        options = dict(self.entry.options)
        if self.entry.allow_label_leak:
            options["allow_label_leak"] = True
        report = self.evaluated(
            predictor,
            config,
            work,
            worst,
            about={
                "checkpoint": self.entry.name, "method": predictor.info.method, "device": str(predictor.device),
            },
            options=options,
            label_leak=self.entry.allow_label_leak,
            hints=hint_maker(self.entry.hints, work.device),
            trained_on=predictor.info.trained_on,
        )  # fmt: skip
        report["weights"] = "" if self.seed is None else predictor.info.name  # not validated, a run has no best ones
        report["parameters"] = sum(p.numel() for p in predictor.method.parameters())
        return report

    def document(self, config: ComparisonConfig) -> dict[str, Any]:
        info = self.checkpoint(config)
        training = info.metadata.get("training", {})
        return {
            "checkpoint": str(info.path),
            "method": info.method,
            "preset": self.entry.preset,
            "steps": training.get("steps"),
            "hours": (training.get("hours") or 0.0) if training else None,
            "trained_on": info.trained_on,
        }


@dataclass(frozen=True, kw_only=True)
class TakenPart(_CheckpointPart):
    """A checkpoint that is there.

    Attributes:
        info: it.
    """

    info: CheckpointInfo

    @property
    def weights(self) -> Path:
        return self.info.path

    @property
    def is_trained(self) -> bool:
        return True

    def train(self, work: Work) -> None:
        return None

    def checkpoint(self, config: ComparisonConfig) -> CheckpointInfo:
        return self.info


@dataclass(frozen=True, kw_only=True)
class TrainedPart(_CheckpointPart):
    """A method that is trained here.

    Attributes:
        training: its configuration.
    """

    training: TrainingConfig

    @property
    def run(self) -> RunDirectory:
        """Its training."""
        return RunDirectory(self.folder / "run")

    @property
    def weights(self) -> Path:
        return self.run.last

    @property
    def is_trained(self) -> bool:
        return self.run.last.exists() and self.run.status().get("state") == "finished"

    def check(self) -> None:
        method_info(self.entry.method).require_packages()

    def train(self, work: Work) -> None:
        resume = self.run.config_file.exists()
        device = work.device.split(":")[0]
        device = device if device in ("cpu", "cuda") else "auto"
        work.train(TrainingRequest(self.training, self.run.folder, resume, device, work.output / "cache"))
        if self.run.status().get("state") != "finished":
            raise KeyboardInterrupt

    def scored_with(self, config: ComparisonConfig) -> Any:
        return config.taken_weights

    def checkpoint(self, config: ComparisonConfig) -> CheckpointInfo:
        best = config.taken_weights == "best" and self.run.best.exists()
        return read_header(self.run.best if best else self.run.last)


def taken_part(entry: Entry, output: Path) -> TakenPart:
    """The part of an entry that names a checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    info = find_checkpoint(entry.checkpoint)
    return TakenPart(entry, None, output / f"{slug(entry.name)}-{file_digest(info.path)}", info=info)


def training_of(entry: Entry, seed: int, config: ComparisonConfig, manifest: Path, rehearse: bool) -> TrainingConfig:
    """The run of an entry that names a method, at its share of the budget.

    Args:
        manifest: cases to train on.

    Raises:
        ConfigError: the method or a setting does not exist, or a value is not valid.
    """
    changes: dict[str, Any] = {}
    if not config.house_augmentation:
        none = AugmentationConfig.none().model_dump(mode="json")
        changes = {**dict(flatten({"data.augmentation": none})), "data.blend_share": 0.0}
    settings = {**dict(flatten(config.set)), **dict(flatten(entry.set))}
    changes |= fill_in(settings, config.resources)
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
    training = configure(made, str(manifest), name=slug(entry.name), changes=changes.items())
    used = {
        name: file
        for name, file in config.resources.items()
        if name in made.RESOURCES or any(f"{{{name}}}" in str(value) for value in settings.values())
    }
    return training.model_copy(update={"seed": seed, "resources": {**training.resources, **used}})


def cases_of(manifest: Path, split: str) -> list[Case]:
    """The cases of a split that have labels."""
    return [case for case in read_manifest(manifest).cases(split) if case.label is not None]


# --- what makes an experiment the same -------------------------------------------------------------------------------


def content(training: TrainingConfig) -> list[str]:
    """The dataset's list of cases, these, and the files that it learns from beside them."""
    cases = cases_digest(Path(training.dataset), ("training", "validation"))
    return [cases, *(file_digest(Path(f)) for _, f in sorted(training.resources.items()))]


def cases_digest(manifest: Path, splits: Sequence[str]) -> str:
    """What tells a manifest and the images and labels of some splits from the same ones before they were corrected."""
    found = read_manifest(manifest)
    cases = [case for split in splits for case in found.splits.get(split, ())]
    return digest(file_digest(manifest), [file_digest(path) for case in cases for path in case.files])


def file_digest(path: Path) -> str:
    """What tells a file, or a folder's files, from others of the same name.

    Raises:
        ConfigError: there is none.
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise ConfigError(
            f"The file {path} does not exist.", "Correct the path, or give --resource NAME=FILE."
        ) from None
    return known_checksum(path, ConfigError)[:10]  # every row asks for the same ones, which may be large


def digest(*settings: Any) -> str:
    """What tells settings from others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:10]


def slug(name: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "entry"
