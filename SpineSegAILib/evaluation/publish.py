"""Turns a trained checkpoint into one to hand on: evaluated, with its results in its header and a model card.

The hand-written part of the card (the data, their terms, what to know) is given; everything else is measured. Each
`Row` evaluates the same weights once more with run-time options: a mechanism is switched off, and the results say what
it was worth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..anatomy import POSTERIOR_ID, STRUCTURES, Kind, Structure, level_of
from ..checkpoints import SUFFIX, CheckpointInfo, read_header, save_checkpoint
from ..errors import ConfigError
from ..files import atomic_write
from ..inference import Predictor
from ..inference.calibration import Calibration
from ..methods.catalog import method_info
from ..results.quality import GOOD_DICE, LOW
from ..results.templates import render
from .dataset import evaluate_dataset
from .phantoms import write_phantoms
from .variants import VARIANTS

LEAST_CASES, LEAST_DICE = 3, 0.8
"""What a structure must reach on unseen cases, so that results hold it without being asked to."""

LICENCE = "Weights: research use; they inherit the terms of the training data, see the model card. Not Apache-2.0."


@dataclass(frozen=True)
class Row:
    """The same weights with run-time options: what a part of the method is worth."""

    title: str
    options: Mapping[str, str]

    @property
    def flags(self) -> str:
        """As `spinesegai evaluate` takes them."""
        return " ".join(f"--option {name}={value}" for name, value in self.options.items())


@dataclass(frozen=True)
class Publication:
    """What is asked for.

    Attributes:
        name: of the published checkpoint.
        datasets: manifests; their cases are scored together.
        split: which cases; not those that it was trained on.
        recipe: the command that trained it.
        notes: the hand-written part of the card, Markdown.
        options: run-time options of all evaluations.
        rows: see `Row`.
        more: Markdown that others measured, for the end of the page with all results.
        tables: folder of that page; None for the folder of the card.
        shown_dataset: how the card names the dataset.
        phantoms: how many synthetic spines are evaluated, too, for the card's tables of measurements and outline
            quality.
    """

    name: str
    datasets: Sequence[Path]
    split: str
    recipe: str
    notes: str
    options: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    more: Sequence[str] = ()
    tables: Path | None = None
    shown_dataset: str = ""
    phantoms: int = 0


def publish(
    checkpoint: CheckpointInfo,
    what: Publication,
    folder: Path,
    *,
    device: str = "auto",
    report: Callable[[float, str], None] = lambda *_: None,
) -> list[Path]:
    """Evaluate a checkpoint and write it into a folder, with its card (a page) and the page of all results.

    Args:
        report: called with the share of the present evaluation and a sentence.

    Returns:
        the checkpoint, its card, and the page of all results.

    Raises:
        ConfigError: a case of the split was in its training.
        DatasetError, CheckpointError, OutputError: from what is named.
    """
    predictor = Predictor(checkpoint, device=device)
    document = evaluate_dataset(
        what.datasets, what.split, predictor, variants=VARIANTS, options=what.options, progress=report,
        trained_on=checkpoint.trained_on,
    )  # fmt: skip
    if "seen" in document:
        raise ConfigError(document["seen"], "Publish what is measured on cases that the checkpoint has not seen.")
    document["command"] = _command(what)
    shipped = {"title": "as shipped", "flags": "", "summary": document["variants"]["full"]}
    mechanisms = [shipped]
    for row in what.rows:
        options = {**what.options, **row.options}
        again = evaluate_dataset(
            what.datasets, what.split, predictor, options=options,
            progress=partial(_report_row, report, row.title),
        )  # fmt: skip
        mechanisms.append({"title": row.title, "flags": row.flags, "summary": again["variants"]["full"]})
    trust = _phantoms(predictor, what, report) if what.phantoms else []
    metadata = {
        **checkpoint.metadata,
        "unvalidated": experimental(checkpoint, document["variants"]["full"]),
        "validation": {variant: main_results(summary) for variant, summary in document["variants"].items()},
        "validation_command": document["command"],
        "licence": LICENCE,
    }
    if what.rows:
        metadata["mechanisms"] = {row["title"]: main_results(row["summary"]) for row in mechanisms}
    tables = what.tables or folder
    paths = [folder / f"{what.name}{SUFFIX}", folder / f"{what.name}.md", tables / f"{what.name}-results.md"]
    for place in (folder, tables):
        place.mkdir(parents=True, exist_ok=True)
    with atomic_write(*paths) as (weights, card, results):
        save_checkpoint(weights, predictor.method.state_dict(), metadata)  # a run may have written the file again
        published = replace(read_header(weights), path=paths[0])
        card.write_text(model_card(published, document, what, mechanisms, _between(*paths[1:])), encoding="utf-8")
        page = all_results(published, document, what, trust, _between(*reversed(paths[1:])))
        results.write_text(page, encoding="utf-8")
    return paths


def _phantoms(
    predictor: Predictor, what: Publication, report: Callable[[float, str], None]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Title and summary of the synthetic spines."""
    title = f"{what.phantoms} synthetic spines"
    with TemporaryDirectory() as folder:
        found = evaluate_dataset(
            write_phantoms(Path(folder), what.phantoms), "validation", predictor, options=what.options,
            progress=partial(_report_row, report, title),
        )  # fmt: skip
    return [(title, found["variants"]["full"])]


