"""What a comparison found: averages over seeds, paired differences, the papers' results beside; JSON, CSV, Markdown and
a page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation import page, plots
from ..evaluation.report import POLICY
from ..evaluation.statistics import DECISIVE_PAIRS, holm, mean_intervals, paired
from ..evaluation.summary import DISTANCES, mean, paired_values
from ..files import atomic_write, write_csv_rows
from .config import ComparisonConfig
from .papers import NOT_OFFERED, PAPERS, Figures, PaperTable, deviation, figure, is_share

MAIN = {
    "Dice": "macro.dice", "Jaccard": "macro.iou", "precision": "macro.precision",
    "surface Dice": "macro.surface_dice", "HD95 mm": "macro.hd95_mm", "ASD mm": "macro.asd_mm",
    "HD95 px": "macro.hd95_px", "ASD px": "macro.asd_px", "Dice, any level": "macro.matched_dice",
}  # fmt: skip
"""Columns of the main table; shares in percent."""

HEADINGS = {"Dice, any level": "Dice, ignoring level"}
"""How columns are headed for people, where not as they are called in files."""

COMPARED = ("dice", "matched_dice", "hd95_mm")
"""What paired differences are made of."""

REHEARSAL = "A dry run: tiny networks after two steps. These results mean nothing."
_GROUPS = {"vertebrae": "vertebrae", "discs": "discs"}


def tabulate(
    config: ComparisonConfig, about: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything that was found, JSON-able.

    Args:
        about: of `run.describe`.
        documents: of `run.run_comparison`.
    """
    variants = {}
    for variant in config.variants:
        rows = [_entry(documents, name, variant) for name in dict.fromkeys(d["name"] for d in documents)]
        variants[variant] = {"rows": rows, "differences": _differences(documents, config.base.name, variant)}
    main = config.variants[0]
    return {
        "format": 1,
        **about,
        "baseline": config.base.name,
        "missing": [e.name for e in config.entries if e.shown and e.name not in {d["name"] for d in documents}],
        "variants": variants,
        "papers": [_beside(PAPERS[name], documents, main) for name in config.papers],
    }


def _entry(documents: Sequence[Mapping[str, Any]], name: str, variant: str) -> dict[str, Any]:
    """A row: means over its seeds."""
    mine = [d for d in documents if d["name"] == name]
    summaries = [d["report"]["variants"][variant] for d in mine]
    first = mine[0]
    columns = {**MAIN, **{f"Dice, {title}": f"group:{group}.dice" for group, title in _GROUPS.items()}}
    overall = [s["overall"] for s in summaries]
    return {
        "name": name,
        "method": first["method"],
        "preset": first["preset"],
        "taken": first["taken"],
        "named_by_us": first["named_by_us"],
        "seeds": [d["seed"] for d in mine],
        "steps": mean([d["steps"] for d in mine]),
        "hours": mean([d["hours"] for d in mine]),
        "parameters": first["report"]["parameters"],
        "weights": sorted({d["report"].get("weights", "") for d in mine} - {""}),
        "label_leak": "label_leak" in first["report"],
        "seen": first["seen"],
        "figures": {title: mean([figure(s, key) for s in summaries]) for title, key in columns.items()},
        "spread": {title: _deviation([figure(s, key) for s in summaries]) for title, key in columns.items()},
        "interval": _interval(summaries),
        "scored": overall[0]["scored"],
        **{key: mean([row[key] for row in overall]) for key in ("missed", "invented", "undefined_distances")},
        "absent_in_both": mean([row["absent_in_both"] for row in overall]),
        "identification": mean([s["identification"]["rate"] for s in summaries]),
        "panoptic": {g: mean([s["panoptic"].get(g, {}).get("pq") for s in summaries]) for g in _GROUPS},
        "seconds": mean([s["seconds"] for s in summaries]),
        "peak_mb": max((s["peak_mb"] for s in summaries if s["peak_mb"] is not None), default=None),
        "device_peak_mb": max((s["device_peak_mb"] for s in summaries if s["device_peak_mb"]), default=None),
        "pages": [page for d in mine for page in d["pages"]],
    }


