"""``spinesegai segment`` with several images: one process, one model; a failure is a row and never stops the rest."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, ConfigError, ImageError, OutputError, PathError, SpineSegAIError
from ..files import atomic_write, check_writable, jsonable, parse_json, read_text, write_csv_rows, write_json
from ..methods.catalog import method_info
from . import arguments, segment, segment_files
from .arguments import STDOUT
from .segment_files import RESULTS, Work
from .terminal import print_json, print_written, progress_bar

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..checkpoints import CheckpointInfo
    from ..hints import Hints
    from ..inference import Predictor

COLUMNS = (
    "image", "status", "output", "levels", "structures", "level_confidence", "seconds", "device", "warnings",
    "error", "remedy",
)  # fmt: skip
"""Of the table of results. The status is done, failed, or skipped (there was a result)."""

Result = dict[str, Any]
"""A row of the table: the keys of `COLUMNS`, those that apply."""


def run(args: argparse.Namespace, works: Sequence[Work]) -> None:
    """Segments all images; writes each one's files as soon as it is done, and tables of all.

    Raises:
        SpineSegAIError: what is asked for cannot be done with any image; or, after all are done, some failed.
    """
    from ..results.segmentation import FORMAT

    info = segment.find_model(args)
    hints = segment.find_hints(args, method_info(info.method), info.scheme)
    done = [not args.overwrite and all(path.exists() for path in work.outputs.values()) for work in works]
    todo = [work for work, there in zip(works, done, strict=True) if not there]
    _check_tables(args)
    _describe_bids(args, works)
    results, measured = _skipped(args, [work for work, there in zip(works, done, strict=True) if there])
    if results and not args.quiet:
        print(f"skipped {len(results)} that have a result; --overwrite replaces it", file=sys.stderr)
    try:
        for number, result in enumerate(_segment_all(args, info, hints, todo, measured), start=1):
            results.append(result)
            if not args.quiet:
                print(f"[{number}/{len(todo)}] {_in_words(result)}", file=sys.stderr, flush=True)
    finally:  # an interruption too leaves the tables of what is done
        counts = {status: sum(r["status"] == status for r in results) for status in ("done", "skipped", "failed")}
        document = jsonable({"format": FORMAT, "checkpoint": info.name, **counts, "results": results})
        _write_tables(args, results, measured, document)
    failed = [result for result in results if result["status"] == "failed"]
    if args.json == STDOUT:
        print_json(document)
    elif not args.quiet:
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
        print_written(path for path in _tables(args) if path.exists())
    if failed and args.json != STDOUT:
        where = f"{_tables(args)[0]} says why." if _tables(args) else failed[0]["error"]
        raise ImageError(f"{len(failed)} of {len(works)} images could not be segmented.", where)
    if failed:
        sys.exit(2)


def _tables(args: argparse.Namespace) -> list[Path]:
    """The tables to write: in the folder of results, and where flags say."""
    inside = [args.output / f"{RESULTS}{suffix}" for suffix in (".csv", ".jsonl")] if args.output else []
    return [*inside, *(p for p in (args.measurements, args.json) if isinstance(p, Path))]


def _check_tables(args: argparse.Namespace) -> None:
    """Raises:
    OutputError: a table cannot be written, or would take the place of another file.
    """
    from ..results import is_ours

    for path in _tables(args):
        check_writable(path)
        if path.exists() and not path.name.startswith(RESULTS) and not (args.overwrite or is_ours(path)):
            raise OutputError(f"{path} exists and is not SpineSegAI's.", "Choose another name, or use --overwrite.")


def _skipped(args: argparse.Namespace, works: Sequence[Work]) -> tuple[list[Result], list[dict[str, Any]]]:
    """Rows and measurements of images that have a result: as the last table said, and as their files are now."""
    from ..results import read_segmentation
    from ..results.measurement import measure_all

    before: dict[str, Result] = {}
    if args.output and (lines := _tables(args)[1]).exists():
        for line in read_text(lines, OutputError).splitlines():
            row = parse_json(line, lines.name, OutputError)
            before[row["image"]] = row
    results, measured = [], []
    for work in works:
        output, image = work.outputs["--output"], str(work.image)
        results.append({**before.get(image, {}), "image": image, "status": "skipped", "output": str(output)})
        if isinstance(args.measurements, Path):
            try:
                measured += [{"image": image, **row} for row in measure_all(read_segmentation(output))]
            except SpineSegAIError as error:
                results[-1] |= _failure(error)
    return results, measured


def _describe_bids(args: argparse.Namespace, works: Sequence[Work]) -> None:
    from ..results.bids import write_description

    if args.output and any("_dseg." in work.outputs["--output"].name for work in works):
        args.output.mkdir(parents=True, exist_ok=True)
        write_description(args.output)


def _segment_all(
    args: argparse.Namespace,
    info: CheckpointInfo,
    hints: Hints,
    works: Sequence[Work],
    measured: list[dict[str, Any]],
) -> Iterator[Result]:
    """A result for each image; its measurements are added to `measured`. The next image is read meanwhile."""
    from ..imaging import read_image

    if not works:
        return
    with progress_bar(args.quiet) as report:
        report(0.0, "loading the model")
        predictor = segment.load_predictor(args, info)
    with ThreadPoolExecutor(1) as reader:
        coming: Future[sitk.Image] = reader.submit(read_image, works[0].image)
        for number, work in enumerate(works):
            current = coming
            if number + 1 < len(works):
                coming = reader.submit(read_image, works[number + 1].image)
            started = time.perf_counter()
            result: Result = {"image": str(work.image)}
            try:
                segment_files.check_work(work, {}, overwrite=args.overwrite)
                result |= _segment_one(args, info, predictor, hints, work, current.result(), measured)
            except (Cancelled, ConfigError):  # of what is asked for, not of the image
                coming.cancel()
                raise
            except Exception as error:
                result |= _failure(error)
            yield {**result, "seconds": round(time.perf_counter() - started, 2)}


def _segment_one(
    args: argparse.Namespace,
    info: CheckpointInfo,
    predictor: Predictor,
    hints: Hints,
    work: Work,
    image: sitk.Image,
    measured: list[dict[str, Any]],
) -> Result:
    from ..anatomy import STRUCTURES

    with progress_bar(args.quiet) as report:
        found = predictor.segment(image, hints=hints, options=dict(args.option), progress=report)
    segment.require_found(args, work.image, found)
    found, rows, _ = segment.finished(args, work, info, hints, image, found)
    measured += [{"image": str(work.image), **row} for row in rows]
    levels = [STRUCTURES[sid].name for sid in found.present if STRUCTURES[sid].is_vertebral]
    return {
        "status": "done",
        "output": str(work.outputs["--output"]),
        "levels": f"{levels[0]}–{levels[-1]}" if levels else "",
        "structures": len(found.present),
        "level_confidence": None if found.level_confidence is None else round(found.level_confidence, 3),
        "device": found.provenance.get("device", args.device),
        "warnings": segment.notes_of(args, work, found, rows),
    }


def _failure(error: Exception) -> Result:
    """A failure as a row; also one that nobody foresaw, since it must not stop the rest."""
    if isinstance(error, OSError):
        error = PathError.of(error)
    if isinstance(error, MemoryError):
        return {
            "status": "failed",
            "error": "There is not enough memory for it.",
            "remedy": "Close other applications.",
        }
    if isinstance(error, SpineSegAIError):
        return {"status": "failed", "error": error.message, "remedy": error.remedy}
    words = f"{type(error).__name__}: {error}"
    return {"status": "failed", "error": words, "remedy": "This is a bug in SpineSegAI: please report it."}


def _in_words(result: Result) -> str:
    if result["status"] == "failed":
        return f"{result['image']}: failed: {result['error']}"
    sure = "" if result["level_confidence"] is None else f", level confidence {result['level_confidence']:.2f}"
    return (
        f"{result['image']}: {result['levels']}, {result['structures']} structures{sure}, {result['seconds']:.1f} s on "
        f"{result['device']}"
    )


def _write_tables(
    args: argparse.Namespace,
    results: Sequence[Result],
    measured: Sequence[dict[str, Any]],
    document: dict[str, Any],
) -> None:
    from ..results.measurement import short_columns, write_measurements

    if args.output:
        table, lines = _tables(args)[:2]
        with atomic_write(table, lines) as (place, other):
            flat = ({**r, "warnings": " ".join(r.get("warnings", ()))} for r in results)
            write_csv_rows(place, [COLUMNS, *([row.get(key) for key in COLUMNS] for row in flat)])
            text = "".join(json.dumps(jsonable(r), ensure_ascii=False) + "\n" for r in results)
            other.write_text(text, encoding="utf-8")
    if isinstance(args.measurements, Path):
        shape = arguments.table_shape(args)
        shape["columns"] = ("image", *(shape["columns"] or short_columns(measured)))
        write_measurements(measured, args.measurements, **shape)
    if isinstance(args.json, Path):
        with atomic_write(args.json) as (place,):
            write_json(place, document)
