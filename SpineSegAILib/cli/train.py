"""``spinesegai train``: a new run, a checkpoint trained further, or a run resumed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..anatomy import extended, structure
from ..errors import ConfigError
from ..files import real_path
from ..methods.catalog import DEFAULT_METHOD, make_config, stored_config
from . import arguments
from .terminal import print_note, print_written, stop_on_interrupt, training_progress

if TYPE_CHECKING:
    from ..methods.config import MethodConfig
    from ..training.config import TrainingConfig

HELP = "Train a checkpoint."

_NEW_RUN_ONLY = {
    "method": "--method",
    "preset": "--preset",
    "steps": "--steps",
    "hours": "--hours",
    "set": "--set",
    "start_from": "--from",
    "add_structure": "--add-structure",
    "seed": "--seed",
    "phantoms": "--phantoms",
    "also": "--also",
}
"""What a run that is resumed keeps, and its flag."""

_FURTHER = {"learning_rate": 3e-4, "warmup": 20, "keep": 0.75}
"""For a checkpoint that is trained further: it learns slowly and keeps most of what it was. After 343 steps on nine
scenes of a new source, scored on other cases: with `keep` 0.5, Dice rose by 0.035 there and fell by 0.024 on the old
sources, where the levels of an exam were miscounted; with 0.75 it rose by 0.025 and 0.011."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument(
        "dataset",
        nargs="?",
        metavar="DATASET.json",
        help="manifest; not needed with --resume; with --recipe the folder that holds the recipe's datasets",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RUN_DIR", help="folder of the run")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="train as a shipped checkpoint was: its name, or a TOML file; run the same command again to resume",
    )
    parser.add_argument(
        "--resource",
        type=arguments.name_target,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="file that the recipe needs, e.g. text_bank=FILE; may be repeated",
    )
    parser.add_argument(
        "--method", type=arguments.method, metavar="NAME", help=f"method to train; default: {DEFAULT_METHOD}"
    )
    parser.add_argument("--preset", metavar="NAME", help="named configuration of the method")
    parser.add_argument("--steps", type=arguments.whole_number(), metavar="N", help="number of training steps")
    parser.add_argument(
        "--hours", type=arguments.number, metavar="H", help="stop after this time even if steps are left"
    )
    parser.add_argument(
        "--set",
        type=arguments.key_value,
        action="append",
        default=[],
        metavar="key=value",
        help="any setting, e.g. optimization.batch=4; may be repeated",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN_DIR")
    parser.add_argument(
        "--from",
        dest="start_from",
        metavar="CHECKPOINT",
        help="train this checkpoint further; with another --method or a --preset, take over the weights that fit",
    )
    arguments.add_new_structures(
        parser,
        "teach the checkpoint in --from one more structure; to teach only that one: --set 'method.only=[\"NAME\"]'",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="DATASET.json",
        help="also train on this dataset, so that it is not forgotten",
    )
    parser.add_argument("--seed", type=arguments.whole_number(), metavar="N", help="seed of the random numbers")
    parser.add_argument(
        "--phantoms", type=arguments.whole_number(), metavar="N", help="also train on this many synthetic cases"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="folder of the preprocessed cases; default: in RUN_DIR"
    )
    parser.add_argument(
        "--device",
        type=arguments.choice("auto", "cpu", "cuda"),
        default="auto",
        metavar="auto|cpu|cuda",
        help="device to train on; default: the fastest available",
    )
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Trains, and on the first Ctrl-C saves and stops."""
    if args.recipe:
        _run_recipe(args)
        return
    if args.resource:
        raise ConfigError("--resource is for recipes.", "Use --recipe, or --set resources.NAME=FILE.")
    if args.resume:
        _check_resume(args)
    config = None if args.resume else training_config(args)

    from ..training.request import TrainingRequest
    from ..training.run import RunDirectory
    from ..training.trainer import run_training  # torch

    run = RunDirectory(args.output)
    quiet = args.quiet or os.environ.get("RANK", "0") != "0"  # of several processes, the first one speaks
    resume = f"resume with --resume --output {args.output}"
    with stop_on_interrupt(run, resume), training_progress(quiet, run) as report:
        run_training(TrainingRequest(config, args.output, args.resume, args.device, args.cache, report))
    if not quiet:
        written = [path for path in (run.best, run.last) if path.exists()]
        if not written:
            print_note(f"It was stopped before its first step: there is no checkpoint yet; {resume}.", sys.stdout)
            return
        print_written(written)
        if written[0] == run.best and _is_its_start(run.best):
            print_note(
                f"No step was better than the checkpoint that it started from: {run.best} is that one.", sys.stdout
            )
        _print_how_to_use(written[0])


def _run_recipe(args: argparse.Namespace) -> None:
    """Does what is not done yet of a recipe.

    Raises:
        ConfigError: a flag does not go with --recipe.
    """
    for name, flag in _NEW_RUN_ONLY.items():
        if getattr(args, name) not in (None, []):
            raise ConfigError(
                f"A recipe has its own settings; {flag} cannot be given.", "Omit it, or change the recipe."
            )
    if args.dataset is None or not Path(args.dataset).is_dir():
        raise ConfigError(
            f"{args.dataset or 'Nothing'} is not a folder with datasets.",
            "Give the folder that holds those of the recipe.",
        )
    from ..training.recipe import RecipeRequest, read_recipe, run_recipe
    from ..training.request import TrainingRequest
    from ..training.run import RunDirectory
    from ..training.trainer import run_training  # torch

    quiet = args.quiet or os.environ.get("RANK", "0") != "0"

    def train(request: TrainingRequest) -> None:
        resume = "run the same command again to resume"
        run = RunDirectory(request.output)
        with stop_on_interrupt(run, resume), training_progress(quiet, run) as report:
            run_training(replace(request, report=report))

    def say(event: dict[str, Any]) -> None:
        if not quiet:
            print(event["message"], file=sys.stderr, flush=True)

    request = RecipeRequest(
        read_recipe(args.recipe), Path(args.dataset), args.output, dict(args.resource), args.device, say, train
    )
    path = run_recipe(request)
    if not quiet:
        print_written([path])
        _print_how_to_use(path)


def _is_its_start(checkpoint: Path) -> bool:
    from ..checkpoints import read_header

    return read_header(checkpoint).metadata["training"]["steps"] == 0


def _print_how_to_use(checkpoint: Path) -> None:
    from ..checkpoints import read_header
    from ..methods.catalog import method_info

    corrects = method_info(read_header(checkpoint).method).group == "correction"
    use = "refine SEGMENTATION IMAGE" if corrects else "segment IMAGE"
    print(f"to use it: spinesegai {use} --model {shlex.quote(str(checkpoint))}")


def _check_resume(args: argparse.Namespace) -> None:
    """Checks that a run that is resumed is not configured again.

    Raises:
        ConfigError: names the flag that does.
    """
    for name, flag in _NEW_RUN_ONLY.items():
        if getattr(args, name) not in (None, []):
            raise ConfigError(f"--resume continues the run as it was configured; {flag} cannot be given.", "Omit it.")


def training_config(args: argparse.Namespace) -> TrainingConfig:
    """The configuration of a new run: the method's preset, then the flags, then --set.

    Raises:
        ConfigError: a flag or setting is missing, does not fit, or does not go with another.
    """
    from ..training.config import configure

    if args.dataset is None:
        raise ConfigError("A new run needs a dataset.", "Give a DATASET.json, or use --resume to continue a run.")
    flags = {
        "optimization.steps": args.steps,
        "optimization.hours": args.hours,
        "data.phantoms": args.phantoms,
        "seed": args.seed,
        "start_from": args.start_from,
        "also": [str(real_path(path)) for path in args.also] or None,
    }
    if args.start_from and Path(args.start_from).is_file():
        flags["start_from"] = str(real_path(args.start_from))  # a resume may come from another folder
    changes = [(key, value) for key, value in flags.items() if value is not None] + args.set
    method = {key.removeprefix("method."): value for key, value in changes if key.startswith("method.")}
    if _continues(args):
        name, start, recipe = _continued(args)
        config = make_config(name, None, **{**start, **method})
    else:
        config = make_config(args.method or DEFAULT_METHOD, args.preset, **method)
        recipe = config.recipe
    if "scheme" not in method:
        config = _with_own_structures(config, args.dataset)
    return configure(config, str(real_path(args.dataset)), name=args.output.name, recipe=recipe, changes=changes)


def _continues(args: argparse.Namespace) -> bool:
    """Whether a checkpoint is trained further, as it is; else another network takes over what fits of it.

    Raises:
        ConfigError: --add-structure without a checkpoint, or with another configuration.
    """
    from ..checkpoints import find_checkpoint

    if args.add_structure and not args.start_from:
        raise ConfigError("--add-structure adds to a checkpoint.", "Name it with --from.")
    if args.add_structure and args.preset:
        raise ConfigError("--add-structure keeps the checkpoint's configuration.", "Omit --preset.")
    if args.add_structure:
        return True
    same = args.start_from and not args.preset
    return bool(same and args.method in (None, find_checkpoint(args.start_from).method))


def _continued(args: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Method, configuration and settings of the checkpoint in --from, its scheme with the structures added."""
    from ..checkpoints import find_checkpoint
    from ..inference.metadata import read_metadata

    info = find_checkpoint(args.start_from)
    read_metadata(info)  # what follows takes it as it is
    if args.method not in (None, info.method):
        raise ConfigError(f"{info.name} is of the method {info.method}, not {args.method}.", "Omit --method.")
    start = stored_config(info.metadata["method"]).model_dump(mode="json")
    start["scheme"] = extended(start["scheme"], args.add_structure)
    recipe = {"preprocessing": info.metadata["preprocessing"]}
    if not args.add_structure:
        recipe["optimization"] = _FURTHER
    if info.metadata.get("patch"):
        recipe["data"] = {"patch": info.metadata["patch"]}
    return start.pop("method"), start, recipe


def _with_own_structures(config: MethodConfig, dataset: str) -> MethodConfig:
    """The configuration with the dataset's own structures in its scheme, if its network has an output for each."""
    from ..datasets import read_manifest

    own = [structure(sid).name for sid in read_manifest(dataset).custom if sid not in config.label_scheme.ids]
    if not own:
        return config
    if getattr(config, "output", "classes") != "classes":
        print_note(
            f"{', '.join(own)} is not trained, since {config.method} has outputs only for kinds of structures; "
            "use --set method.output=classes, or another method."
        )
        return config
    return config.model_copy(update={"scheme": extended(config.scheme, own)})
