"""What clicks bring: ``python Testing/Benchmarks/clicks.py DATA/lumbar_mr/dataset.json DATA/spider/dataset.json``.

Every annotated structure of the validation cases is corrected from two beginnings: what the default checkpoint drew,
and the reference with damage made on purpose (`training.damage`). A simulated reader, careful or careless, clicks until
the Dice is 0.95, at most 20 times. Beside it, after the same reader's clicks: spheres of 3 mm painted or erased there;
the beginning with its edges smoothed by 2 mm; and the default checkpoint run again with all else that is drawn locked.

Printed: mean Dice of the structures that begin below 0.90 after 1, 3 and 5 clicks, the median number of clicks to 0.95,
the share of clicks that make their structure worse by more than 0.01, voxels of locked structures that changed, and
processor seconds of a click on one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from SpineSegAILib.anatomy import GENERIC_IDS, structure  # noqa: E402
from SpineSegAILib.correction import Click, click_correction, load_click_method, smooth  # noqa: E402
from SpineSegAILib.datasets.manifest import Case, read_case, read_cases  # noqa: E402
from SpineSegAILib.errors import SpineSegAIError  # noqa: E402
from SpineSegAILib.hints import Hints  # noqa: E402
from SpineSegAILib.imaging.boxes import bounding_box  # noqa: E402
from SpineSegAILib.imaging.geometry import Geometry, canonical_axes, like  # noqa: E402
from SpineSegAILib.methods.clicking import simulated_click  # noqa: E402
from SpineSegAILib.training.damage import damaged  # noqa: E402

MOST_CLICKS = 20
GOOD, LOW = 0.95, 0.90
SHOWN = (1, 3, 5)
SPHERE_MM, SMOOTH_MM = 3.0, 2.0
MARGIN_MM = 40.0
"""Around a structure and its reference: a reader looks for its errors there."""


@dataclass
class Trial:
    """A structure to correct.

    Attributes:
        case, structure, beginning: its name, the structure's, “default” or “damaged”.
        image: of the case.
        labels: as they are at the beginning (z, y, x).
        truth: bool (z, y, x).
        sid: id of the structure.
    """

    case: str
    structure: str
    beginning: str
    image: sitk.Image
    labels: np.ndarray
    truth: np.ndarray
    sid: int

    def __post_init__(self) -> None:
        self.spacing = np.array(self.image.GetSpacing()[::-1])
        margin = np.ceil(MARGIN_MM / self.spacing).astype(int).tolist()
        found = bounding_box(self.truth | (self.labels == self.sid), margin)
        assert found is not None
        self.box = found
        self.axes, _ = canonical_axes(Geometry.of(self.image))

    def dice(self, labels: np.ndarray) -> float:
        """Of the structure in some labels."""
        mask = labels == self.sid
        return 2 * float((mask & self.truth).sum()) / max(float(mask.sum() + self.truth.sum()), 1.0)

    def next_click(self, labels: np.ndarray, rng: np.random.Generator, careful: bool) -> Click | None:
        """What the simulated reader clicks on."""
        mask, truth = (a[self.box].transpose(self.axes) for a in (labels == self.sid, self.truth))
        spacing = self.spacing[list(self.axes)].tolist()
        found = simulated_click(truth & ~mask, mask & ~truth, spacing, rng, careful=careful)
        if found is None:
            return None
        index = np.empty(3)
        index[list(self.axes)] = found[0]
        index += [side.start for side in self.box]
        point = self.image.TransformContinuousIndexToPhysicalPoint(index[::-1].tolist())
        return Click(self.sid, point, found[1] > 0)


@dataclass
class Course:
    """What became of a trial by one way of correcting: Dice at the beginning and after each click."""

    dice: list[float]
    seconds: list[float] = field(default_factory=list)
    locked_changed: int = 0

    def after(self, clicks: int) -> float:
        """Dice after so many clicks; of one that ended earlier, the last."""
        return self.dice[min(clicks, len(self.dice) - 1)]

    @property
    def needed(self) -> int:
        """Clicks to `GOOD`; more than `MOST_CLICKS` where they did not do."""
        return next((n for n, value in enumerate(self.dice) if value >= GOOD), MOST_CLICKS + 1)


Way = Callable[[Trial, np.ndarray, Click, Sequence[Click]], np.ndarray]
"""(trial, labels, click, earlier clicks) → labels."""


def by_method(method: Any) -> Way:
    """Clicks followed by a method."""

    def follow(trial: Trial, labels: np.ndarray, click: Click, earlier: Sequence[Click]) -> np.ndarray:
        drawn = like(trial.image, labels)
        return click_correction(trial.image, drawn, [click], method, earlier=earlier).apply(labels)

    return follow


def by_sphere(trial: Trial, labels: np.ndarray, click: Click, earlier: Sequence[Click]) -> np.ndarray:
    """A ball painted or erased, as with the editor's brush."""
    index = np.array(trial.image.TransformPhysicalPointToContinuousIndex(click.point))[::-1]
    z, y, x = (((np.arange(n) - at) * mm) ** 2 for n, at, mm in zip(labels.shape, index, trial.spacing, strict=True))
    ball = z[:, None, None] + y[:, None] + x <= SPHERE_MM**2
    result = labels.copy()
    if click.add:
        result[ball] = trial.sid
    else:
        result[ball & (labels == trial.sid)] = 0
    return result


