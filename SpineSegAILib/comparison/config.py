"""What a comparison is given: pydantic models, read from TOML or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..checkpoints import SUFFIX
from ..errors import ConfigError, problems
from ..evaluation.variants import ALL_VARIANTS
from ..files import read_table, real_path
from ..methods.catalog import make_config
from ..methods.options import switch_option
from ..resources import resources_folder
from ..training.config import flatten
from .folds import Supervision
from .papers import PAPERS, known_rows

_MODEL = ConfigDict(extra="forbid", frozen=True)
ENTRY_PREFIX = "entry:"
ARG_MAX = "arg max"
"""What follows the name of a row that is scored by the network's own classes (`ComparisonConfig.argmax`)."""


class Budget(BaseModel):
    """How long each method may train."""

    model_config = _MODEL

    steps: int | None = Field(None, ge=1, description="the same number of steps; none: as in the method's recipe")
    hours: float | None = Field(None, gt=0, description="the same time; the learning rate falls over it")


class Entry(BaseModel):
    """A row of the table: a checkpoint that is there, a method to be trained, or another program that is run."""

    model_config = _MODEL

    name: str = Field(min_length=1, description="of the row")
    checkpoint: str = Field("", description="name or file of a checkpoint to take; relative to this file")
    method: str = Field("", description="id of a method to train")
    program: Literal["", "nnunet-v2"] = Field("", description="another program that trains and segments, if installed")
    preset: str | None = Field(None, description="named configuration of the method")
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of the training, as of “train --set”; of a program, its own"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="run-time options of the method")
    start_from: str = Field("", description="checkpoint whose weights are taken where they fit, or entry:NAME")
    share: float = Field(1.0, gt=0, description="of the budget, for a row that is trained in stages")
    shown: bool = Field(True, description="off for a row that others only start from")
    paper: str = Field("", description="its row in the papers' tables; by default that of the same name")
    allow_label_leak: bool = Field(False, description="let the method read the reference; the row is marked")
    hints: Literal["", "visible", "reference", "found"] = Field(
        "",
        description="what the method is given of each case when it is scored: the range of levels in view; or for "
        "methods that take boxes, those of the reference or of what the default checkpoint finds",
    )
    supervision: Supervision = Field("full", description="what of the training cases is labeled, see `folds`")
    once: bool = Field(
        False, description="with folds: trained once for all of them, on the cases that are never scored; not shown"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Entry:
        if sum(map(bool, (self.checkpoint, self.method, self.program))) != 1:
            raise ValueError(f"{self.name}: name either a checkpoint or a method, or a program")
        ours = self.preset or self.options or self.start_from or self.hints or self.allow_label_leak or self.once
        if self.program and (ours or not self.shown):
            raise ValueError(f"{self.name}: a program that is run takes settings (set), and nothing else")
        trained = self.set or self.preset or self.start_from or self.once or self.supervision != "full"
        if self.checkpoint and trained:
            raise ValueError(f"{self.name}: a checkpoint that is taken is not trained")
        if self.once and self.shown:
            raise ValueError(f"{self.name}: what is trained once for all folds is not scored (shown = false)")
        return self

    @property
    def is_named_by_us(self) -> bool:
        """Whether the levels that are scored come from `consistency`, not from the network's own classes."""
        return not self.program and switch_option(self.options, "consistency", True)

    @property
    def paper_row(self) -> str:
        """Name of its row in the papers' tables."""
        return self.paper or self.name


class ComparisonConfig(BaseModel):
    """A table to be made."""

    model_config = _MODEL

    title: str
    about: str = Field("", description="what a reader should know: where the data come from, what differs from a paper")
    dataset: str = Field(description="manifest; relative to this file")
    split: str = Field("test", description="which cases are scored")
    folds: int | None = Field(
        None, ge=2, description="cross-validation: every case of the split is scored by networks that have not seen it"
    )
    scored_sources: tuple[str, ...] = Field(
        (), description="with folds: cases of other sources are always trained on and never scored"
    )
    papers: tuple[str, ...] = Field((), description="published tables to put beside it")
    budget: Budget = Budget()
    seeds: tuple[int, ...] = Field((35,), min_length=1)
    baseline: str = Field("", description="row that the others are compared with; by default the first")
    weights: Literal["best", "last"] | None = Field(
        None, description="which of a run; by default the best on the validation split, always the last to score it"
    )
    variants: tuple[str, ...] = Field(("full",), min_length=1, description="copies of the cases, see “evaluate”")
    argmax: bool = Field(
        False,
        description="every row whose network chooses among the structures is followed by one that is scored by its own "
        "choice, as papers do, without the naming of levels that all methods have here",
    )
    grid: int | None = Field(
        None,
        ge=16,
        description="side in pixels of the square to which the paper resizes slices: distances in pixels "
        "are measured there",
    )
    house_augmentation: bool = Field(
        True, description="off: images are changed in training as `set` says, and in no other way"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every training")
    resources: dict[str, str] = Field(default_factory=dict, description="files to learn from, such as text_bank")
    entries: tuple[Entry, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, values: Any) -> Any:
        """The entries that `start` and `argmax` stand for."""
        if not _can_be_expanded(values):
            return values  # the fields say what is wrong
        values = dict(values)
        if "start" in values:
            start = values.pop("start")
            values["entries"] = [e for entry in values.get("entries", ()) for e in _with_start(entry, start)]
        if values.get("argmax"):
            values["entries"] = [e for entry in values.get("entries", ()) for e in _with_argmax(entry, values)]
        return values

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonConfig:
        names = [entry.name for entry in self.entries]
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise ValueError(f"two entries are called “{sorted(double)[0]}”")
        if self.base.name not in names:
            raise ValueError(f"baseline: there is no entry “{self.baseline}”")
        for number, entry in enumerate(self.entries):
            start = entry.start_from.removeprefix(ENTRY_PREFIX)
            if start != entry.start_from and start not in names[:number]:
                raise ValueError(f"{entry.name} starts from “{start}”, which is not the name of an earlier entry")
        for table in self.papers:
            if table not in PAPERS:
                raise ValueError(f"papers: there is no table “{table}”; available: {', '.join(PAPERS)}")
        for entry in self.entries:
            if entry.paper and entry.paper not in known_rows(self.papers):
                raise ValueError(f"{entry.name}: none of the tables has a row “{entry.paper}”")
        if self.weights == "best" and self.split == "validation":
            raise ValueError("weights: the best ones are chosen on “validation”, so that they cannot be scored on it")
        if any(entry.once for entry in self.entries) and not self.folds:
            raise ValueError("an entry is trained once for all folds, and there are no folds")
        if self.folds and any(entry.checkpoint and entry.shown for entry in self.entries):
            raise ValueError("a checkpoint that is taken may have seen the cases of every fold: train it instead")
        if self.folds and self.weights == "best":
            raise ValueError("weights: with folds nothing but the scored cases could choose the best ones")
        for variant in self.variants:
            if variant not in ALL_VARIANTS:
                raise ValueError(f"variants: there is none “{variant}”; available: {', '.join(ALL_VARIANTS)}")
        return self

    @property
    def base(self) -> Entry:
        """The row that the others are compared with."""
        shown = [entry for entry in self.entries if entry.shown]
        found = [entry for entry in self.entries if entry.name == self.baseline]
        if self.baseline and not found:
            raise ValueError(f"baseline: there is no entry “{self.baseline}”")
        return (found or shown or list(self.entries))[0]

    @property
    def taken_weights(self) -> str:
        """Which weights of a run are scored: never those that the scored cases have chosen."""
        return self.weights or ("last" if self.folds or self.split == "validation" else "best")


def _can_be_expanded(values: Any) -> bool:
    """Whether what `_with_start` and `_with_argmax` look at is of the right kind."""
    if not isinstance(values, dict) or not isinstance(values.get("entries", []), (list, tuple)):
        return False
    entries, start = values.get("entries", []), values.get("start", {})
    if not all(isinstance(table, dict) for table in (start, *entries)):
        return False
    tables = (holder.get(key, {}) for holder in (values, start, *entries) for key in ("set", "options"))
    words = (entry[key] for entry in entries for key in ("method", "preset", "paper", "name") if key in entry)
    papers = values.get("papers", [])
    if not isinstance(papers, (list, tuple)):
        return False
    return all(isinstance(t, dict) for t in tables) and all(isinstance(w, str) for w in (*words, *papers))


def _with_start(entry: dict[str, Any], start: Any) -> Iterator[dict[str, Any]]:
    """An entry that is trained from scratch, after one of the same method that is trained once for all folds on the
    cases that are never scored, with the settings of the table ``start`` on top."""
    if entry.get("method") and not entry.get("start_from") and isinstance(start, dict):
        name = f"{entry.get('name')}, start"
        own = {"set": {**entry.get("set", {}), **start.get("set", {})}, "share": start.get("share", 1.0)}
        taken = {k: v for k, v in entry.items() if k in ("method", "preset")}
        yield {**taken, **own, "name": name, "once": True, "shown": False}
        entry = {**entry, "start_from": f"{ENTRY_PREFIX}{name}"}
    yield entry


def _with_argmax(entry: dict[str, Any], values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry, and the same training scored by the network's own classes."""
    yield entry
    if not entry.get("method") or not entry.get("shown", True) or "consistency" in entry.get("options", {}):
        return
    settings = {**dict(flatten(values.get("set", {}))), **dict(flatten(entry.get("set", {})))}
    own = {k.removeprefix("method."): v for k, v in settings.items() if k.startswith("method.")}
    if not make_config(entry["method"], entry.get("preset"), **own).predicts_classes:
        return
    name = str(entry.get("name"))
    known = known_rows([table for table in values.get("papers", ()) if table in PAPERS])
    paper = entry.get("paper") or (name if name in known else "")
    options = {**entry.get("options", {}), "consistency": "off"}
    yield {**entry, "name": f"{name}, {ARG_MAX}", "options": options, "paper": paper}


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with SpineSegAI, by name."""
    return {path.stem: path for path in sorted((resources_folder() / "Compare").glob("*.toml"))}


def read_comparison(
    path: str | Path, *, dataset: str | Path | None = None, resources: Mapping[str, str] | None = None
) -> ComparisonConfig:
    """Reads a configuration; files that it names are taken from where it is.

    Args:
        path: TOML or JSON file, or the name of a shipped one.
        dataset: manifest to use instead of the one it names.
        resources: files to use instead of or beside those it names.

    Raises:
        ConfigError: it is missing, damaged or not valid; or a shipped one, which has no data with it, and no manifest
            is given.
        MissingPackageError: TOML needs Python 3.11.
    """
    shipped = shipped_configs().get(str(path))
    path = shipped or Path(path)
    if not path.exists():
        known = ", ".join(shipped_configs())
        raise ConfigError(f"There is no configuration {path}.", f"Give a file, or one of: {known}.")
    table = read_table(path, ConfigError)
    try:
        config = ComparisonConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            f"{path} is not valid: {problems(error)}.", "See the page “Evaluation and comparison” of the documentation."
        ) from None
    if shipped and not dataset:
        raise ConfigError(
            f"The shipped configuration {path.stem} comes without its dataset.",
            f"Give one with --dataset DATASET.json; the top of {path} says which.",
        )
    here = real_path(path).parent
    found = {name: str(here / file) for name, file in config.resources.items()}
    found |= {name: str(real_path(file)) for name, file in (resources or {}).items()}
    manifest = real_path(dataset) if dataset else here / config.dataset
    entries = tuple(_placed(entry, here) for entry in config.entries)
    return config.model_copy(update={"dataset": str(manifest), "resources": found, "entries": entries})


def _placed(entry: Entry, folder: Path) -> Entry:
    """An entry whose files of checkpoints are those in a folder; names stay."""
    told = {"checkpoint": entry.checkpoint, "start_from": entry.start_from}
    files = {key: file for key, file in told.items() if file.endswith(SUFFIX) and not file.startswith(ENTRY_PREFIX)}
    return entry.model_copy(update={key: str(folder / file) for key, file in files.items()})