def _deviation(values: Sequence[float | None]) -> float | None:
    """Standard deviation over seeds; None for one."""
    known = [v for v in values if v is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _interval(summaries: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """95 % interval over patients of the macro Dice, in percent, the seeds taken together."""
    values: dict[tuple[str, int], list[float]] = {}
    for summary in summaries:
        for case in summary["cases"]:
            for s in case["structures"]:
                key = f"{case['source']}/{case['patient'] or case['case']}", s["id"]
                values.setdefault(key, []).append(s["dice"])
    patients = {p: n for n, p in enumerate(dict.fromkeys(p for p, _ in values))}
    structures = {s: n for n, s in enumerate(dict.fromkeys(s for _, s in values))}
    if not values:
        return None
    sums, counts = np.zeros((2, len(patients), len(structures)))
    for (patient, sid), found in values.items():
        sums[patients[patient], structures[sid]] = sum(found)
        counts[patients[patient], structures[sid]] = len(found)
    _, macro = mean_intervals(sums, counts)
    return macro and [100 * end for end in macro]


def _differences(documents: Sequence[Mapping[str, Any]], base: str, variant: str) -> list[dict[str, Any]]:
    """Every row against the baseline, patient by patient, averaged over the seeds; p corrected for their number."""
    found: list[dict[str, Any]] = []
    theirs = [d["report"]["variants"][variant] for d in documents if d["name"] == base]
    for metric in COMPARED:
        made = []
        for name in dict.fromkeys(d["name"] for d in documents):
            mine = [d["report"]["variants"][variant] for d in documents if d["name"] == name]
            if name == base or not theirs:
                continue
            ours: dict[str, list[float]] = {}
            others: dict[str, list[float]] = {}
            left_out = 0
            for number in range(max(len(mine), len(theirs))):  # a checkpoint that is taken stands for every seed
                pair = paired_values(mine[number % len(mine)], theirs[number % len(theirs)], metric)
                left_out += pair[2]
                for table, values in zip((ours, others), pair[:2], strict=True):
                    for key, value in values.items():
                        table.setdefault(key, []).append(value)
            means = [{key: sum(v) / len(v) for key, v in table.items()} for table in (ours, others)]
            result = paired(*means, less_is_better=metric in DISTANCES).document()
            made.append({"name": name, "base": base, "metric": metric, "structures_left_out": left_out, **result})
        for row, p in zip(made, holm([row["p"] for row in made]), strict=True):
            found.append({**row, "p_holm": p})
    return found


def _beside(table: PaperTable, documents: Sequence[Mapping[str, Any]], variant: str) -> dict[str, Any]:
    """A paper's table with the rows of this comparison that are its counterparts."""
    rows = []
    here: dict[str, list[Mapping[str, Any]]] = {}
    for d in documents:
        here.setdefault(d["name"], []).append(d)
    for name in table.rows:
        partners: list[str | None] = [n for n, found in here.items() if found[0]["paper"] == name]
        for partner in partners or [None]:
            rows.append(_paper_row(name, partner, here.get(partner or "", []), table, variant))
    for name, found in here.items():
        if found[0]["paper"] not in table.rows:
            rows.append(_paper_row("", name, found, table, variant))
    return {
        "id": table.id, "title": table.title, "citation": table.citation, "note": table.note,
        "columns": list(table.columns), "rows": rows,
    }  # fmt: skip


def _paper_row(
    name: str, partner: str | None, documents: Sequence[Mapping[str, Any]], table: PaperTable, variant: str
) -> dict[str, Any]:
    summaries = [d["report"]["variants"][variant] for d in documents]
    none: Figures = (None,) * len(table.columns)
    spreads = [mean([deviation(s, key) for s in summaries]) for key in table.columns.values()]
    return {
        "paper": name,
        "figures": list(table.rows.get(name, none)),
        "deviations": list(table.deviations.get(name, none)),
        "entry": partner,
        "here": [mean([figure(s, key) for s in summaries]) for key in table.columns.values()],
        "here_deviations": spreads if table.deviations else list(none),
        "why_not": "" if partner else NOT_OFFERED.get(name, ""),
    }


# --- as files --------------------------------------------------------------------------------------------------------


def write_tables(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """``table.json``, ``table.csv``, ``table.md`` and ``table.html``, all or none.

    Raises:
        OutputError: they cannot be written.
    """
    paths = [folder / f"table.{suffix}" for suffix in ("json", "csv", "md", "html")]
    with atomic_write(*paths) as (document, sheet, text, html):
        document.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        write_csv_rows(sheet, _sheet(found))
        text.write_text(markdown(found), encoding="utf-8")
        html.write_text(document_page(found), encoding="utf-8")
    return paths


def _sheet(found: Mapping[str, Any]) -> list[list[Any]]:
    plain = (
        "method", "preset", "taken", "named_by_us", "steps", "hours", "parameters", "scored", "missed", "invented",
        "absent_in_both", "undefined_distances", "identification", "seconds", "peak_mb", "device_peak_mb",
    )  # fmt: skip
    lines: list[list[Any]] = []
    for variant, part in found["variants"].items():
        for row in part["rows"]:
            if not lines:
                spread = [f"{title} (SD of seeds)" for title in row["spread"]]
                lines.append(["variant", "name", "seeds", *row["figures"], *spread, "Dice low", "Dice high", *plain])
            ends = row["interval"] or [None, None]
            figures = [*row["figures"].values(), *row["spread"].values()]
            seeds = len(row["seeds"])
            lines.append([variant, row["name"], seeds, *figures, *ends, *(row[key] for key in plain)])
    return lines


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [f"# {found['title']}", ""]
    for sentence in sentences(found):
        lines += [sentence, ""]
    for title, header, rows, note in tables(found):
        lines += [f"## {title}", "", *_pipes(header, rows), ""]
        if note:
            lines += [note, ""]
    return "\n".join(lines).rstrip() + "\n"


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def short_tables(found: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows with the heading first) for a terminal, which is narrow; all results are in the files."""
    made = []
    for variant, part in found["variants"].items():
        header, lines = _main(part["rows"])
        columns = [0, *(header.index(title) for title in ("Dice", "95 %", "HD95 mm", "ident.", "n", "missed"))]
        made.append((variant, [[row[column] for column in columns] for row in (header, *lines)]))
    return made


def document_page(found: Mapping[str, Any]) -> str:
    """The tables as one HTML file, with plots."""
    parts: list[page.Block | None] = []
    if found["rehearsal"]:
        parts.append(page.note(REHEARSAL, alert=True))
    plotted = next(iter(found["variants"].values()))["rows"]
    bars = [(r["name"], r["figures"]["Dice"], r["interval"]) for r in plotted if r["figures"]["Dice"] is not None]
    if bars:
        parts.append(page.figure(plots.by_method(bars, "Dice in %, with 95 % intervals")))
    for title, header, rows, note in tables(found):
        parts.append(page.section(title, page.table(header, rows), page.note(note) if note else None))
    links = [(row["name"], link) for row in plotted for link in row["pages"]]
    parts.append(page.section("Each entry's own report", page.links(links)))
    return page.page(found["title"], parts, sentences(found))


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the tables."""
    budget = found["budget"]
    parts = [
        f"{budget['steps']:,} steps" if budget["steps"] else "",
        f"{budget['hours']:g} h" if budget["hours"] else "",
    ]
    each = " and at most ".join(filter(None, parts)) or "the steps of its own recipe"
    each = "two steps" if found["rehearsal"] else each
    seeds = ", ".join(map(str, found["seeds"]))
    told = [
        found["about"],
        f"Dataset {found['dataset']}, split {found['split']}{_folds(found['folds'])}. Each method was trained for "
        f"{each}, with the seeds {seeds}; the {found['weights']} weights of each run are scored. {found['machine']}; "
        f"SpineSegAI {found['library']}.",
        POLICY,
        _NAMING,
        f"Distances in pixels are those of slices resized to {found['grid']} × {found['grid']} pixels, after padding "
        "to a square, by nearest neighbor; all else is measured on the cases' own grids."
        if found["grid"]
        else "",
    ]
    if found["rehearsal"]:
        told.insert(0, REHEARSAL)
    if found["missing"]:
        told.append(f"Not done yet: {', '.join(found['missing'])}.")
    told += [f"Failed: {name} ({why.rstrip('.')})." for name, why in found.get("failed", {}).items()]
    rows = next(iter(found["variants"].values()))["rows"]
    for row in rows:
        for other in set(row["weights"]) - {found["weights"]}:
            told.append(
                f"Of {row['name']}, the {other} weights are scored, since a run has no {found['weights']} ones."
            )
        if row["seen"]:
            told.append(f"{row['name']} was trained on {len(row['seen'])} of the cases that are scored here.")
        if row["label_leak"]:
            told.append(f"{row['name']} was given the reference: not a result on new images.")
    return [sentence for sentence in told if sentence]


def _folds(count: int | None) -> str:
    return f", {count} folds by patient: every case is scored by networks that have not seen it" if count else ""


def tables(found: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]], str]]:
    """(title, header, rows, note) of every table, as text."""
    made = []
    for variant, part in found["variants"].items():
        of = "" if variant == "full" else f" ({variant})"
        made.append((f"Methods{of}", *_main(part["rows"]), _NOTE_MAIN))
        made.append((f"What it took{of}", *_cost(part["rows"]), _NOTE_COST))
        if part["differences"]:
            title = f"Differences from {found['baseline']}{of}"
            made.append((title, *_pairs(part["differences"]), _NOTE_PAIRS))
    for table in found["papers"]:
        made.append((f"Beside the paper: {table['title']}", *_papers(table), _beside_note(table)))
    return made


