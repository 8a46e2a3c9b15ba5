"""What the papers report, to stand beside what is measured here. Their results, not ours: other cases, other splits.

A column's key says where its counterpart is in a summary of `evaluation`: ``overall`` (mean over all structures),
``macro`` (mean of the structures' means), ``group:NAME``, ``structure:NAME``, and the metric. Shares are in percent.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..methods.catalog import METHODS

Figures = tuple[float | None, ...]
"""One for each column of a table; None where the paper gives none."""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        id: as configurations name it.
        title: what was segmented.
        citation: of the paper.
        columns: title → key.
        rows: name of the method in the paper → results, in the order of the columns.
        note: what to know when comparing.
        deviations: name of the method → what follows its results' ±, where the paper gives that: standard deviations
            over the paper's cases.
    """

    id: str
    title: str
    citation: str
    columns: Mapping[str, str]
    rows: Mapping[str, Figures]
    note: str
    deviations: Mapping[str, Figures] = field(default_factory=dict)


NOT_OFFERED: Mapping[str, str] = {
    "SpineParseNet": "its code has no license, and its two networks, a 3D one with graph convolutions and a 2D one "
    "that refines, have not been written again",
    "Modified BiSeNet": "no code is published; plain BiSeNet is offered",
    "U-BiSeNet": "no code is published; plain BiSeNet is offered",
    "GCSN": "it is SpineParseNet",
    "SSHS": "its code has no license, and has not been written again",
    "MRLN": "no code is published",
    "SWDN": "a way to learn from weak labels, for any network; no code for spines is published",
    "SIMs": "a statistical model of shapes, not a network",
    "CDAN": "no code is published",
}
"""Methods of the papers' tables that cannot be trained here, and why."""


def figure(summary: Mapping[str, Any], key: str) -> float | None:
    """The figure of a column's key in a summary; shares in percent. None where it is not defined."""
    place, metric = key.rsplit(".", 1)
    part, _, name = place.partition(":")
    if part == "macro":
        row = summary["overall"]["macro"]
    elif part == "overall":
        row = summary["overall"]
    else:
        row = summary[f"{part}s"].get(name, {})
    return _scaled(row.get(metric), metric)


def deviation(summary: Mapping[str, Any], key: str) -> float | None:
    """Standard deviation over the cases of what `figure` is the mean of; None with fewer than two.

    Of ``overall`` and ``macro`` alike it is that of the cases' own means over their structures.
    """
    place, metric = key.rsplit(".", 1)
    part, _, name = place.partition(":")
    values = []
    for case in summary["cases"]:
        wanted = [s for s in case["structures"] if part in ("macro", "overall") or name in (s["name"], s["group"])]
        found = [s[metric] for s in wanted if s[metric] is not None]
        values += [sum(found) / len(found)] if found else []
    return _scaled(statistics.stdev(values), metric) if len(values) > 1 else None


def is_share(metric: str) -> bool:
    """Whether papers give the metric in percent."""
    return not metric.endswith(("_mm", "_px"))


def _scaled(value: float | None, metric: str) -> float | None:
    return None if value is None else 100 * value if is_share(metric) else value


def _rows(text: str) -> dict[str, Figures]:
    """``NAME | figures`` on a line or several, a dash for one that is not given, what follows a ± omitted."""
    return {name: tuple(_number(word.split("±")[0]) for word in words) for name, words in _lines(text)}


def _deviations(text: str) -> dict[str, Figures]:
    """What follows the ± in the rows that have it."""
    rows = ((name, [word.partition("±")[2] for word in words]) for name, words in _lines(text))
    return {name: tuple(_number(word) for word in words) for name, words in rows if any(words)}


