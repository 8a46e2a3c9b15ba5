"""The command line: ``spinesegai segment | relabel | train | evaluate | compare | rank | import-scenes |
import-dataset | text-bank | methods | checkpoints | phantom``.

Exit codes: 0 done; 2 a foreseeable failure, whose message and remedy are on stderr (and as JSON on stdout with
``--json``); 130 interrupted. A command that fails leaves no output behind. Whatever needs numpy or torch is imported by
the commands that use it, so that the others answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..anatomy import SCHEMES, LabelScheme, addition, scheme, structure
from ..errors import ConfigError, HintError, OutputError, SpineSegAIError, problems
from ..files import check_writable, staged
from ..hints import Anchor, Hints
from ..keypoints import read_keypoints
from ..methods.catalog import DEFAULT_METHOD, METHODS, MethodInfo, make_config, method_info
from . import relabel

if TYPE_CHECKING:
    from ..results import Segmentation

STDOUT = "-"
"""What to give as a file name for JSON on standard output."""

Progress = Callable[[float, str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 shows ? for what it lacks
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    try:
        with _termination_as_interruption():
            args.run(args)
            sys.stdout.flush()
    except SpineSegAIError as error:
        print(f"spinesegai: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  {error.remedy}", file=sys.stderr)
        if args.json in (True, STDOUT):
            _print_json({"error": {"kind": error.kind, "message": error.message, "remedy": error.remedy}})
        return 2
    except KeyboardInterrupt:
        print("spinesegai: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


# --- segment ---------------------------------------------------------------------------------------------------------

# Field of `Hints` → how it is given at the shell.
_HINT_FLAGS = {
    "visible": "--visible",
    "anchors": "--anchor",
    "keypoints": "--keypoints",
    "prior": "--prior",
    "locked": "--lock",
    "structures": "--structures",
}


def _segment(args: argparse.Namespace) -> None:
    from ..checkpoints import find_checkpoint

    outputs = _segment_outputs(args)
    info = find_checkpoint(args.checkpoint, args.method)
    if args.method and method_info(args.method).id != info.method:
        raise ConfigError(
            f"The checkpoint {info.name} is of the method {info.method}, not {args.method}.",
            "Leave out --method, or choose another checkpoint.",
        )
    hints = _hints(args, method_info(info.method), info.scheme)
    if args.uncertainty and "samples" not in method_info(info.method).sampling:
        takers = _one_of([m.id for m in METHODS.values() if "samples" in m.sampling])
        raise ConfigError(
            f"--uncertainty is refused: {method_info(info.method).title} ({info.method}) draws no samples.",
            f"Leave it out, or use a checkpoint of {takers}.",
        )

    from ..imaging import read_image  # from here on it takes time
    from ..results import refuse_nothing, validated, write_image
    from ..results.measurement import measure_all, write_csv
    from ..results.preview import render_preview

    with _progress(args.quiet) as report:
        report(0.0, "reading the image")
        image = read_image(args.image)
        if args.levels_from:
            from ..inference.level_transfer import level_anchor
            from ..results import read_segmentation

            known = level_anchor(read_segmentation(args.levels_from).labels, image)
            hints = replace(hints, anchors=(*hints.anchors, known))
        report(0.0, "loading the checkpoint")
        from ..inference import Predictor

        predictor = Predictor(info, device=args.device)
        if args.uncertainty and predictor.method.images_per_slice(dict(args.option)) < 2:
            raise ConfigError(
                "There is no map of uncertainty: one sample, or the prior alone, has none.",
                "Ask for two samples or more.",
            )
        result = predictor.segment(image, hints=hints, options=dict(args.option), progress=report)
    what = "None of the structures asked for" if args.structures else "No spine"
    refuse_nothing(result, f"{what} was found in {args.image}.")
    if not args.unvalidated and not args.structures:
        rest = validated(result, hints.locked, "Say --unvalidated to see it")
        if rest is not result:
            kept = rest.present
            names = ", ".join(structure(sid).name for sid in result.present if sid not in kept)
            rest.warnings.append(f"Left out, since the checkpoint learnt it from phantoms alone: {names}.")
        result = rest

    summary = {"image": str(args.image), "checkpoint": info.name, **result.to_document()}
    with staged(*outputs.values()) as places:
        place = dict(zip(outputs, places, strict=True))
        written = [outputs["--output"].with_name(path.name) for path in result.write(place["--output"])]
        if "--preview" in place:
            render_preview(image, result, place["--preview"])
        if "--measurements" in place:
            write_csv(measure_all(result), place["--measurements"])
        if "--uncertainty" in place:
            write_image(result.uncertainty, place["--uncertainty"])
        written += [path for flag, path in outputs.items() if flag != "--output"]
        summary["written"] = [str(path) for path in written]
        if "--json" in place:
            place["--json"].write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    for warning in result.warnings:
        print(f"note: {warning}", file=sys.stderr)
    if args.json == STDOUT:
        _print_json(summary)
    elif not args.quiet:
        print(_structure_table(result))
        for path in written:
            print(f"wrote {path}")


def _segment_outputs(args: argparse.Namespace) -> dict[str, Path]:
    """The files asked for, by flag; checked before the work begins.

    Raises:
        OutputError: a suffix is unknown, a folder is missing or protected, or one file has two parts to play.
    """
    from ..results import SUFFIXES, refuse_foreign_side_file, side_file, stem_and_suffix

    named = {
        "--output": args.output,
        "--preview": args.preview,
        "--measurements": args.measurements,
        "--uncertainty": args.uncertainty,
    }
    if args.json != STDOUT:
        named["--json"] = args.json
    outputs = {flag: Path(path) for flag, path in named.items() if path}
    allowed = {
        "--output": SUFFIXES,
        "--preview": (".png",),
        "--measurements": (".csv",),
        "--uncertainty": SUFFIXES[1:],
        "--json": (".json",),
    }
    for flag, path in outputs.items():
        stem, suffix = stem_and_suffix(path)
        if suffix not in allowed[flag] or not stem:
            raise OutputError(f"{flag} {path}: the name does not end as it should.", f"Use {_one_of(allowed[flag])}.")
    read = {
        "IMAGE": args.image, "--prior": args.prior, "--lock": args.lock, "--keypoints": args.keypoints,
        "--levels-from": args.levels_from,
    }  # fmt: skip
    parts = [*outputs.items()]
    if side := side_file(outputs["--output"]):
        parts.append(("the side file of --output", side))
    taken = {Path(path).resolve(): part for part, path in read.items() if path}
    for part, path in parts:
        other = taken.setdefault(path.resolve(), part)
        if other != part:
            raise OutputError(f"{path} would be both {other} and {part}.", "Choose another name.")
    for path in outputs.values():
        check_writable(path)
    refuse_foreign_side_file(outputs["--output"])
    return outputs


def _hints(args: argparse.Namespace, method: MethodInfo, scheme: LabelScheme) -> Hints:
    """What the reader knows, as far as the method can use it.

    Raises:
        HintError: the method has no use for one of them, or a file of hints cannot be used.
        SchemeError: a structure is not in the checkpoint's scheme.
    """
    given = {
        "visible": args.visible,
        "anchors": args.anchor,
        "keypoints": args.keypoints,
        "prior": args.prior,
        "locked": args.lock,
        "structures": args.structures,
    }
    refuse_hints({name for name, value in given.items() if value}, method)
    for name in args.structures or ():
        scheme.require(name)
    for anchor in args.anchor:
        scheme.require(anchor.structure_id)
    prior = locked = None
    if args.prior or args.lock:
        from ..results import read_segmentation

        prior, locked = (read_segmentation(path).labels if path else None for path in (args.prior, args.lock))
    return Hints(
        visible=args.visible,
        anchors=tuple(args.anchor),
        keypoints=read_keypoints(args.keypoints) if args.keypoints else {},
        prior=prior,
        locked=locked,
        structures=tuple(args.structures or ()),
    )


def refuse_hints(given: Iterable[str], method: MethodInfo) -> None:
    """Refuses hints that a method has no use for.

    Args:
        given: names of fields of `Hints`.
        method: what they are meant for.

    Raises:
        HintError: names the first such hint, why, and the methods that take it.
    """
    for name in sorted(set(given) - method.accepted_hints):
        takers = [m.id for m in METHODS.values() if name in m.accepted_hints]
        raise HintError(
            f"{_HINT_FLAGS[name]} is refused: {method.title} ({method.id}) has no input for it.",
            f"Leave it out, or use a checkpoint of {_one_of(takers)}." if takers else "Leave it out.",
        )


def _structure_table(result: Segmentation) -> str:
    import numpy as np
    import SimpleITK as sitk

    voxel_ml = math.prod(result.labels.GetSpacing()) / 1000.0
    ids, counts = np.unique(sitk.GetArrayViewFromImage(result.labels), return_counts=True)
    voxels, present = dict(zip(ids.tolist(), counts.tolist(), strict=True)), result.present
    rows = [("structure", "volume", "confidence")]
    for sid in present:
        confidence = result.confidence.get(sid)
        shown = "" if confidence is None else f"{confidence:.2f}"
        rows.append((result.name_of(sid, present), f"{voxels[sid] * voxel_ml:.1f} mL", shown))
    return _table(rows)


# --- train, evaluate -------------------------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if args.resume:
        fixed = ("method", "preset", "steps", "hours", "set", "start_from", "add_structure", "seed", "phantoms", "also")
        names = (name for name in fixed if getattr(args, name) not in (None, []))
        given = [f"--{'from' if name == 'start_from' else name.replace('_', '-')}" for name in names]
        if given:
            raise ConfigError(
                f"--resume goes on as the run was configured; {given[0]} cannot be given.", "Leave it out."
            )
        config = None
    elif args.dataset is None:
        raise ConfigError("A new run needs a data set.", "Give a DATASET.json, or --resume the run that is there.")
    else:
        config = _training_config(args)

    from ..training.run import RunDirectory
    from ..training.trainer import TrainingRequest, run_training  # torch

    run = RunDirectory(output)
    quiet = args.quiet or os.environ.get("RANK", "0") != "0"  # of several processes, the first one speaks
    with _training_progress(quiet) as report, _stop_on_interrupt(run) as interrupted:
        run_training(TrainingRequest(config, output, args.resume, args.device, args.cache, report))
    if interrupted():
        print(f"spinesegai: stopped and saved; go on with --resume --output {output}", file=sys.stderr)
        raise KeyboardInterrupt
    if not quiet:
        for path in (run.best, run.last):
            if path.exists():
                print(f"wrote {path}")


def _training_config(args: argparse.Namespace) -> Any:
    """The configuration of a new run: the method's preset, then the flags, then --set."""
    from ..training.config import configure

    changes = [*args.set]
    flags = {
        "optimization.steps": args.steps,
        "optimization.hours": args.hours,
        "data.phantoms": args.phantoms,
        "seed": args.seed,
        "start_from": args.start_from,
        "also": [str(Path(path).resolve()) for path in args.also] or None,
    }
    if args.start_from and Path(args.start_from).is_file():
        flags["start_from"] = str(Path(args.start_from).resolve())  # a resume may come from another folder
    changes = [(key, value) for key, value in flags.items() if value is not None] + changes
    method = {key.removeprefix("method."): value for key, value in changes if key.startswith("method.")}
    if _continues(args):
        name, start, recipe = _continued(args)
        config = make_config(name, None, **{**start, **method})
    else:
        config = make_config(args.method or DEFAULT_METHOD, args.preset, **method)
        recipe = config.recipe
    if "scheme" not in method:
        config = _with_own_structures(config, args)
    return configure(
        config, str(Path(args.dataset).resolve()), name=Path(args.output).name, recipe=recipe, changes=changes
    )