_NAMING = (
    "Rows are scored after SpineSegAI has named the levels (anatomical consistency), which the methods do not do in "
    "their papers, except those marked “its own classes”: each voxel is what the network itself finds likeliest."
)
_NOTE_MAIN = (
    "Means of the structures' means, shares in %; ± is the standard deviation over seeds, the interval is over "
    "patients. Level-strict, but for “ignoring level”; ident.: share of the levels recognized per subject; PQ: "
    "panoptic quality at IoU 0.5, ignoring level."
)
_NOTE_COST = (
    "Hours are of training. MB resident is of the whole process while it segmented, with what the trainings before "
    "left in it; MB on the device is of the segmentation alone."
)
_NOTE_PAIRS = (
    "Patient by patient, over the structures that both have a value for; averaged over seeds. Intervals: bootstrap "
    "over patients. p: Wilcoxon's signed-rank test, and corrected after Holm for the rows of the metric. r: "
    f"rank-biserial correlation. Fewer than {DECISIVE_PAIRS} patients decide nothing. Shares in percentage points."
)


def _main(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = [HEADINGS.get(title, title) for title in MAIN]
    header = ["", columns[0], "95 %", *columns[1:], "Dice, vertebrae", "Dice, discs", "ident.", "PQ vert.", "PQ discs"]
    header += ["n", "missed", "false positives", "absent in both", "no distance", "levels named by"]
    lines = []
    for row in rows:
        cells = []
        for title in (*MAIN, "Dice, vertebrae", "Dice, discs"):
            cells.append(_with_deviation(row["figures"][title], row["spread"][title]))
        cells.insert(1, page.span(row["interval"], 1) or "–")
        shares = (row["identification"], row["panoptic"]["vertebrae"], row["panoptic"]["discs"])
        counts = [row[k] for k in ("scored", "missed", "invented", "absent_in_both", "undefined_distances")]
        percent = [page.number(None if v is None else 100 * v, 1) for v in shares]
        naming = "SpineSegAI" if row["named_by_us"] else "its own classes"
        lines.append([row["name"], *cells, *percent, *(f"{c:g}" for c in counts), naming])
    return header, lines


def _cost(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["", "method", "parameters, M", "seeds", "steps", "hours", "s per case", "MB resident", "MB on the device"]
    lines = [
        [
            row["name"], row["method"] + (f", {row['preset']}" if row["preset"] else ""),
            f"{row['parameters'] / 1e6:.2f}", "taken" if row["taken"] else str(len(row["seeds"])),
            page.number(row["steps"], 0), page.number(row["hours"], 2), page.number(row["seconds"], 2),
            page.number(row["peak_mb"], 0), page.number(row["device_peak_mb"], 0),
        ]
        for row in rows
    ]  # fmt: skip
    return header, lines


def _pairs(differences: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    titles = {"dice": "Dice", "matched_dice": "Dice, ignoring level", "hd95_mm": "HD95 mm"}
    header = ["", "in", "patients", "difference", "95 %", "p", "p, Holm", "r", "verdict", "omitted"]
    lines = []
    for row in differences:
        scale = 100 if is_share(row["metric"]) else 1
        numbers = [None if row[k] is None else scale * row[k] for k in ("difference", "low", "high")]
        signed = ["–" if v is None else f"{v:+.2f}" for v in numbers]
        ends = "–" if row["low"] is None else f"{signed[1]} to {signed[2]}"
        lines.append(
            [
                row["name"], titles[row["metric"]], str(row["pairs"]), signed[0], ends, page.number(row["p"], 4),
                page.number(row["p_holm"], 4), page.number(row["rank_biserial"], 2), row["verdict"],
                str(row["structures_left_out"]),
            ]
        )  # fmt: skip
    return header, lines


def _papers(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns = table["columns"]
    header = ["paper", *(f"{c}, paper" for c in columns), "here", *(f"{c}, here" for c in columns)]
    lines = [
        [
            row["paper"] or "–", *map(_with_deviation, row["figures"], row["deviations"]),
            row["entry"] or "–", *map(_with_deviation, row["here"], row["here_deviations"]),
        ]
        for row in table["rows"]
    ]  # fmt: skip
    return header, lines


def _with_deviation(value: float | None, spread: float | None) -> str:
    text = page.number(value, 2)
    return text if spread is None else f"{text} ± {spread:.2f}"


def _beside_note(table: Mapping[str, Any]) -> str:
    missing = [f"{row['paper']} ({row['why_not']})" for row in table["rows"] if row["why_not"]]
    not_here = f" Not offered here: {'; '.join(missing)}." if missing else ""
    return f"{table['citation']}. {table['note']}{not_here}"