def course(trial: Trial, way: Way, seed: int, careful: bool, most: int) -> Course:
    """Clicks until the structure is good."""
    rng = np.random.default_rng(seed)
    labels, clicks = trial.labels, []
    result = Course([trial.dice(labels)])
    while len(clicks) < most and result.dice[-1] < GOOD:
        click = trial.next_click(labels, rng, careful)
        if click is None:
            break
        started = time.process_time()
        try:
            labels = way(trial, labels, click, clicks)
        except SpineSegAIError as error:  # such as an add beside a remove in one voxel
            print(f"{trial.case} {trial.structure}: {error}", file=sys.stderr)
            break
        result.seconds.append(time.process_time() - started)
        result.dice.append(trial.dice(labels))
        clicks.append(click)
    return result


def locked_changed(trial: Trial, method: Any, seed: int) -> int:
    """Voxels of all other structures that one click changes while they are locked."""
    click = trial.next_click(trial.labels, np.random.default_rng(seed), True)
    if click is None:
        return 0
    locked = sorted(set(np.unique(trial.labels).tolist()) - {0, trial.sid})
    try:
        made = click_correction(trial.image, like(trial.image, trial.labels), [click], method, locked=locked)
    except SpineSegAIError:  # it lies on one of them: refused
        return 0
    after, held = made.apply(trial.labels), np.isin(trial.labels, locked)
    return int((after[held] != trial.labels[held]).sum() + (np.isin(after, locked) & ~held).sum())


def trials(cases: Sequence[Case], predictor: Any, most: int, seed: int) -> Iterator[Trial]:
    """The structures of the cases, from both beginnings; of each case at most some, evenly chosen."""
    for number, case in enumerate(cases):
        image, reference = read_case(case)
        truth, drawn = (
            sitk.GetArrayFromImage(i).astype(np.int16) for i in (reference, predictor.segment(image).labels)
        )
        there = [sid for sid in case.annotated if sid not in GENERIC_IDS and (truth == sid).sum() > 50]
        if len(there) > most:
            there = [there[round(i)] for i in np.linspace(0, len(there) - 1, most)]
        for sid in there:
            own, name = truth == sid, structure(sid).name
            counts = np.bincount(drawn[own])
            counts[0] = 0
            called = int(counts.argmax()) if counts.any() else sid
            swapped = np.where(drawn == called, sid, np.where(drawn == sid, called, drawn)).astype(np.int16)
            yield Trial(case.name, name, "default", image, swapped, own, sid)
            rng = np.random.default_rng([seed, number, sid])
            around = np.where(truth > 0, truth, np.where(drawn == sid, 0, drawn)).astype(np.int16)
            box = bounding_box(own, np.ceil(MARGIN_MM / np.array(image.GetSpacing()[::-1])).astype(int).tolist())
            assert box is not None
            axes, _ = canonical_axes(Geometry.of(image))
            mask, others = (a[box].transpose(axes) for a in (own, (around > 0) & ~own))
            bad, left = damaged(mask, others, np.array(image.GetSpacing()[::-1])[list(axes)].tolist(), rng)
            back = np.argsort(axes)
            bad, left = bad.transpose(back), left.transpose(back)
            worse = around.copy()
            worse[box] = np.where(bad, sid, np.where(left, around[box], 0))
            yield Trial(case.name, name, "damaged", image, worse, own, sid)


