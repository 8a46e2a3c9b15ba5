"""Recipes: how a checkpoint that ships was trained, as data. Stages that start from one another, on named datasets.

A recipe is a TOML file in ``Resources/Recipes``; the text of the model card lies beside it. What is done is not done
again, so the same command continues a recipe that was stopped or killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError, problems
from ..files import free_name, read_table, real_path
from ..methods.catalog import make_config, stored_config
from ..resources import resources_folder
from .config import TrainingConfig, configure, fill_in, flatten
from .request import TrainingRequest, checked_method
from .run import RunDirectory, read_saved, replace_json
from .trainer import run_training

_MODEL = ConfigDict(extra="forbid", frozen=True)
PREVIOUS = "previous"
_NOTES = "recipe.json"
"""In the output folder: what each stage that has begun was made from, besides its settings."""
_NOT_COMPUTED: dict[str, Any] = {
    **dict.fromkeys(("dataset", "also", "start_from", "resources", "name"), True),
    "optimization": {"save_every", "report_every", "workers"},
}
"""Settings of a run that change nothing in what it computes, or name files that may have moved."""


class LevelledSlices(BaseModel):
    """Single midline slices with masks of discs and bodies, see `pictures.import_levelled_slices`."""

    model_config = _MODEL

    folder: str
    names: tuple[str, ...] = Field(min_length=1, description="which pictures")
    pixel_mm: float = Field(gt=0)
    lowest: str = Field("S1", description="the lowest vertebra drawn in each")


class LabelledPictures(BaseModel):
    """Pictures with masks of one structure, see `pictures.import_labelled_pictures`."""

    model_config = _MODEL

    folder: str
    structure: str = Field(description="what the masks show; with `levels` the vertebra that the value 1 stands for")
    levels: bool = Field(False, description="whether the values count vertebrae downwards")


class PublicSet(BaseModel):
    """A public dataset in the folders that it is published in, see `public_sets.import_dataset`."""

    model_config = _MODEL

    format: str
    folder: str


class Source(BaseModel):
    """Where cases come from: a manifest, a public dataset, or a folder of pictures. Paths are relative to the data
    folder."""

    model_config = _MODEL

    manifest: str = ""
    slices: LevelledSlices | None = None
    pictures: LabelledPictures | None = None
    public: PublicSet | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if sum(map(bool, (self.manifest, self.slices, self.pictures, self.public))) != 1:
            raise ValueError("name one of manifest, slices, pictures and public")
        return self

    @property
    def made_from(self) -> LevelledSlices | LabelledPictures | PublicSet | None:
        """What a dataset is made from; None where a manifest is there."""
        return self.slices or self.pictures or self.public


class Stage(BaseModel):
    """One run."""

    model_config = _MODEL

    name: str = Field(pattern=r"^[a-z0-9-]+$", description="folder of the run")
    set: dict[str, Any] = Field(default_factory=dict, description="settings, over the recipe's own")
    start: str = Field(PREVIOUS, description="checkpoint to start from; the previous stage's weights if not given")
    weights: Literal["last", "best"] = Field("last", description="which weights the next stage, or the user, gets")
    completed: bool = Field(False, description="whether structures that nobody drew are learned too, see `complete`")


class Recipe(BaseModel):
    """How a checkpoint was trained."""

    model_config = _MODEL

    title: str = Field(description="of the checkpoint")
    about: str = Field("", description="what a reader should know of the recipe")
    method: str
    preset: str | None = None
    sources: tuple[Source, ...] = Field(min_length=1)
    complete: str = Field("", description="checkpoint that completes partly labeled cases")
    resources: tuple[str, ...] = Field(
        (),
        description="files that the method needs to learn, given by the user; {name} in a setting stands for the file",
    )
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every stage")
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        if any(stage.completed for stage in self.stages) and not self.complete:
            raise ValueError("a stage wants completed cases, and “complete” names no checkpoint")
        return self


@dataclass
class RecipeRequest:
    """What `spinesegai train --recipe` asks for.

    Attributes:
        recipe: what to do.
        data: folder that the recipe's sources are in.
        output: folder of the stages' runs and of what is prepared for them.
        resources: files that the method needs to learn, by name.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        report: called with each event of a run and a sentence per step of the preparation.
        train: replaced by the shell, which stops a run on Ctrl-C.
    """

    recipe: Recipe
    data: Path
    output: Path
    resources: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    report: Callable[[dict[str, Any]], None] = lambda event: None
    train: Callable[[TrainingRequest], Any] = run_training


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with SpineSegAI, by the name of their checkpoint."""
    return {path.stem: path for path in sorted((resources_folder() / "Recipes").glob("*.toml"))}


def read_recipe(name: str | Path) -> Recipe:
    """A shipped recipe by its name, or one from a TOML or JSON file.

    Raises:
        ConfigError: it is missing, damaged or not valid.
    """
    path = shipped_recipes().get(str(name), Path(name))
    if not path.exists():
        raise ConfigError(f"There is no recipe {name}.", f"Give a file, or one of: {', '.join(shipped_recipes())}.")
    try:
        return Recipe.model_validate(read_table(path, ConfigError))
    except ValidationError as error:
        raise ConfigError(f"The recipe {path} is not valid: {problems(error)}.", "Correct it.") from None