def _with_own_structures(config: Any, args: argparse.Namespace) -> Any:
    """The configuration with the data set's own structures in its scheme, if its network has an output for each."""
    from ..datasets import read_manifest

    own = [structure(sid) for sid in read_manifest(args.dataset).custom if sid not in config.label_scheme.ids]
    if own and getattr(config, "output", "classes") != "classes":
        names = ", ".join(s.name for s in own)
        print(
            f"note: {names} is not learnt, since {config.method} has outputs for kinds of structures alone; "
            "--set method.output=classes, or another method, learns it.",
            file=sys.stderr,
        )
        return config
    for s in own:
        name = f"{config.scheme}+{addition(s.name, config.label_scheme)}"
        config = config.model_copy(update={"scheme": scheme(name).name})
    return config


_FURTHER = {"learning_rate": 3e-4, "warmup": 20, "keep": 0.75}
"""For a checkpoint that is trained further: it learns slowly and keeps most of what it was. After 343 steps on nine
scenes of a new source, scored on other cases: with `keep` 0.5, Dice rose by 0.035 there and fell by 0.024 on the old
sources, where the levels of an exam were miscounted; with 0.75 it rose by 0.025 and 0.011."""


def _continues(args: argparse.Namespace) -> bool:
    """Whether a checkpoint is trained further, as it is; else another network takes over what fits of it."""
    from ..checkpoints import find_checkpoint

    if args.add_structure and not args.start_from:
        raise ConfigError("--add-structure adds to a checkpoint.", "Name it with --from.")
    if args.add_structure and args.preset:
        raise ConfigError("--add-structure keeps the checkpoint's configuration.", "Leave out --preset.")
    if args.add_structure:
        return True
    same = args.start_from and not args.preset
    return bool(same and args.method in (None, find_checkpoint(args.start_from).method))