def _lines(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.strip().splitlines():
        name, bar, figures = line.rpartition("|")
        if bar:
            found.append((name.strip(), []))
        found[-1][1].extend(figures.split())
    return found


def _number(word: str) -> float | None:
    return float(word) if word.strip("–") else None


_ATM_COLUMNS = {"DSC": "macro.dice", "Jaccard": "macro.iou", "HD95 px": "macro.hd95_px", "ASD px": "macro.asd_px"}
_ATM_STRUCTURES = (
    "S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9",
    "L5/S1", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10",
)  # fmt: skip
_ATM_NOTE = (
    "The paper's prompts at test time come from the reference masks; structures that a method missed are omitted from "
    "its distances; its pixels are those of images resized to 384 × 384."
)
_SCAR_STRUCTURES = ("L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
_VERDIFF_COLUMNS = {"Dice": "overall.dice", "IoU": "overall.iou"}
_VERDIFF_NOTE = (
    "The paper's IoU contradict its Dice for some rows: compare Dice. ± is over its images, here over cases; its text "
    "gives other ones for Verdiff-Net (4.75 for CT-Verse, 21.6 for X-ray)."
)


def _by_structure(names: Sequence[str], average: str) -> dict[str, str]:
    return {**{name: f"structure:{name}.dice" for name in names}, average: "macro.dice"}


def _verdiff(name: str, title: str, text: str) -> PaperTable:
    citation = METHODS["verdiff-net"].citation
    return PaperTable(
        f"verdiff-net/{name}", title, citation, _VERDIFF_COLUMNS, _rows(text), _VERDIFF_NOTE, _deviations(text)
    )


PAPERS: Mapping[str, PaperTable] = {
    table.id: table
    for table in (
        PaperTable(
            "atm-net/mrspineseg", "MRSpineSeg, 19 structures", METHODS["atm-net"].citation, _ATM_COLUMNS,
            _rows("""
                U-Net           | 58.59 47.76 32.65 8.35
                UNETR           | 61.81 53.80 24.38 8.25
                SegResNet       | 63.18 55.25 14.66 4.68
                Attention U-Net | 63.73 55.08 40.84 20.96
                Swin UNETR      | 64.58 56.78 17.32 7.04
                nnU-NetV2       | 76.43 67.50 16.70 3.91
                Modified BiSeNet | 65.49 57.11 15.36 5.10
                U-BiSeNet       | 66.03 57.67 20.20 9.45
                SpineParseNet   | 78.84 71.65 17.54 6.10
                CCAE only       | 73.08 64.37 13.43 3.52
                HASF only       | 77.13 68.46 10.10 2.80
                HASF, option 1  | 70.28 62.45 10.22 2.68
                HASF, option 2  | 75.80 66.84 11.28 3.32
                ATM-Net         | 81.72 72.25 9.60 2.15
            """), _ATM_NOTE,
        ),
        PaperTable(
            "atm-net/mrspineseg-structures", "MRSpineSeg, Dice of each structure", METHODS["atm-net"].citation,
            _by_structure(_ATM_STRUCTURES, "Avg."),
            _rows("""
                U-Net            | 82.31 75.3 60.96 53.87 51.36 53.2 57.21 63.43 40.53 18.3
                                   80 76.97 73.34 67.43 66.98 69.81 64.73 57.3 0.19 58.59
                UNETR            | 80.68 72.14 64.8 64.72 62.08 61.21 65.02 71.54 0 53.69
                                   74.43 71.08 73.36 72.61 72.47 72.58 74.88 67.07 0 61.81
                SegResNet        | 82.89 83.86 78.05 75.16 69.47 65.11 61.71 69.13 0 0
                                   84.31 83.22 86.83 86.83 78.11 71.43 73.48 50.78 0 63.18
                Attention U-Net  | 85.48 82.94 77.47 74.12 70.67 71.21 64.49 70.01 38.06 6.95
                                   84.45 83.41 86.15 84.31 85.14 76.6 69.41 0 0 63.73
                Swin UNETR       | 84.98 78.81 70.89 68.08 65.52 64.48 68.74 74.78 49.35 0
                                   79.84 76.95 78.16 75.05 73.78 73.46 75.5 68.23 0 64.58
                nnU-NetV2        | 87.58 85.81 80.45 81.29 80.86 79.44 81.63 80.04 65.25 59.39
                                   83.32 82.67 86.47 84.76 85.9 85.24 84.09 77.93 0 76.43
                Modified BiSeNet | 86.43 84.47 79.83 79.73 72.78 64.62 66.21 69.63 30.13 0
                                   83.93 84.04 86.13 83.93 75.61 68.92 72.22 55.76 0 65.49
                U-BiSeNet        | 86.13 84.35 79.32 78.18 70.84 65.23 66.82 69.65 32.99 0
                                   84.77 84.24 86.69 86.55 78.69 69.77 72.2 57.29 0.84 66.03
                SpineParseNet    | 88.96 85.92 83.34 82.46 80.21 83.09 76.48 77.64 78.78 31.73
                                   81.94 82.95 83.73 83.8 85.29 85.02 87.23 84.37 55.09 78.84
                ATM-Net          | 87.18 85.08 81.64 82.1 80.29 76.26 79.25 81.04 67.03 80.18
                                   85.01 84.45 85.25 89.13 87.96 88.11 86.14 85.55 61.02 81.72
            """), "The paper's prompts at test time come from the reference masks. S is S1 here.",
        ),
        PaperTable(
            "atm-net/spider", "SPIDER, 19 structures", METHODS["atm-net"].citation, _ATM_COLUMNS,
            _rows("""
                U-Net           | 52.52 42.23 49.94 25.04
                UNETR           | 60.16 52.05 15.49 3.92
                SegResNet       | 61.58 54.04 13.62 4.16
                Attention U-Net | 62.72 54.81 15.67 4.44
                Swin UNETR      | 66.67 59.31 10.29 3.21
                nnU-NetV2       | 71.59 63.49 14.28 4.52
                Modified BiSeNet | 64.56 56.03 12.24 3.40
                U-BiSeNet       | 64.67 56.20 10.19 3.08
                SpineParseNet   | 71.08 63.16 14.05 3.15
                CCAE only       | 69.23 61.01 12.97 4.02
                HASF only       | 73.00 64.04 12.07 3.54
                HASF, option 1  | 69.54 61.93 11.06 3.07
                HASF, option 2  | 71.64 64.04 9.61 2.78
                ATM-Net         | 79.39 70.56 9.91 2.77
            """), _ATM_NOTE,
        ),
        PaperTable(
            "scar-net/lumbar", "Five lumbar vertebrae and five discs", METHODS["scar-net"].citation,
            {**_by_structure(_SCAR_STRUCTURES, "Average"), "Precision": "macro.precision"},
            _rows("""
                Baseline (DGMSNet) | 93.16 94.42 94.49 94.32 95.19 93.37 94.81 91.91 93.42 94.85 93.99 –
                MCCA               | 94.77 95.15 94.79 95.84 96.07 94.41 93.57 93.56 95.52 93.88 94.76 –
                AT                 | 94.65 95.20 95.36 96.45 95.78 94.26 93.27 92.53 93.13 95.74 94.64 –
                SCAR-Net           | 96.05 96.43 95.78 96.39 96.55 95.78 96.05 93.88 93.70 95.93 95.65 95.50
                MRLN               | 83.11 83.70 98.29 92.65 94.23 79.79 82.20 88.49 89.97 89.93 88.24 –
                SWDN               | 86.45 89.03 92.02 93.49 93.41 83.21 88.05 90.49 89.42 88.87 89.44 –
                GCSN               | 92.90 94.22 95.11 94.09 94.57 90.95 91.43 92.53 92.89 91.02 92.97 –
                SSHS               | 90.20 89.64 89.56 89.60 88.66 91.82 90.42 92.87 90.38 90.67 90.38 –
                SIMs               | 94.05 94.54 94.28 94.21 93.06 92.77 93.37 93.42 91.87 92.65 93.42 –
                DGMS               | 93.16 94.42 94.49 94.32 95.19 93.37 93.42 91.91 94.81 94.85 93.99 –
                SAM                | 92.13 92.09 91.92 91.91 90.86 92.30 91.90 93.15 91.13 91.66 91.91 –
                CDAN               | 92.90 91.86 92.74 92.85 92.43 89.89 90.82 92.33 91.14 90.80 91.78 –
            """),
            "Mid-sagittal slices of an in-house set. The baseline of Table 1 is the DGMS of Table 2, where L2/L3 and "
            "L4/L5 have changed places.",
        ),
        _verdiff("ct-verse", "CT-Verse: vertebrae against the rest", """
            U-Net       | 83.25±4.08 71.35±3.23
            FCN         | 82.22±4.34 69.88±3.61
            DeepLabv3   | 80.41±4.50 67.29±3.27
            nnU-Net     | 92.98±3.86 86.97±2.93
            Swin-U-Net  | 81.65±4.19 69.27±3.44
            SAM         | 79.78±4.23 66.89±3.50
            MedSegDiff  | 92.44±3.75 88.27±2.91
            Verdiff-Net | 94.37±3.73 90.89±2.87
        """),
        _verdiff("ct-pri", "CT-Pri: vertebrae against the rest", """
            U-Net       | 93.22±1.83 87.34±3.19
            FCN         | 93.24±1.79 87.36±3.07
            DeepLabv3   | 93.06±1.88 86.94±4.05
            nnU-Net     | 93.33±1.69 88.04±2.97
            Swin-U-Net  | 91.27±2.15 84.02±5.64
            SAM         | 80.36±3.44 76.35±8.21
            MedSegDiff  | 91.07±1.69 84.51±2.86
            Verdiff-Net | 93.84±1.56 91.87±2.79
        """),
        _verdiff("x-ray", "X-ray: vertebrae against the rest", """
            U-Net       | 60.78±10.23 43.75±9.82
            FCN         | 65.30±9.53 52.60±8.17
            DeepLabv3   | 72.44±8.59 63.91±6.72
            nnU-Net     | 89.77±6.69 81.69±5.26
            Swin-U-Net  | 68.93±9.06 53.13±8.08
            SAM         | 67.89±9.22 52.56±13.32
            MedSegDiff  | 87.59±7.24 76.68±5.78
            Verdiff-Net | 88.74±7.04 77.04±5.75
        """),
        _verdiff("mr", "MR: vertebrae against the rest", """
            U-Net       | 91.23±2.76 84.00±4.59
            FCN         | 91.50±2.75 84.44±4.57
            DeepLabv3   | 91.06±2.93 83.70±5.15
            nnU-Net     | 92.16±2.73 84.97±4.53
            Swin-U-Net  | 85.86±7.94 75.39±16.48
            SAM         | 81.00±9.27 70.92±17.57
            MedSegDiff  | 92.96±2.87 86.53±3.71
            DDPM        | 88.68 83.96
            MSFM only   | 91.96 86.82
            NSA only    | 90.27 85.21
            Verdiff-Net | 93.86±1.98 88.58±3.83
        """),
        PaperTable(
            "la-caf/pulmonary", "Pulmonary arteries and veins, right and left", METHODS["la-caf"].citation,
            {"DSC": "macro.dice"}, _rows("LA-CAF | 76.22"), "718 CTs, fully and half labeled.",
        ),
    )
}  # fmt: skip
"""Every table by its id."""


def known_rows(ids: Sequence[str]) -> set[str]:
    """Names of all rows of these tables."""
    return {name for i in ids for name in PAPERS[i].rows}
