"""What a correction brings: ``python Testing/Benchmarks/correction.py DATA/lumbar_mr/dataset.json``.

On copies of the validation cases without their lower third, where the sacrum is gone and levels are a guess, a
simulated reader (who has the reference) does one thing, and what the hint did not say is scored:

- *anchor*: the result as it is, and one click “this one is …” on the structure in the middle (`correction.set_level`);
- *lower end*: segmented again with the lowest vertebra wholly in view as a hint;
- *locked*: segmented again with the reference of the middle structure locked; voxels changed or overlapped must be 0.

Then, without a network: the reference of each case with all names off by one, and with one vertebra missing and two
merged; how many actions the reader needs until every name is right. Last, how long each tool takes on 39 × 305 × 305.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from SpineSegAILib import correction  # noqa: E402
from SpineSegAILib.anatomy import STRUCTURES, structure  # noqa: E402
from SpineSegAILib.correction import LabeledStructures  # noqa: E402
from SpineSegAILib.correction import voxels as editing  # noqa: E402
from SpineSegAILib.datasets.manifest import Case, read_label, read_manifest  # noqa: E402
from SpineSegAILib.errors import SpineSegAIError  # noqa: E402
from SpineSegAILib.evaluation import make_variant  # noqa: E402
from SpineSegAILib.hints import Hints  # noqa: E402
from SpineSegAILib.imaging import read_image  # noqa: E402


def main() -> None:
    """Runs all parts and prints a table each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--checkpoint", help="name or file; the default one if not given")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves them alone")
    parser.add_argument("--json", metavar="FILE", help="write the figures, too")
    args = parser.parse_args()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    from SpineSegAILib.inference import Predictor

    predictor = Predictor(args.checkpoint, device="cpu")
    cases = [c for c in read_manifest(args.dataset).cases("validation") if c.label and args.only in c.name]
    found: dict[str, Any] = {"checkpoint": predictor.info.name, "cropped": [], "labels": []}
    print(f"{predictor.info.name}, lower third cut off: names right / Dice, of structures that the hint did not name")
    print(f"{'case':16}{'before':>16}{'anchor':>16}{'lower end':>16}{'locked':>16}  lock changed, actions")
    for case in cases:
        row = cropped(case, predictor)
        found["cropped"].append(row)
        shown = [f"{r['right']}/{r['of']} {r['dice']:.3f}" if (r := row.get(k)) else "–" for k in MODES]
        print(
            f"{row['case']:16}" + "".join(f"{s:>16}" for s in shown) + f"  {row.get('lock_changed', '–')}", flush=True
        )
    print("\nreference labels made wrong: actions until every name is right")
    for case in cases:
        row = wrong_labels(case)
        found["labels"].append(row)
        print(f"{row['case']:16}" + ", ".join(f"{k}: {v}" for k, v in row.items() if k != "case"), flush=True)
    found["seconds"] = timings()
    print("\n39 × 305 × 305, median seconds of 5: " + ", ".join(f"{k} {v:.3f}" for k, v in found["seconds"].items()))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


MODES = ("before", "anchor", "lower end", "locked")


# --- with the network -------------------------------------------------------------------------------------------------


