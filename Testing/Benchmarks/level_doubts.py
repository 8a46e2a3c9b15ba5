"""Are wrong levels doubted? ``python Testing/Benchmarks/level_doubts.py DATA/lumbar_mr/dataset.json …``.

Of each validation case whole and cropped copies are segmented: 20 to 50 % of the view off below, or above, or some of
both. A copy is *wrong* where most of a reference structure (`MINIMUM_LEFT` of it in view) has another level's name.
For each copy: the level confidence, and whether a warning doubts the levels. Then, for several limits of the
confidence, how many of the wrong copies lie below it, and how many of the right ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from SpineSegAILib.anatomy import STRUCTURES  # noqa: E402
from SpineSegAILib.datasets.manifest import read_label, read_manifest  # noqa: E402
from SpineSegAILib.evaluation.variants import cut_ids  # noqa: E402
from SpineSegAILib.imaging import read_image  # noqa: E402

CROPS = (  # shares of the height, off above and below
    (0.0, 0.0), (0.2, 0.0), (0.33, 0.0), (0.45, 0.0), (0.0, 0.2), (0.0, 0.27), (0.0, 0.33), (0.0, 0.4), (0.0, 0.5),
    (0.15, 0.3), (0.3, 0.3),
)  # fmt: skip
LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def main() -> None:
    """Prints a row per copy and the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", nargs="+")
    parser.add_argument("--checkpoint", help="name or file; the default one if not given")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--json", metavar="FILE", help="write the rows, too")
    args = parser.parse_args()
    from SpineSegAILib.inference import Predictor

    predictor = Predictor(args.checkpoint, device="cpu")
    rows = []
    for dataset in args.dataset:
        for case in read_manifest(dataset).cases("validation"):
            if not case.label or args.only not in case.name:
                continue
            image, label = read_image(case.image), read_label(case)
            for row in copies(predictor, image, label):
                rows.append({"case": case.name, **row})
                print(json.dumps(rows[-1]), flush=True)
    report(rows)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def copies(predictor: Any, image: sitk.Image, label: sitk.Image) -> Iterator[dict[str, Any]]:
    """What was found in each cropped copy that shows three levels or more."""
    image, label = (sitk.DICOMOrient(i, "PIR") for i in (image, label))  # y runs downwards
    height = image.GetSize()[1]
    for above, below in CROPS:
        rows = slice(round(above * height), height - round(below * height))
        left = label[:, rows, :]
        cut = cut_ids(label, left)
        truth = sitk.GetArrayFromImage(left)
        wanted = [i for i in np.unique(truth).tolist() if i and STRUCTURES[i].is_counted and i not in cut]
        if len([i for i in wanted if STRUCTURES[i].is_vertebral]) < 3 and len(wanted) < 4:
            continue
        result = predictor.segment(image[:, rows, :])
        guess = sitk.GetArrayFromImage(result.labels)
        steps = []
        for sid in wanted:
            alike = [i for i, s in STRUCTURES.items() if i and s.is_vertebral == STRUCTURES[sid].is_vertebral]
            inside = guess[truth == sid]
            inside = inside[np.isin(inside, alike)]
            inside = inside[inside > 0]
            if inside.size:
                steps.append(int(np.bincount(inside).argmax()) - sid)
        yield {
            "off": [above, below],
            "sacrum": bool((guess == 26).any()),
            "structures": len(steps),
            "wrong": sum(step != 0 for step in steps),
            "step": int(np.median(steps)) if steps else 0,
            "confidence": result.level_confidence,
            "doubted": any("uncertain" in w or "?" in w for w in result.warnings),
            "warnings": list(result.warnings),
        }


def report(rows: list[dict[str, Any]]) -> None:
    """How well doubts tell wrong names."""
    for name, chosen in (
        ("all", rows),
        ("sacrum found", [r for r in rows if r["sacrum"]]),
        ("no sacrum found", [r for r in rows if not r["sacrum"]]),
    ):
        wrong, right = ([r for r in chosen if bool(r["wrong"]) is w] for w in (True, False))
        print(f"\n{name}: {len(chosen)} copies, {len(wrong)} with a wrong level")
        said = [sum(r["doubted"] for r in group) for group in (wrong, right)]
        print(f"  doubted in words: {said[0]}/{len(wrong)} of the wrong, {said[1]}/{len(right)} of the right")
        for limit in LIMITS:
            below = [sum((r["confidence"] or 0) < limit for r in group) for group in (wrong, right)]
            print(f"  confidence < {limit}: {below[0]}/{len(wrong)} of the wrong, {below[1]}/{len(right)} of the right")


if __name__ == "__main__":
    main()