def _report_row(report: Callable[[float, str], None], title: str, share: float, sentence: str) -> None:
    report(share, f"{title}: {sentence}")


def model_card(
    info: CheckpointInfo,
    report: Mapping[str, Any],
    what: Publication,
    mechanisms: Sequence[Mapping[str, Any]],
    tables: str,
) -> str:
    """The model card as Markdown, about a page.

    Args:
        report: of `evaluate_dataset`, with the ``command`` that makes it.
        mechanisms: title, flags and summary of each row, the first of them as shipped.
        tables: link to the page of `all_results`.
    """
    text = render(
        "model_card.md.j2",
        info=info,
        method=method_info(info.method),
        training=info.metadata.get("training"),
        notes=what.notes.strip(),
        recipe=what.recipe,
        calibration=_calibration_in_words(info),
        report=report,
        main_rows=_main_rows,
        mechanisms=mechanisms,
        tables=tables,
    )
    return text.rstrip() + "\n"


def all_results(
    info: CheckpointInfo,
    report: Mapping[str, Any],
    what: Publication,
    trust: Sequence[tuple[str, Mapping[str, Any]]],
    card: str,
) -> str:
    """The tables by structure, of measurements and of outline quality, as Markdown.

    Args:
        report: of `evaluate_dataset`, with the ``command`` that makes it.
        trust: title and summary of further data, whose measurements and outline qualities are shown.
        card: link to the model card.
    """
    own = f"{what.split} split"
    text = render(
        "model_results.md.j2",
        info=info,
        card=card,
        report=report,
        rows=_rows,
        measured=[(own, report["variants"]["full"]), *trust],
        qualities=[*((f"{own}, {name}", s) for name, s in report["variants"].items()), *trust],
        good_dice=GOOD_DICE,
        low=LOW,
        more=[text.strip() for text in what.more],
    )
    return text.rstrip() + "\n"


def experimental(checkpoint: CheckpointInfo, summary: Mapping[str, Any]) -> list[str]:
    """Structures that a result holds on request only.

    They are those that no real case of the training showed, and those that unseen cases do not show to be good: scored
    in fewer than `LEAST_CASES`, or with a mean Dice below `LEAST_DICE`. Posterior elements, which readers draw without
    their levels, are judged together, and each with its body. What no reader drew in an unseen case is left as the
    training has it.

    Args:
        summary: of an evaluation on unseen cases.
    """

    def is_good(known: Structure) -> bool:
        row = summary["structures"].get(known.name)
        if known.kind is Kind.POSTERIOR:
            row = summary["groups"].get("posterior elements") or row
        good = row is None or (row["scored"] >= LEAST_CASES and (row["dice"] or 0.0) >= LEAST_DICE)
        if known.kind is Kind.POSTERIOR and known.id != POSTERIOR_ID:
            good = good and is_good(STRUCTURES[level_of(known)])
        return known.id not in checkpoint.unvalidated and good

    return [known.name for known in checkpoint.scheme.structures if not is_good(known)]


def main_results(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The groups' main results, for the header of a checkpoint."""
    keys = ("scored", "dice", "hd95_mm", "asd_mm", "levels_right", "levels")
    return {name: {key: row[key] for key in keys} for name, row in summary["groups"].items()}


def _command(what: Publication) -> str:
    flags = Row("", what.options).flags
    shown = what.shown_dataset or " ".join(path.name for path in what.datasets)
    return (
        f"spinesegai evaluate {shown} --split {what.split} --checkpoint {what.name} "
        f"--variants all --output report.json{' ' if flags else ''}{flags}"
    )


def _main_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and averages: groups, and groups by source."""
    yield from ((f"**{name}**", row) for name, row in summary["groups"].items())
    for source, groups in summary["sources"].items():
        yield from ((f"{source}: {name}", row) for name, row in groups.items())


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """As `_main_rows`, and every structure."""
    yield from _main_rows(summary)
    yield from summary["structures"].items()


def _between(page: Path, other: Path) -> str:
    """The link from a page to another."""
    return Path(os.path.relpath(other, page.parent)).as_posix()


def _calibration_in_words(info: CheckpointInfo) -> str:
    calibration = Calibration.model_validate(info.metadata.get("calibration", {}))
    offsets = ", ".join(f"{kind} {value:g}" for kind, value in calibration.offsets.items() if value)
    return f"log-odds taken from {offsets or 'nothing'}; weight of neighboring slices {calibration.neighbour:g}"