def cropped(case: Case, predictor: Any) -> dict[str, Any]:
    """Scores of one case before and after each hint."""
    image, label = make_variant(read_image(case.image), read_label(case), "bottom-third-off")
    whole = counts(read_label(case))
    truth = sitk.GetArrayFromImage(label)
    wanted = [i for i, n in counts(label).items() if i in case.annotated and n > 0.3 * whole[i]]
    wanted.sort(key=lambda i: STRUCTURES[i].order or 0)
    middle = wanted[len(wanted) // 2]
    row: dict[str, Any] = {"case": case.name}
    before = predictor.segment(image)
    row["before"] = score(truth, before.labels, [i for i in wanted if i != middle])

    point = inner_point(label, middle)
    labelling = LabeledStructures.of(before.labels, before.scheme)
    values = sitk.GetArrayFromImage(before.labels)
    try:
        made = correction.set_level(labelling, correction.structure_at(before.labels, point), middle)
        after = like(before.labels, made.apply(values))
        row["anchor"] = score(truth, after, [i for i in wanted if i != middle])
    except SpineSegAIError as error:
        row["anchor_refused"] = str(error)

    ends = [i for i in wanted if STRUCTURES[i].is_vertebral and counts(label)[i] == whole[i]]
    if ends:
        row["lower end"] = again(predictor, image, truth, Hints(visible=(None, ends[-1])), wanted, ends[-1])
    locked = like(label, np.where(truth == middle, middle, 0).astype(np.int16))
    try:
        result = predictor.segment(image, Hints(locked=locked))
        row["locked"] = score(truth, result.labels, [i for i in wanted if i != middle])
        row["lock_changed"] = int(((sitk.GetArrayFromImage(result.labels) == middle) != (truth == middle)).sum())
    except SpineSegAIError as error:
        row["locked_refused"] = str(error)
    return row


def again(
    predictor: Any, image: sitk.Image, truth: np.ndarray, hints: Hints, wanted: list[int], said: int
) -> dict[str, Any] | None:
    """Score of a segmentation with hints, without what the hint named."""
    try:
        return score(truth, predictor.segment(image, hints).labels, [i for i in wanted if i != said])
    except SpineSegAIError:
        return None


def score(truth: np.ndarray, labels: sitk.Image, wanted: list[int]) -> dict[str, Any]:
    """Names right (the label that most of a structure got) and level-strict Dice."""
    guess = sitk.GetArrayFromImage(labels)
    right, dice = 0, []
    for sid in wanted:
        own, theirs = truth == sid, guess == sid
        kinds = {i for i, s in STRUCTURES.items() if s.is_vertebral == STRUCTURES[sid].is_vertebral}
        inside = guess[own]
        inside = inside[np.isin(inside, list(kinds - {0}))]
        right += int(inside.size > 0 and np.bincount(inside).argmax() == sid)
        dice.append(2 * float((own & theirs).sum()) / float(own.sum() + theirs.sum()))
    return {"right": right, "of": len(wanted), "dice": float(np.mean(dice))}


def counts(label: sitk.Image) -> dict[int, int]:
    """Voxels by structure."""
    ids, n = np.unique(sitk.GetArrayViewFromImage(label), return_counts=True)
    return {int(i): int(k) for i, k in zip(ids, n, strict=True) if i}


def inner_point(label: sitk.Image, sid: int) -> tuple[float, ...]:
    """The voxel of a structure that is nearest to its center, in LPS mm."""
    index = np.argwhere(sitk.GetArrayViewFromImage(label) == sid)
    nearest = index[np.argmin(((index - index.mean(axis=0)) ** 2).sum(axis=1))]
    return label.TransformIndexToPhysicalPoint([int(i) for i in nearest[::-1]])


def like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    """Labels on the grid of another image."""
    result = sitk.GetImageFromArray(array.astype(np.int16))
    result.CopyInformation(image)
    return result


# --- without it -------------------------------------------------------------------------------------------------------


def wrong_labels(case: Case) -> dict[str, Any]:
    """Actions that the reader needs on the reference, made wrong in several ways."""
    label = read_label(case)
    truth = sitk.GetArrayFromImage(label)
    row: dict[str, Any] = {"case": case.name}
    for to in ("up", "down"):
        try:
            made = correction.shift(LabeledStructures.of(truth), to)  # type: ignore[arg-type]
        except SpineSegAIError:
            continue  # what is annotated ends at the sacrum: there are no such labels
        row[f"off by one {to}"] = simulated_reader(label, made.apply(truth), truth)
    bones = [i for i in LabeledStructures.of(truth).vertebrae if STRUCTURES[i].name != "S1"]
    if len(bones) >= 5:
        missing, upper, lower = bones[-2], bones[1], bones[2]
        wrong = np.where(truth == missing, 0, truth)
        wrong[wrong == upper] = lower
        # Counted from below as if nothing were missing or merged.
        left = [i for i in bones if i not in (missing, upper)]
        for old, new in zip(left[:-1][::-1], bones[:-1][::-1], strict=False):
            wrong = np.where(
                (wrong == old) & np.isin(truth, [old, upper] if old == lower else [old]), 1000 + new, wrong
            )
        wrong = np.where(wrong >= 1000, wrong - 1000, wrong).astype(np.int16)
        row["one missing, two merged"] = simulated_reader(label, wrong, truth)
    return row


def simulated_reader(image: sitk.Image, labels: np.ndarray, truth: np.ndarray) -> int | str:
    """How many actions until the names are right. The reader looks from below upwards and mends the first fault:

    a vertebra that is two is split; one that is overlooked is inserted as a gap; else “this one is …” for all above.
    """
    labels = labels.copy()
    bones = LabeledStructures.of(truth).vertebrae or [
        i for i in LabeledStructures.of(truth).present if STRUCTURES[i].order is not None
    ]
    bones = sorted(bones, key=lambda i: -(STRUCTURES[i].order or 0))
    for actions in range(6):
        named = {i: majority(labels[truth == i]) for i in bones}
        shared = [i for i in bones if named[i] and list(named.values()).count(named[i]) > 1]
        false = [i for i in bones if named[i] not in (0, i)]
        if not shared and not false:
            return actions
        case = LabeledStructures.of(labels)
        if shared:
            one = named[shared[0]]
            made = correction.split(case, like(image, labels), one)
        else:
            first = false[0]
            # All are off by the same count: one anchor. Else those below are right, and those above follow.
            steps = {STRUCTURES[named[i]].order - STRUCTURES[i].order for i in bones if named[i]}  # type: ignore[operator]
            made = correction.set_level(case, named[first], first, "all" if len(steps) == 1 else "above")
        labels = made.apply(labels)
    return "more than 5"


def majority(values: np.ndarray) -> int:
    """The commonest label, background included."""
    return int(np.bincount(values).argmax())


def timings() -> dict[str, float]:
    """Median seconds of each tool, applied and undone, on a large label image."""
    names = "T10 T11 T12 L1 L2 L3 L4 L5"
    ids = [structure(n).id for n in names.split()]
    values = np.zeros((39, 305, 305), np.int16)
    for k, sid in enumerate(ids):
        values[8:30, 10 + 35 * k : 34 + 35 * k, 120:150] = sid
    values[[14, 15], 185:209] = 0
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.25, 1.25, 2.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    point = image.TransformIndexToPhysicalPoint((130, 200, 20))
    tools = {
        "shift": lambda c: correction.shift(c, "up"),
        "set": lambda c: correction.set_level(c, correction.structure_at(image, point), "L2"),
        "swap": lambda c: correction.swap(c, ids[2], ids[3]),
        "merge": lambda c: correction.merge(c, ids[4], ids[5]),
        "split": lambda c: correction.split(c, image, ids[4]),
        "delete": lambda c: correction.delete(c, ids[4]),
        "insert": lambda c: correction.insert(c, ids[4]),
        "counting": lambda c: correction.switch_counting(c, "L6"),
        "interpolate": lambda c: editing.interpolate(image, ids[5]),
        "smooth": lambda c: editing.smooth(image, ids[5], 2.0),
        "replace in a box": lambda c: editing.replace_inside(values, values[::-1], (slice(5, 30),) * 3),
    }
    result = {}
    for name, tool in tools.items():
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            made = tool(LabeledStructures.of(values))
            after = made.apply(values)
            seconds.append(time.perf_counter() - started)
            if not np.array_equal(made.undo(values).apply(after), values):
                raise RuntimeError(f"{name} is not undone exactly")
        result[name] = statistics.median(seconds)
    return result


if __name__ == "__main__":
    main()