def again(trial: Trial, predictor: Any) -> float:
    """Dice after the default checkpoint ran once more with all else that is drawn locked."""
    others = np.where(trial.labels == trial.sid, 0, trial.labels).astype(np.int16)
    try:
        found = predictor.segment(trial.image, Hints(locked=like(trial.image, others))).labels
    except SpineSegAIError:
        return trial.dice(trial.labels)
    array = sitk.GetArrayFromImage(found)
    counts = np.bincount(np.where(others > 0, 0, array)[trial.truth])
    counts[0] = 0
    called = int(counts.argmax()) if counts.any() else trial.sid
    return trial.dice(np.where((array == called) & (others == 0), trial.sid, 0))


def smoothed(trial: Trial) -> float:
    """Dice after the beginning's edges were smoothed."""
    try:
        made = smooth(like(trial.image, trial.labels), trial.sid, SMOOTH_MM)
    except SpineSegAIError:
        return trial.dice(trial.labels)
    return trial.dice(made.apply(trial.labels))


class Reader:
    """Who corrects, in every way there is.

    Args:
        checkpoint: that follows clicks; None for the shipped one.
        seed: of the clicks.
        quick: only the clicks, not what is set beside them.
    """

    def __init__(self, checkpoint: str | None, seed: int, quick: bool) -> None:
        import torch

        from SpineSegAILib.inference import Predictor

        torch.set_num_threads(1)
        self.method, self.seed = load_click_method(checkpoint), seed
        self.predictor = None if quick else Predictor(None, device="cpu")

    def follow(self, number: int, trial: Trial) -> tuple[dict[str, Course], int]:
        """What becomes of the trial of this number by each way, and how many voxels of locked structures changed."""
        made: dict[str, Course] = {}
        for name, careful in (("careful", True), ("careless", False)):
            seed = self.seed * 1000 + number
            made[f"clicks, {name} reader"] = course(trial, by_method(self.method), seed, careful, MOST_CLICKS)
            if self.predictor:
                made[f"spheres of 3 mm, {name} reader"] = course(trial, by_sphere, seed, careful, MOST_CLICKS)
        if self.predictor:
            begun = trial.dice(trial.labels)
            made["edges smoothed by 2 mm"] = Course([begun, smoothed(trial)])
            made["default again, all else locked"] = Course([begun, again(trial, self.predictor)])
        return made, locked_changed(trial, self.method, number)


_readers: list[Reader] = []
"""The one of a process of `followed`."""


def _arrive(begin: Callable[[], Reader]) -> None:
    _readers.append(begin())


def _follow(number: int, trial: Trial) -> tuple[Trial, dict[str, Course], int]:
    return trial, *_readers[0].follow(number, trial)


def followed(
    begin: Callable[[], Reader], several: Iterable[Trial], workers: int
) -> Iterator[tuple[Trial, dict[str, Course], int]]:
    """Each trial with `Reader.follow` of it, in their order; by several processes if wanted, with the same results."""
    if workers < 2:
        reader = begin()
        for number, trial in enumerate(several):
            yield trial, *reader.follow(number, trial)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_arrive, initargs=(begin,)) as pool:
        yield from (future.result() for future in [pool.submit(_follow, *pair) for pair in enumerate(several)])


def row(name: str, courses: Sequence[Course]) -> dict[str, Any]:
    """A line of the table."""
    low = [c for c in courses if c.dice[0] < LOW]
    open_ = [c for c in courses if c.dice[0] < GOOD]
    steps = np.concatenate([np.diff(c.dice) for c in courses] or [np.zeros(0)])
    seconds = [s for c in courses for s in c.seconds]
    return {
        "way": name,
        "structures": len(courses),
        "below": len(low),
        "start": float(np.mean([c.dice[0] for c in low])) if low else None,
        **{f"after_{n}": float(np.mean([c.after(n) for c in low])) if low else None for n in SHOWN},
        "clicks": float(np.median([c.needed for c in open_])) if open_ else None,
        "worse": float((steps < -0.01).mean()) if len(steps) else None,
        "seconds": float(np.mean(seconds)) if seconds else None,
    }


