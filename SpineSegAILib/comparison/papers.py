"""What the papers report, to stand beside what is measured here. Their figures, not ours: other cases, other splits.

A column's key says where its counterpart is in a summary of `evaluation`: ``overall`` (mean over all structures),
``macro`` (mean of the structures' means), ``group:NAME``, ``structure:NAME``, and the metric. Shares are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.catalog import METHODS


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        id: as configurations name it.
        title: what was segmented.
        citation: of the paper.
        columns: title → key.
        rows: name of the method in the paper → figures, in the order of the columns.
        note: what to know when comparing.
    """

    id: str
    title: str
    citation: str
    columns: Mapping[str, str]
    rows: Mapping[str, tuple[float, ...]]
    note: str


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
    value = row.get(metric)
    return None if value is None else 100 * value if is_share(metric) else value


def is_share(metric: str) -> bool:
    """Whether papers give the metric in percent."""
    return not metric.endswith(("_mm", "_px"))


def _rows(text: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for line in text.strip().splitlines():
        name, figures = line.split("|")
        found[name.strip()] = tuple(float(f) for f in figures.split())
    return found


_ATM_COLUMNS = {"DSC": "macro.dice", "Jaccard": "macro.iou", "HD95 px": "macro.hd95_px", "ASD px": "macro.asd_px"}
_ATM_NOTE = (
    "The paper's prompts at test time come from the reference masks; structures that a method missed are left out of "
    "its distances; its pixels are those of images resized to 384 × 384, ours those of the cases' own slices."
)
_SCAR_STRUCTURES = ("L1", "L2", "L3", "L4", "L5", "L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1")
_VERDIFF_COLUMNS = {"Dice": "overall.dice", "IoU": "overall.iou"}
_VERDIFF_NOTE = "The paper's IoU contradict its Dice for some rows: compare Dice."


def _verdiff(name: str, title: str, text: str) -> PaperTable:
    citation = METHODS["verdiff-net"].citation
    return PaperTable(f"verdiff-net/{name}", title, citation, _VERDIFF_COLUMNS, _rows(text), _VERDIFF_NOTE)


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
            {**{name: f"structure:{name}.dice" for name in _SCAR_STRUCTURES}, "Average": "macro.dice"},
            _rows("""
                Baseline (DGMSNet) | 93.16 94.42 94.49 94.32 95.19 93.37 94.81 91.91 93.42 94.85 93.99
                MCCA               | 94.77 95.15 94.79 95.84 96.07 94.41 93.57 93.56 95.52 93.88 94.76
                AT                 | 94.65 95.20 95.36 96.45 95.78 94.26 93.27 92.53 93.13 95.74 94.64
                SCAR-Net           | 96.05 96.43 95.78 96.39 96.55 95.78 96.05 93.88 93.70 95.93 95.65
            """),
            "Mid-sagittal slices of an in-house set. The baseline's L2/L3 and L4/L5 are swapped between the paper's "
            "own tables. Only averages are given for MRLN 88.24, SWDN 89.44, GCSN 92.97, SSHS 90.38, SIMs 93.42, SAM "
            "91.91 and CDAN 91.78.",
        ),
        _verdiff("ct-verse", "CT-Verse: vertebrae against the rest", """
            U-Net       | 83.25 71.35
            FCN         | 82.22 69.88
            DeepLabv3   | 80.41 67.29
            nnU-Net     | 92.98 86.97
            Swin-U-Net  | 81.65 69.27
            SAM         | 79.78 66.89
            MedSegDiff  | 92.44 88.27
            Verdiff-Net | 94.37 90.89
        """),
        _verdiff("ct-pri", "CT-Pri: vertebrae against the rest", """
            U-Net       | 93.22 87.34
            FCN         | 93.24 87.36
            DeepLabv3   | 93.06 86.94
            nnU-Net     | 93.33 88.04
            Swin-U-Net  | 91.27 84.02
            SAM         | 80.36 76.35
            MedSegDiff  | 91.07 84.51
            Verdiff-Net | 93.84 91.87
        """),
        _verdiff("x-ray", "X-ray: vertebrae against the rest", """
            U-Net       | 60.78 43.75
            FCN         | 65.30 52.60
            DeepLabv3   | 72.44 63.91
            nnU-Net     | 89.77 81.69
            Swin-U-Net  | 68.93 53.13
            SAM         | 67.89 52.56
            MedSegDiff  | 87.59 76.68
            Verdiff-Net | 88.74 77.04
        """),
        _verdiff("mr", "MR: vertebrae against the rest", """
            U-Net       | 91.23 84.00
            FCN         | 91.50 84.44
            DeepLabv3   | 91.06 83.70
            nnU-Net     | 92.16 84.97
            Swin-U-Net  | 85.86 75.39
            SAM         | 81.00 70.92
            MedSegDiff  | 92.96 86.53
            DDPM        | 88.68 83.96
            MSFM only   | 91.96 86.82
            NSA only    | 90.27 85.21
            Verdiff-Net | 93.86 88.58
        """),
        PaperTable(
            "la-caf/pulmonary", "Pulmonary arteries and veins, right and left", METHODS["la-caf"].citation,
            {"DSC": "macro.dice"}, _rows("LA-CAF | 76.22"), "718 CTs, fully and half labelled.",
        ),
    )
}  # fmt: skip
"""Every table by its id."""


def known_rows(ids: Sequence[str]) -> set[str]:
    """Names of all rows of these tables."""
    return {name for i in ids for name in PAPERS[i].rows}