def run_recipe(request: RecipeRequest) -> Path:
    """Do what is not done yet.

    Returns:
        the resulting checkpoint.

    Raises:
        ConfigError: a resource is missing, a setting is not valid, or a stage that has begun is another one now.
        DatasetError, ImageError, CheckpointError, TrainingError: from what the recipe names.
    """
    recipe, output = request.recipe, request.output
    missing = [name for name in recipe.resources if name not in request.resources]
    if missing:
        raise ConfigError(
            f"The recipe needs the file “{missing[0]}”.",
            f"Use --resource {missing[0]}=FILE; `spinesegai text-bank` makes text banks.",
        )
    for stage in recipe.stages:
        checked_method(stage_config(recipe, stage, [Path("dataset.json")], request.resources, None))
        _refuse_changed(recipe, stage, output)
    names = _told_apart(Path(made.folder).name if (made := s.made_from) else "" for s in recipe.sources)
    drawn = [_prepare(source, request, name) for source, name in zip(recipe.sources, names, strict=True)]
    places = _told_apart(path.parent.name for path in drawn)
    start: Path | str | None = None
    for stage in recipe.stages:
        manifests = drawn
        if stage.completed:
            manifests = [_completed(path, request, name) for path, name in zip(drawn, places, strict=True)]
        run = RunDirectory(output / stage.name)
        begin = start if stage.start == PREVIOUS else stage.start
        config = stage_config(recipe, stage, manifests, request.resources, begin)
        if run.status().get("state") != "finished":
            resume = run.config_file.exists()
            if not resume:
                output.mkdir(parents=True, exist_ok=True)
                replace_json(output / _NOTES, {**read_saved(output / _NOTES), stage.name: _origin(recipe, stage)})
            request.report({"event": "stage", "message": stage.name})
            request.train(TrainingRequest(config, run.folder, resume, request.device, output / "cache", request.report))
            if run.status().get("state") != "finished":
                raise KeyboardInterrupt
        start = run.best if stage.weights == "best" and run.best.exists() else run.last
    assert start is not None
    return Path(start)


def stage_config(
    recipe: Recipe, stage: Stage, manifests: list[Path], resources: Mapping[str, str], start: Path | str | None
) -> TrainingConfig:
    """The run of a stage.

    Args:
        start: checkpoint to start from, if any.

    Raises:
        ConfigError: a setting is not valid.
    """
    changes = fill_in({**dict(flatten(recipe.set)), **dict(flatten(stage.set))}, resources)
    own = {key.removeprefix("method."): value for key, value in changes.items() if key.startswith("method.")}
    method = make_config(recipe.method, recipe.preset, **own)
    last = stage is recipe.stages[-1]
    first, *more = (str(path) for path in manifests)
    config = configure(
        method,
        first,
        name=recipe.title if last else f"{recipe.title}, stage “{stage.name}”",
        recipe={},
        changes=[*changes.items(), ("also", more), ("start_from", str(start) if start else None)],
    )
    return config.model_copy(update={"resources": dict(resources)})


def _refuse_changed(recipe: Recipe, stage: Stage, output: Path) -> None:
    """Raises:
    ConfigError: the stage has begun, and the recipe says now that something else is computed.
    """
    run = RunDirectory(output / stage.name)
    if not run.config_file.exists():
        return
    begun = run.config()
    origin = _origin(recipe, stage)
    was = _settings(begun) | read_saved(output / _NOTES).get(stage.name, origin)
    now = _settings(stage_config(recipe, stage, [Path()], begun.resources, None)) | origin
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if changed:
        raise ConfigError(
            f"{run.folder} holds the stage “{stage.name}” of another recipe, or of this one before it was changed: "
            f"{', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}.",
            "Choose a new folder with --output, or undo the change.",
        )


def _settings(config: TrainingConfig) -> dict[str, Any]:
    """What a run computes, by the dotted names of settings."""
    method = stored_config(config.method).model_dump(mode="json")
    told = config.model_copy(update={"method": method}).model_dump(mode="json", exclude=_NOT_COMPUTED)
    return dict(flatten(told))


def _origin(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What a stage learns and starts from, wherever the files are."""
    start = Path(stage.start).name
    if stage.start == PREVIOUS:
        before = recipe.stages[: recipe.stages.index(stage)]
        start = f"{before[-1].name}, {before[-1].weights}" if before else ""
    return {
        "sources": [source.model_dump(mode="json", exclude_defaults=True) for source in recipe.sources],
        "complete": recipe.complete if stage.completed else "",
        "start": start,
    }


def _told_apart(names: Iterable[str]) -> list[str]:
    """The names, with a number where one was there before."""
    result: list[str] = []
    for name in names:
        result.append(free_name(name, result))
    return result


def _prepare(source: Source, request: RecipeRequest, name: str) -> Path:
    """The source's manifest, made under a name if need be."""
    told = source.made_from
    if told is None:
        return real_path(request.data / source.manifest)
    from ..datasets import pictures

    output = request.output / "data" / name
    if (output / "dataset.json").exists():
        return output / "dataset.json"
    request.report({"event": "prepare", "message": f"reading {told.folder}"})
    folder = request.data / told.folder
    if isinstance(told, LevelledSlices):
        return pictures.import_levelled_slices(folder, output, told.names, told.pixel_mm, told.lowest)
    if isinstance(told, PublicSet):
        from ..datasets.public_sets import import_dataset

        return import_dataset(told.format, folder, output).path
    return pictures.import_labelled_pictures(folder, output, told.structure, levels=told.levels)


def _completed(manifest: Path, request: RecipeRequest, name: str) -> Path:
    """The manifest with labels completed by the recipe's checkpoint, under a name."""
    from ..datasets.completion import complete_dataset, find_teacher

    output = request.output / "completed" / name
    if (output / "dataset.json").exists():
        return output / "dataset.json"

    def say(share: float, name: str) -> None:
        request.report({"event": "prepare", "message": f"completing {name} ({share:.0%})"})

    return complete_dataset(manifest, output, find_teacher(request.recipe.complete, request.device), say)