def _continued(args: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Method, configuration and settings of the checkpoint in --from, its scheme with the structures added."""
    from ..checkpoints import find_checkpoint

    info = find_checkpoint(args.start_from)
    if args.method not in (None, info.method):
        raise ConfigError(f"{info.name} is of the method {info.method}, not {args.method}.", "Leave out --method.")
    start = dict(info.metadata["method"])
    start["scheme"] = _with_structures(start["scheme"], args.add_structure)
    recipe = {"preprocessing": info.metadata["preprocessing"]}
    if not args.add_structure:
        recipe["optimization"] = _FURTHER
    if info.metadata.get("patch"):
        recipe["data"] = {"patch": info.metadata["patch"]}
    return start.pop("method"), start, recipe


def _with_structures(base: str, names: Sequence[str]) -> str:
    """The name of a label scheme with these structures added."""
    for name in names:
        base = scheme(f"{base}+{addition(name, scheme(base))}").name
    return base


@contextmanager
def _training_progress(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar on stderr for the steps (lines, where that is no terminal), a line for each validation and message."""
    from tqdm import tqdm

    with tqdm(unit="step", file=sys.stderr, disable=True if quiet else None) as bar:

        def report(event: dict[str, Any]) -> None:
            if event["event"] == "step" and bar.disable and not quiet:  # into a file: lines instead of a bar
                loss, speed = event["losses"]["total"], event["steps_per_second"]
                print(f"step {event['step']}: loss {loss:.3f}, {speed:.2f} steps/s", file=sys.stderr, flush=True)
            elif event["event"] == "step":
                bar.set_postfix_str(f"loss {event['losses']['total']:.3f}", refresh=False)
                bar.update(event["step"] - bar.n)
            elif not quiet:
                rest = {k: v for k, v in event.items() if k not in ("event", "elapsed")}
                words = ", ".join(f"{k} {v}" for k, v in {**rest.pop("scores", {}), **rest}.items())
                tqdm.write(f"{event['event']}: {words}", file=sys.stderr)

        yield report


@contextmanager
def _stop_on_interrupt(run: Any) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C lets a run save and end after its step; the second one ends it at once."""
    asked = False
    main_process = os.getpid()

    def interrupt(*_: object) -> None:
        nonlocal asked
        if os.getpid() != main_process:  # a data loader's copy of this: the terminal signals all, one of them acts
            return
        if asked or not run.folder.is_dir():
            raise KeyboardInterrupt
        asked = True
        run.request_stop()

    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _evaluate(args: argparse.Namespace) -> None:
    if Path(args.output).suffix.lower() != ".json":
        raise OutputError(f"--output {args.output}: the name does not end as it should.", "Use .json.")
    more = {"--html": (args.html, ".html"), "--csv": (args.csv, ".csv"), "--embedding": (args.embedding, ".png")}
    for flag, (path, suffix) in more.items():
        if path and Path(path).suffix.lower() != suffix:
            raise OutputError(f"{flag} {path}: the name does not end as it should.", f"Use {suffix}.")
    for path in (args.output, args.csv, args.html, args.embedding):
        if path:
            check_writable(path)
    if args.embedding and args.allow_label_leak:
        raise ConfigError("The embedding is made without the reference's help.", "Leave out --allow-label-leak.")
    from ..checkpoints import find_checkpoint
    from ..datasets import read_manifest

    written = [path for path in (args.output, args.csv, args.html, args.embedding) if path]
    if len({Path(path).resolve() for path in (args.dataset, *written)}) < 1 + len(written):
        raise OutputError("The report would replace the data set or another of its files.", "Choose another name.")
    info = find_checkpoint(args.checkpoint)
    cases = read_manifest(args.dataset).cases(args.split)
    from ..evaluation import VARIANTS, evaluate_dataset, format_report, write_csv, write_report
    from ..evaluation.embedding import collect_vectors, require_scikit_learn, write_embedding
    from ..evaluation.page import write_page
    from ..evaluation.worst import WorstCases
    from ..inference import Predictor

    if args.embedding:
        require_scikit_learn()
    variants = VARIANTS if args.variants == ["all"] else args.variants
    options = dict(args.option)
    if args.allow_label_leak:
        options["allow_label_leak"] = True
    worst = WorstCases(args.worst if args.html else 0, variants[0])
    with _progress(args.quiet) as report:
        report(0.0, "loading the checkpoint")
        predictor = Predictor(info, device=args.device)
        vectors = None
        if args.embedding:  # first, since it may be refused
            vectors = collect_vectors(
                predictor, cases, options=options, progress=lambda _, message: report(0.0, message)
            )
        found = evaluate_dataset(
            args.dataset,
            args.split,
            predictor,
            variants=variants,
            about={"checkpoint": info.name, "method": info.method, "device": args.device, "options": options},
            options=options,
            label_leak=args.allow_label_leak,
            trained_on=info.trained_on,
            watch=worst,
            progress=report,
        )
    if vectors is not None:
        title = f"{info.name}, {args.split} cases of {Path(args.dataset).name}"
        found["embedding"] = write_embedding(vectors, args.embedding, title=title)
    write_report(found, args.output)
    if args.csv:
        write_csv(found, args.csv)
    if args.html:
        write_page(found, args.html, worst.drawn())
    if args.json:
        _print_json(found)
    elif not args.quiet:
        print(format_report(found))
        for path in filter(None, (args.output, args.csv, args.html, args.embedding)):
            print(f"wrote {path}")


def _compare(args: argparse.Namespace) -> None:
    from ..comparison.config import read_comparison

    config = read_comparison(args.config, dataset=args.dataset, resources=dict(args.resource))
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file.", "Name a folder, new or of an earlier comparison.")
    from ..comparison.run import Work, describe, run_comparison
    from ..comparison.tables import markdown, tabulate, write_tables
    from ..training.run import RunDirectory
    from ..training.trainer import TrainingRequest, run_training

    def train(request: TrainingRequest) -> None:
        run = RunDirectory(request.output)
        with _training_progress(args.quiet) as report, _stop_on_interrupt(run) as interrupted:
            run_training(replace(request, report=report))
        if interrupted():
            print(f"spinesegai: stopped and saved; go on with the same command on {output}", file=sys.stderr)
            raise KeyboardInterrupt

    def say(sentence: str) -> None:
        if not args.quiet:
            print(sentence, file=sys.stderr, flush=True)

    work = Work(output, args.device, args.only, args.rehearse, train=train, say=say)
    documents = run_comparison(config, work)
    found = tabulate(config, describe(config, work), documents)
    paths = write_tables(found, output)
    if args.json:
        _print_json(found)
    elif not args.quiet:
        print(markdown(found))
        for path in paths:
            print(f"wrote {path}")


# --- methods, checkpoints, phantom -----------------------------------------------------------------------------------


def _methods(args: argparse.Namespace) -> None:
    if args.json:
        _print_json(
            {
                "methods": [
                    {
                        "id": m.id,
                        "title": m.title,
                        "group": m.group,
                        "summary": m.summary,
                        "citation": m.citation,
                        "dims": list(m.dims),
                        "modalities": list(m.modalities),
                        "hints": sorted(m.accepted_hints),
                        "presets": list(m.config_class().presets(m.id)),
                    }
                    for m in METHODS.values()
                ],
                "schemes": [
                    {"name": s.name, "title": s.title, "structures": [x.name for x in s.structures]}
                    for s in SCHEMES.values()
                ],
            }
        )
        return
    rows = [("method", "dims", "title", "summary")]
    rows += [(m.id, ", ".join(f"{d}D" for d in m.dims), m.title, m.summary) for m in METHODS.values()]
    print(_table(rows))
    print("\nLabel schemes:")
    for s in SCHEMES.values():
        print(f"  {s.name}: {'; '.join(x.name for x in s.structures)}")


def _checkpoints(args: argparse.Namespace) -> None:
    from ..checkpoints import checkpoint_folders, list_checkpoints

    found = list_checkpoints()
    if args.json:
        _print_json(
            [
                {
                    "name": c.name,
                    "title": c.title,
                    "method": c.method,
                    "scheme": c.scheme.name,
                    "path": str(c.path),
                    "size_bytes": c.size_bytes,
                    "metadata": dict(c.metadata),
                }
                for c in found
            ]
        )
    elif found:
        rows = [("checkpoint", "method", "scheme", "size", "title")]
        rows += [(c.name, c.method, c.scheme.name, f"{c.size_bytes / 1e6:.1f} MB", c.title) for c in found]
        print(_table(rows))
    else:
        print("There are no checkpoints in:", *checkpoint_folders(), sep="\n  ")


def _text_bank(args: argparse.Namespace) -> None:
    if Path(args.output).suffix != ".safetensors":
        raise OutputError(f"--output {args.output}: the name does not end as it should.", "Use .safetensors.")
    check_writable(args.output)
    named = _with_structures(args.scheme or make_config(args.method).scheme, args.add_structure)
    config = make_config(args.method, scheme=named)
    texts = config.text_prompts()
    if not texts:
        raise ConfigError(f"{args.method} needs no text bank.", "Choose another method.")
    from ..methods.text.bank import TextBank, write_bank
    from ..methods.text.encoders import SentenceMeans, make_encoder

    with _progress(args.quiet) as report:
        report(0.0, "loading the text encoder")
        encoder = make_encoder(args.encoder, texts)
        if config.whole_sentences:
            encoder = SentenceMeans(encoder)
        write_bank(args.output, texts, encoder, config.scheme, report)
    if not args.quiet:
        bank = TextBank(args.output)
        print(f"{len(texts)} prompts of up to {bank.longest} tokens, width {bank.width}, by {bank.encoder}")
        print(f"wrote {args.output}")


def _phantom(args: argparse.Namespace) -> None:
    for flag, path in (("--output", args.output), ("--label", args.label)):
        if path and not str(path).lower().endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
            raise OutputError(
                f"{flag} {path}: the name does not end as it should.", "Use .nii.gz, .nii, .nrrd or .mha."
            )
    paths = [Path(path) for path in (args.output, args.label) if path]
    if len({path.resolve() for path in paths}) < len(paths):
        raise OutputError(f"{args.output} would be both --output and --label.", "Choose another name.")
    for path in paths:
        check_writable(path)

    import numpy as np
    import SimpleITK as sitk
    from pydantic import ValidationError

    from ..phantoms.spine import PhantomSpec, make_phantom, random_spec
    from ..phantoms.vessels import VesselSpec, make_vessels, random_vessels

    kind, draw, make = (
        (VesselSpec, random_vessels, make_vessels) if args.vessels else (PhantomSpec, random_spec, make_phantom)
    )
    rng = np.random.default_rng(args.seed)
    try:
        spec = draw(rng, **dict(args.spec)) if args.random else kind(**dict(args.spec))
    except ValidationError as error:
        raise ConfigError(
            f"--spec is not valid: {problems(error)}.", f"See {kind.__name__} for what there is."
        ) from None
    phantom = make(spec, rng)
    with staged(*paths) as places:
        for image, place in zip((phantom.image, phantom.labels), places, strict=False):
            sitk.WriteImage(image, str(place), useCompression=True)
    if not args.quiet:
        for path in paths:
            print(f"wrote {path}")


# --- training sets ---------------------------------------------------------------------------------------------------


def _import_scenes(args: argparse.Namespace) -> None:
    from ..anatomy import Extent
    from ..datasets.scene_files import find_scenes
    from ..datasets.segment_names import parse_table, read_table
    from ..datasets.slicer_scene import read_scene
    from ..datasets.training_set import SceneSummary, TrainingSet

    target = TrainingSet(args.output)
    said = parse_table([*(read_table(args.mapping) if args.mapping else ()), *args.map])
    table = {**parse_table(target.names.items()), **said}
    scenes = find_scenes(args.scenes)
    reports = (read_scene(path, root=root, table=table, customs=target.customs) for path, root in scenes)
    with _progress(args.quiet, args.progress_lines) as report:
        if args.list:
            summary = SceneSummary()
            for number, found in enumerate(reports):
                report(number / len(scenes), found.path.name)
                summary.take(found)
        else:
            summary = target.add_scenes(
                reports,
                count=len(scenes),
                split=args.split,
                validation_share=args.validation,
                extent=Extent(args.extent) if args.extent else None,
                patient=args.patient,
                names=said,
                ignore_unknown=args.ignore_unknown,
                skip_problems=args.skip_problems,
                unlabelled=args.unlabelled,
                progress=report,
            )
    if args.json:
        _print_json({**summary.document(), "dataset": None if args.list else str(target.path)})
        return
    for sentence in (*summary.problems, *summary.notes, *(note for case in summary.cases for note in case["notes"])):
        print(f"note: {sentence}", file=sys.stderr)
    if not args.quiet:
        rows = [("segment", "taken as", "because of", "cases"), *summary.segment_rows()]
        print(_table(rows))
        if not args.list:
            print(f"wrote {target.path}")


def _import_dataset(args: argparse.Namespace) -> None:
    from ..anatomy import Extent
    from ..datasets.public_sets import import_dataset
    from ..datasets.segment_names import parse_table

    with _progress(args.quiet, args.progress_lines) as report:
        target = import_dataset(
            args.format,
            args.folder,
            args.output,
            validation_share=args.validation,
            extent=Extent(args.extent) if args.extent else None,
            table=parse_table(args.map),
            progress=report,
        )
    if not args.quiet:
        counts = {split: len(target.table.get(split, ())) for split in ("training", "validation", "test")}
        print(", ".join(f"{count} {split}" for split, count in counts.items() if count))
        print(f"wrote {target.path}")


def _rank(args: argparse.Namespace) -> None:
    from ..checkpoints import find_checkpoint
    from ..inference.ranking import find_images, rank, write_csv

    if args.output:
        if Path(args.output).suffix != ".csv":
            raise OutputError(f"--output {args.output}: the name does not end as it should.", "Use .csv.")
        check_writable(args.output)
    images = find_images(args.images)
    info = find_checkpoint(args.checkpoint)
    with _progress(args.quiet, args.progress_lines) as report:
        report(0.0, "loading the checkpoint")
        from ..inference import Predictor

        ranking = rank(images, Predictor(info, device=args.device), progress=report)
    if args.output:
        write_csv(ranking, args.output)
    if args.json:
        _print_json({"checkpoint": info.name, "ranking": [scores.document() for scores in ranking]})
    elif not args.quiet:
        rows = [("", "image", "uncertainty", "level margin", "entropy", "disagreement", "why")]
        rows += [(str(n), s.path.name, *s.figures(), s.reason) for n, s in enumerate(ranking, start=1)]
        print(_table(rows))


# --- what arguments mean ---------------------------------------------------------------------------------------------


def _visible(text: str) -> tuple[int | None, int | None]:
    """``T11:S1`` → the two ids, upper one first; ``:L3`` and ``T11:`` name one end."""
    ends = text.split(":")
    if len(ends) != 2:
        raise argparse.ArgumentTypeError(f"“{text}” is not a range; write the upper and the lower level as T11:S1")
    upper, lower = (_known(name) if name.strip() else None for name in ends)
    known = [s for s in (upper, lower) if s]
    for s in known:
        if not s.is_vertebral or s.order is None:
            raise argparse.ArgumentTypeError(f"{s.name} is not a vertebra; write a range as T11:S1")
    if not known:
        raise argparse.ArgumentTypeError(f"“{text}” names no level; write T11:S1, or one end as T11: or :S1")
    if known[0].order > known[-1].order:
        raise argparse.ArgumentTypeError(f"{upper.name} lies below {lower.name}; write the upper level first")
    return upper and upper.id, lower and lower.id


def _anchor(text: str) -> Anchor:
    """``L5@x,y,z`` → an anchor."""
    name, at, place = text.partition("@")
    try:
        x, y, z = (float(number) for number in place.split(","))
    except ValueError:
        x = math.nan
    if not at or not all(map(math.isfinite, (x, y, z) if x == x else (x,))):
        raise argparse.ArgumentTypeError(f"“{text}” is not an anchor; write L5@x,y,z with LPS millimetres")
    return Anchor(_known(name).id, (x, y, z))


def _structures(text: str) -> list[int]:
    """``L3,L4`` → ids."""
    return [_known(name).id for name in text.split(",") if name.strip()]


def _known(name: str) -> Any:
    try:
        return structure(name)
    except SpineSegAIError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"“{text}” is not a device; use auto, cpu, cuda, cuda:N or mps")
    return text


def _key_value(text: str) -> tuple[str, Any]:
    """``key=value``; the value is JSON where it can be (numbers, true, lists), else text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"“{text}” is not of the form key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _name_target(text: str) -> tuple[str, str]:
    """``my tumour=custom:tumour``; the name may have an equals sign in it."""
    name, equals, target = text.rpartition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"“{text}” is not of the form NAME=STRUCTURE")
    return name, target


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0.0 <= share < 1.0:
        raise argparse.ArgumentTypeError(f"“{text}” is not a share; write 0.2 for a fifth")
    return share


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError(f"“{text}” names nothing")
    return words


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"“{text}” is not a number of cases; write 3, or 0 for none")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their flags."""
    parser = argparse.ArgumentParser(
        prog="spinesegai",
        description="Spine segmentation: named, levelled vertebrae and discs. For research use.",
    )
    parser.add_argument("--version", action="version", version=f"spinesegai {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, json=None)
        return sub

    segment = command("segment", _segment, "Segment an image.")
    segment.add_argument("image", metavar="IMAGE", help="image file, or folder with one DICOM series")
    segment.add_argument(
        "--output", required=True, metavar="FILE", help=".seg.nrrd for Slicer, or .nii.gz, .nrrd, .mha"
    )
    segment.add_argument("--checkpoint", metavar="NAME|FILE", help="see “spinesegai checkpoints”")
    segment.add_argument("--method", metavar="NAME", choices=list(METHODS), help="take a checkpoint of this method")
    _add_device(segment)
    segment.add_argument(
        "--visible",
        type=_visible,
        metavar="T11:S1",
        help="topmost and lowest vertebra in view; T11: or :S1 for one end",
    )
    segment.add_argument(
        "--anchor", type=_anchor, action="append", default=[], metavar="L5@x,y,z", help="a point in L5 (LPS, mm)"
    )
    segment.add_argument("--keypoints", metavar="FILE", help="JSON of centres, or Slicer markups")
    segment.add_argument("--prior", metavar="FILE", help="segmentation to start from")
    segment.add_argument("--lock", metavar="FILE", help="segmentation whose structures are kept as they are")
    segment.add_argument(
        "--levels-from", metavar="FILE", help="corrected segmentation of another series of the study: levels as there"
    )
    segment.add_argument("--structures", type=_structures, metavar="L3,L4", help="return these alone")
    segment.add_argument(
        "--unvalidated", action="store_true", help="also return what the checkpoint learnt from phantoms alone"
    )
    _add_option(segment)
    segment.add_argument("--preview", metavar="PNG", help="picture of the result")
    segment.add_argument("--measurements", metavar="CSV", help="volumes, heights, angles …")
    segment.add_argument("--uncertainty", metavar="FILE", help="map of methods that draw samples: .nii.gz, .nrrd, .mha")
    segment.add_argument("--json", metavar="FILE|-", help="what was found and done, for machines; - is stdout")
    _add_quiet(segment)

    relabel.add_arguments(command("relabel", relabel.run, "Correct the names and pieces of a segmentation."))

    train = command("train", _train, "Train a checkpoint.")
    train.add_argument("dataset", nargs="?", metavar="DATASET.json", help="manifest; not needed to --resume")
    train.add_argument("--method", choices=list(METHODS), metavar="NAME", help=f"default {DEFAULT_METHOD}")
    train.add_argument("--preset", metavar="NAME", help="named configuration of the method")
    train.add_argument("--output", required=True, metavar="RUN_DIR", help="folder of the run")
    train.add_argument("--steps", type=int, metavar="N")
    train.add_argument("--hours", type=float, metavar="H", help="stop after this time even if steps are left")
    train.add_argument(
        "--set",
        type=_key_value,
        action="append",
        default=[],
        metavar="key=value",
        help="any setting, e.g. optimization.batch=4",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN_DIR")
    train.add_argument(
        "--from",
        dest="start_from",
        metavar="CHECKPOINT",
        help="train this checkpoint further; with another --method or a --preset, take over what fits",
    )
    train.add_argument(
        "--add-structure",
        action="append",
        default=[],
        metavar="NAME",
        help='teach the checkpoint in --from one structure more; to teach only that: --set method.only=["NAME"]',
    )
    train.add_argument(
        "--also", action="append", default=[], metavar="DATASET.json", help="mix in another, lest it be forgotten"
    )
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument("--phantoms", type=int, metavar="N", help="mix in this many generated cases")
    train.add_argument("--cache", type=Path, metavar="FOLDER", help="of preprocessed cases; default: in RUN_DIR")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _add_quiet(train)

    evaluate = command("evaluate", _evaluate, "Score a checkpoint on labelled cases.")
    evaluate.add_argument("dataset", metavar="DATASET.json", help="manifest")
    evaluate.add_argument("--split", required=True, metavar="NAME", help="training, validation or test")
    evaluate.add_argument("--checkpoint", metavar="NAME|FILE", help="see “spinesegai checkpoints”")
    evaluate.add_argument("--output", required=True, metavar="REPORT.json")
    evaluate.add_argument("--html", metavar="FILE", help="report with plots and the worst cases, in one file")
    evaluate.add_argument("--csv", metavar="FILE", help="a line for each structure of each case")
    evaluate.add_argument("--embedding", metavar="PNG", help="picture of how far apart the structures' features lie")
    evaluate.add_argument("--worst", type=_count, default=3, metavar="N", help="cases shown in --html; default 3")
    evaluate.add_argument(
        "--variants", type=_words, default=["full"], metavar="NAME,…", help="cropped and enlarged copies; “all” for all"
    )
    _add_device(evaluate)
    _add_option(evaluate)
    evaluate.add_argument(
        "--allow-label-leak", action="store_true", help="let the method read the reference; the report is stamped"
    )
    evaluate.add_argument("--json", action="store_true", help="the report on stdout, too")
    _add_quiet(evaluate)

    compare = command(
        "compare", _compare, "Train and score several methods on the same work, beside the papers' figures."
    )
    compare.add_argument("config", metavar="CONFIG", help="TOML or JSON file, or the name of a shipped one: see README")
    compare.add_argument("output", metavar="FOLDER", help="of the runs and tables; the same again goes on")
    compare.add_argument("--dataset", metavar="DATASET.json", help="manifest to use instead of the one in CONFIG")
    compare.add_argument(
        "--resource",
        type=_name_target,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="to learn from: text_bank",
    )
    compare.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="do this entry alone, and tabulate what is done"
    )
    compare.add_argument(
        "--rehearse", action="store_true", help="tiny networks, two steps, two cases: to see that all of it works"
    )
    _add_device(compare)
    compare.add_argument("--json", action="store_true", help="the table on stdout, for machines")
    _add_quiet(compare)

    scenes = command("import-scenes", _import_scenes, "Make a training set from annotated Slicer scenes.")
    scenes.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help=".mrb, .mrml, or a folder of them")
    scenes.add_argument("--list", action="store_true", help="show what would be taken as what; write nothing")
    scenes.add_argument("--mapping", metavar="JSON", help='table of names, {"my tumour": "custom:tumour"}')
    scenes.add_argument("--split", choices=("training", "validation", "test"), help="default: dealt out by patient")
    scenes.add_argument("--patient", metavar="NAME", help="of all these scenes; default: what they say")
    scenes.add_argument("--ignore-unknown", action="store_true", help="leave out segments that are not understood")
    scenes.add_argument("--skip-problems", action="store_true", help="leave out what cannot be read")
    scenes.add_argument("--unlabelled", action="store_true", help="keep volumes without segmentation, to annotate next")
    scenes.add_argument("--json", action="store_true", help="what was found, for machines, on stdout")
    _add_import(scenes)

    dataset = command("import-dataset", _import_dataset, "Make a training set from a public data set's folder.")
    dataset.add_argument("folder", metavar="FOLDER")
    dataset.add_argument("--format", required=True, choices=("spider", "mrspineseg", "verse", "ctspine1k", "nnunet"))
    _add_import(dataset)

    ranking = command("rank", _rank, "Which image to annotate next: the one that a checkpoint is least sure of.")
    ranking.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image, or folder of images")
    ranking.add_argument("--checkpoint", metavar="NAME|FILE", help="see “spinesegai checkpoints”")
    _add_device(ranking)
    ranking.add_argument("--output", metavar="CSV", help="write the ranking")
    ranking.add_argument("--json", action="store_true", help="for machines, on stdout")
    _add_quiet(ranking)
    _add_progress_lines(ranking)

    methods = command("methods", _methods, "List the methods and label schemes.")
    methods.add_argument("--json", action="store_true", help="for machines")

    checkpoints = command("checkpoints", _checkpoints, "List the checkpoints.")
    checkpoints.add_argument("--json", action="store_true", help="for machines")

    bank = command("text-bank", _text_bank, "Embed a method's prompts, to train it with.")
    bank.add_argument("--method", choices=list(METHODS), default="atm-net", metavar="NAME", help="default atm-net")
    bank.add_argument("--scheme", choices=list(SCHEMES), metavar="NAME", help="label scheme; default: the method's")
    bank.add_argument(
        "--add-structure", action="append", default=[], metavar="NAME", help="embed one more, as train --add-structure"
    )
    bank.add_argument(
        "--encoder",
        default="bio_clinicalbert",
        metavar="NAME|FOLDER",
        help="bio_clinicalbert, a Hugging Face name or folder, open_clip[:MODEL:WEIGHTS], or tiny_offline",
    )
    bank.add_argument("--output", required=True, metavar="FILE", help=".safetensors")
    _add_quiet(bank)

    phantom = command("phantom", _phantom, "Generate a lumbar spine, or pulmonary vessels, with known structures.")
    phantom.add_argument("--vessels", action="store_true", help="pulmonary arteries and veins in CT instead of a spine")
    phantom.add_argument("--output", required=True, metavar="FILE", help=".nii.gz, .nrrd …")
    phantom.add_argument("--label", metavar="FILE", help="write the structures, too")
    phantom.add_argument("--seed", type=int, default=0, metavar="N")
    phantom.add_argument(
        "--random", action="store_true", help="draw what --spec leaves open, instead of a typical case"
    )
    phantom.add_argument(
        "--spec", type=_key_value, action="append", default=[], metavar="key=value", help="field of the phantom's spec"
    )
    _add_quiet(phantom)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, default="auto", metavar="auto|cpu|cuda[:N]|mps")


def _add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option", type=_key_value, action="append", default=[], metavar="key=value", help="of the method, at run time"
    )


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="of the training set, new or old")
    parser.add_argument(
        "--map",
        type=_name_target,
        action="append",
        default=[],
        metavar="NAME=STRUCTURE",
        help='what a name means: "L4 old=ignore", "my tumour=custom:tumour"',
    )
    parser.add_argument(
        "--validation", type=_share, default=0.2, metavar="SHARE", help="of the new patients; default 0.2"
    )
    parser.add_argument("--extent", choices=("body", "whole"), help="of vertebrae, where it is not said")
    _add_quiet(parser)
    _add_progress_lines(parser)


def _add_progress_lines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress-lines", action="store_true", help="progress as JSON lines on stderr, for programs")


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress and no table; notes and errors remain")


# --- the terminal ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(quiet: bool, lines: bool = False) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal; or a JSON line each time."""
    if lines:
        yield lambda fraction, message: print(
            json.dumps({"progress": round(fraction, 4), "message": message}), file=sys.stderr, flush=True
        )
        return
    from tqdm import tqdm

    form = "{percentage:3.0f}%|{bar:30}| {elapsed} {desc}"
    with tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False, disable=True if quiet else None) as bar:

        def report(fraction: float, message: str) -> None:
            bar.set_description_str(message, refresh=False)
            bar.n = min(max(bar.n, fraction), 1.0)
            bar.refresh()

        yield report


@contextmanager
def _termination_as_interruption() -> Iterator[None]:
    """A polite request to end (SIGTERM) tidies up like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _one_of(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))  # ASCII, since the terminal's encoding may be any


if __name__ == "__main__":
    sys.exit(main())