def table(rows: Sequence[dict[str, Any]], locked: int, count: int) -> str:
    """The figures as Markdown."""

    def show(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    lines = [
        f"| way | structures (below {LOW:.2f}) | start | 1 click | 3 | 5 | clicks to {GOOD} | worse | s/click |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [f"{r['structures']} ({r['below']})", show(r["start"], 3), *(show(r[f"after_{n}"], 3) for n in SHOWN)]
        clicks = r["clicks"]
        many = f"> {MOST_CLICKS}" if clicks is not None and clicks > MOST_CLICKS else show(clicks, 1)
        worse = "–" if r["worse"] is None else f"{r['worse']:.1%}"
        lines.append(f"| {r['way']} | {' | '.join([*cells, many, worse, show(r['seconds'], 2)])} |")
    lines.append(f"\nLocked voxels changed: {locked}, in {count} trials.")
    return "\n".join(lines)


def draw(curves: dict[str, Sequence[Course]], path: Path) -> None:
    """Mean Dice over clicks of the structures that begin below `LOW`, as PNG or SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    for name, courses in curves.items():
        low = [c for c in courses if c.dice[0] < LOW]
        if low:
            axes.plot(range(11), [np.mean([c.after(n) for c in low]) for n in range(11)], marker=".", label=name)
    axes.axhline(GOOD, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="clicks", ylabel="Dice", ylim=(None, 1.0))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def publish(info: Any, name: str, folder: Path, **said: str) -> None:
    """Writes the checkpoint under a name, with its card.

    Args:
        said: ``notes``, ``command`` and ``table`` of the card.
    """
    from SpineSegAILib.checkpoints import load_tensors, save_checkpoint
    from SpineSegAILib.evaluation.publish import LICENCE
    from SpineSegAILib.files import atomic_write
    from SpineSegAILib.methods.catalog import method_info
    from SpineSegAILib.results.templates import render

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.safetensors", folder / f"{name}.md") as (weights, card):
        save_checkpoint(weights, load_tensors(info), {**info.metadata, "licence": LICENCE})
        size = weights.stat().st_size / 1e6
        text = render(
            "click_card.md.j2", info=info, method=method_info(info.method), name=name, size=size, low=LOW, **said
        )
        card.write_text(text.rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Runs all trials and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", nargs="+")
    parser.add_argument("--checkpoint", help="that follows clicks; click-refine if not given")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--structures", type=int, default=99, metavar="N", help="of each case at most")
    parser.add_argument("--quick", action="store_true", help="only the clicks, not what is set beside them")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="structures corrected at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="draw Dice over clicks: .png, .svg")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="write checkpoint and card there")
    parser.add_argument("--name", default="click-refine", help="of the published checkpoint")
    parser.add_argument("--shown-dataset", default="", metavar="TEXT", help="how the card names the dataset")
    parser.add_argument("--notes", type=Path, metavar="FILE.md", help="the hand-written part of the card")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from SpineSegAILib.inference import Predictor

    cases = [c for c in read_cases(args.dataset, args.split) if c.label and args.only in c.name]
    ways: dict[str, list[Course]] = {}
    told: list[dict[str, Any]] = []
    locked = 0
    begin = partial(Reader, args.checkpoint, args.seed, args.quick)
    for trial, made, changed in followed(
        begin, trials(cases, Predictor(None, "cpu"), args.structures, args.seed), args.workers
    ):
        locked += changed
        for name, found in made.items():
            ways.setdefault(name, []).append(found)
        dice = {name: [round(d, 4) for d in found.dice] for name, found in made.items()}
        told.append({"case": trial.case, "structure": trial.structure, "beginning": trial.beginning, "dice": dice})
        first = made["clicks, careless reader"]
        print(f"{trial.case:20}{trial.structure:18}{trial.beginning:9}{' '.join(f'{d:.3f}' for d in first.dice[:7])}",
              file=sys.stderr, flush=True)  # fmt: skip
    rows = [row(name, courses) for name, courses in ways.items()]
    found = table(rows, locked, len(told))
    print(found)
    if args.publish:
        from SpineSegAILib.checkpoints import find_checkpoint

        few = f" --structures {args.structures}" if args.structures < 99 else ""
        publish(
            find_checkpoint(args.checkpoint or args.name), args.name, args.publish, table=found,
            notes=args.notes.read_text(encoding="utf-8").strip() if args.notes else "",
            command=f"python Testing/Benchmarks/clicks.py {args.shown_dataset or ' '.join(args.dataset)}{few}",
        )  # fmt: skip
    if args.json:
        document = {"rows": rows, "locked_changed": locked, "trials": told}
        args.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.curve:
        draw(ways, args.curve)


if __name__ == "__main__":
    main()
