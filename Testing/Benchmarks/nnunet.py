"""Side by side with nnU-Net v2 itself: the same training cases, split and time on the same machine.

    pip install nnunetv2
    python Testing/Benchmarks/nnunet.py DATASET.json OUTPUT --hours H [--split validation] [--configuration 2d]
        [--memory GB] [--method resenc-unet --preset small] [--unknown ignore|leave-out]

Writes the data set as nnU-Net wants it, runs its own commands, converts what it predicts back, and scores both with
`SpineSegAILib.evaluation` into OUTPUT/table.{json,csv,md,html}; then segments one volume with each in a new process,
for time and memory. Killed, it goes on where it was; OUTPUT/settings.json holds it to what was chosen, other choices
need another folder. `--prepare` ends after the first step and needs no nnU-Net.

**What is not annotated.** nnU-Net has no marginal loss: to it, what is not drawn is background. It can be told to
ignore voxels, though. `--unknown ignore` (default) marks the background voxels in which a structure that the case does
not have annotated could lie, which is what our own losses use (`training/regions.py`); ours still learn there that it
is background or one of those structures, nnU-Net learns nothing there. `--unknown leave-out` keeps only the structures
that are annotated in every training case, and scores those alone. How much is ignored is in OUTPUT/prepared.json.

**What is the same.** Cases, time (nnU-Net's planning and preprocessing not counted, nor ours), device. nnU-Net ends by
the clock through `nnunet_trainer/`, its polynomial learning rate over the time; else it is as it comes, with mirroring:
`--configuration` and `--plans` choose, and `--memory` how much its plan may take: on a processor, where its batches of
8 GB come to a step a minute, less gives it more steps. Ours are the last weights, since the scored cases must choose
none. What came out: Resources/Documentation/results/nnunet.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk

from SpineSegAILib.anatomy import STRUCTURES, sorted_ids
from SpineSegAILib.comparison.config import ComparisonConfig
from SpineSegAILib.comparison.run import Work, describe, run_comparison
from SpineSegAILib.comparison.tables import markdown, tabulate, write_tables
from SpineSegAILib.datasets.manifest import Case, read_label, read_manifest
from SpineSegAILib.errors import ConfigError, DatasetError, MissingPackageError, OutputError, SpineSegAIError
from SpineSegAILib.evaluation.page import write_page
from SpineSegAILib.evaluation.scores import CaseReport, Panoptic, StructureScore, UnscoredVolume, evaluate_case
from SpineSegAILib.evaluation.summary import summarize
from SpineSegAILib.files import atomic_write
from SpineSegAILib.imaging import read_image
from SpineSegAILib.training.regions import code_label

DATASET = "Dataset901_SpineSegAI"
NUMBER = "901"
TRAINER = "SpineSegAITimedTrainer"
NAME = "nnU-Net v2"
OWN_PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Prepared:
    """The data set as nnU-Net knows it.

    Attributes:
        ids: structure id → its label, from 1 on.
        training: nnU-Net's name → the case.
        validation: likewise; nnU-Net looks at them while it trains.
        scored: likewise; never shown to its training, unless they are the validation cases.
        ignored: share of the voxels of the training cases that are ignored.
    """

    ids: Mapping[int, int]
    training: Mapping[str, Case]
    validation: Mapping[str, Case]
    scored: Mapping[str, Case]
    ignored: float


def prepare(dataset: Path, split: str, output: Path, unknown: str = "ignore") -> Prepared:
    """Writes ``nnUNet_raw`` and our split; what is there stays.

    Raises:
        ConfigError: the folder is of another data set, split or way with the unknown.
        DatasetError: no structure is annotated in every case, and others are to be left out; or the split has no
            labels.
    """
    manifest = read_manifest(dataset)
    training = {f"train_{n:04d}": c for n, c in enumerate(manifest.cases("training")) if c.label}
    scored = {f"scored_{n:04d}": c for n, c in enumerate(manifest.cases(split)) if c.label}
    if not training or not scored:
        raise DatasetError(f"{dataset} has no labelled training cases, or none in “{split}”.", "Choose another split.")
    others = [c for c in manifest.splits.get("validation", ()) if c.label] if split != "validation" else []
    validation = {f"val_{n:04d}": c for n, c in enumerate(others)} or (scored if split == "validation" else {})
    sets = [set(c.annotated) for c in training.values()]
    ids = set.union(*sets) if unknown == "ignore" else set.intersection(*sets)
    if not ids:
        raise DatasetError("No structure is annotated in every training case.", "Say --unknown ignore.")
    digest = hashlib.sha256(dataset.read_bytes()).hexdigest()[:10]
    hold(output, {"dataset": digest, "split": split, "unknown": unknown})
    labels = {sid: number for number, sid in enumerate(sorted_ids(ids), start=1)}
    folder = output / "nnUNet_raw" / DATASET
    shares = []
    for name, case in {**training, **validation}.items():
        shares.append(_write_case(case, name, folder, labels, unknown))
    for name, case in scored.items():
        _write(_upright(read_image(case.image)), folder / "imagesTs" / f"{name}_0000.nii.gz")
    table = {
        "channel_names": {"0": manifest.modality if manifest.modality == "CT" else "MR"},  # CT is normalised otherwise
        "labels": {"background": 0, **{STRUCTURES[s].name: n for s, n in labels.items()}},
        "numTraining": len(shares),
        "file_ending": ".nii.gz",
    }
    if unknown == "ignore":
        table["labels"]["ignore"] = len(labels) + 1
    _write_json(table, folder / "dataset.json")
    splits = [{"train": list(training), "val": list(validation) or list(training)}]
    _write_json(splits, output / "nnUNet_preprocessed" / DATASET / "splits_final.json")
    ignored = float(np.mean(shares[: len(training)]))
    prepared = Prepared(labels, training, validation, scored, ignored)
    about = {"unknown": unknown, "ignored_share": ignored, "labels": table["labels"]}
    cases = {k: {n: c.name for n, c in getattr(prepared, k).items()} for k in ("training", "validation", "scored")}
    _write_json({**about, **cases}, output / "prepared.json")
    return prepared


def hold(output: Path, chosen: Mapping[str, Any]) -> None:
    """Holds a folder to what was chosen first: what lies there is reused, and would be taken for something else.

    Raises:
        ConfigError: something else was chosen before.
    """
    file = output / "settings.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, value in chosen.items():
        if before.get(name, value) != value:
            raise ConfigError(
                f"{output} was made with another {name}: {before[name]}, not {value}.", "Choose another folder."
            )
    _write_json({**before, **chosen}, file)


def nnunet_label(case: Case, ids: Mapping[int, int], unknown: str) -> sitk.Image:
    """A case's label with nnU-Net's numbers, upright; one more than the last where nothing is known."""
    label = _upright(read_label(case))
    array = sitk.GetArrayFromImage(label)
    result = np.zeros(array.shape, np.uint8)
    for sid, number in ids.items():
        result[array == sid] = number
    if unknown == "ignore":
        coded = code_label(array, case.annotated, ids, label.GetSpacing()[::-1])
        several = [code for code, allowed in enumerate(coded.sets) if len(allowed) > 1]
        result[np.isin(coded.codes, several)] = len(ids) + 1
    image = sitk.GetImageFromArray(result)
    image.CopyInformation(label)
    return image


def structure_labels(prediction: sitk.Image, ids: Mapping[int, int], like: sitk.Image) -> sitk.Image:
    """What nnU-Net predicted, as structure ids on the grid of the case."""
    table = np.zeros(max(ids.values()) + 1, np.int16)
    for sid, number in ids.items():
        table[number] = sid
    image = sitk.GetImageFromArray(table[sitk.GetArrayFromImage(prediction)])
    image.CopyInformation(prediction)
    # The same voxels in another order; NIfTI rounds where they are.
    return sitk.Resample(image, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkInt16)


def score(
    prepared: Prepared, predictions: Path, split: str, dataset: str, seconds: float, peak: float
) -> dict[str, Any]:
    """A report as of `evaluation.evaluate_dataset`, of what lies in a folder.

    Args:
        seconds: of the whole prediction, shared by the cases.
        peak: memory of it, MB.
    """
    reports: list[CaseReport] = []
    for name, case in prepared.scored.items():
        reference = read_label(case)
        predicted = structure_labels(sitk.ReadImage(str(predictions / f"{name}.nii.gz")), prepared.ids, reference)
        wanted = [sid for sid in case.annotated if sid in prepared.ids]
        report = evaluate_case(reference, predicted, wanted, case=case.name, source=case.source, patient=case.patient)
        report.not_offered = [STRUCTURES[sid].name for sid in case.annotated if sid not in prepared.ids]
        report.seconds, report.peak_mb = seconds / len(prepared.scored), peak
        reports.append(report)
    return {
        "format": 1, "dataset": dataset, "split": split, "checkpoint": NAME, "method": "nnU-Net",
        "variants": {"full": summarize(reports)},
    }  # fmt: skip


# --- its commands ----------------------------------------------------------------------------------------------------


def require_nnunet() -> None:
    """Raises:
    MissingPackageError: it is not installed, and how to get it.
    """
    if find_spec("nnunetv2") is None or shutil.which("nnUNetv2_train", path=_path()) is None:
        raise MissingPackageError(
            "nnU-Net v2 is not installed.",
            "Say “pip install nnunetv2” in this environment, or --prepare to write its files without it.",
        )


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def environment(output: Path, hours: float, iterations: int) -> dict[str, str]:
    """What nnU-Net's commands are told."""
    folders = {name: str((output / name).resolve()) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    trainer = str((Path(__file__).parent / "nnunet_trainer").resolve())
    return {
        **os.environ, **folders, "PATH": _path(), "nnUNet_extTrainer": trainer, "nnUNet_compile": "f",
        "SPINESEGAI_SECONDS": str(3600 * hours), "SPINESEGAI_ITERATIONS": str(iterations),
    }  # fmt: skip


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Runs a command; seconds and the largest memory (MB) of it and its children together.

    Raises:
        SpineSegAIError: it failed.
    """
    print("$", *command, flush=True)
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, env=env and dict(env))
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.5):  # looking costs time, too
            try:
                whole = psutil.Process(process.pid)
                every = [whole, *whole.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in every) / 2**20)
            except psutil.Error:
                continue

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        code = process.wait()
    finally:
        ended.set()
        thread.join()
    if code:
        raise SpineSegAIError(f"{command[0]} failed with exit code {code}.", "Its own message is above.")
    return time.perf_counter() - started, peak


def plan_words(plans: str, planner: str, memory: float | None) -> list[str]:
    """How nnU-Net is told to make plans of this name, if they are not its own.

    Args:
        plans: ends in the memory that they are for (`plans_for`), where that is not nnU-Net's.
        planner: of plans that are not of its usual kind.
    """
    words = [] if plans == OWN_PLANS else ["-overwrite_plans_name", plans]
    words += [] if plans in (OWN_PLANS, plans_for(OWN_PLANS, memory)) else ["-pl", planner]
    return words + (["-gpu_memory_target", f"{memory:g}"] if memory else [])


def plans_for(plans: str, memory: float | None) -> str:
    """nnU-Net asks for another name where the memory (GB) is not what it usually takes."""
    return f"{plans}_{memory:g}GB" if memory else plans


def train(arguments: argparse.Namespace, env: Mapping[str, str]) -> Path:
    """Plans, preprocesses and trains, as far as that is not done; the folder of the results."""
    preprocessed = arguments.output / "nnUNet_preprocessed" / DATASET
    results = arguments.output / "nnUNet_results" / DATASET
    folder = results / f"{TRAINER}__{arguments.plans}__{arguments.configuration}" / "fold_0"
    planned = preprocessed / f"{arguments.plans}_{arguments.configuration}"
    if not (arguments.output / "planned.json").exists():
        words = ["-d", NUMBER, "-c", arguments.configuration, "--verify_dataset_integrity", "-np", "2"]
        words += plan_words(arguments.plans, arguments.planner, arguments.memory)
        seconds, _ = run(["nnUNetv2_plan_and_preprocess", *words], env)
        _write_json({"seconds": seconds, "folder": planned.name}, arguments.output / "planned.json")
    if not (folder / "checkpoint_final.pth").exists():
        words = [
            NUMBER,
            arguments.configuration,
            "0",
            "-tr",
            TRAINER,
            "-p",
            arguments.plans,
            "-device",
            arguments.device,
        ]
        run(["nnUNetv2_train", *words, *(["--c"] if (folder / "checkpoint_latest.pth").exists() else [])], env)
    return folder


def predict(arguments: argparse.Namespace, images: Path, target: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Its predictor on a folder; seconds and memory."""
    words = ["-i", str(images), "-o", str(target), "-d", NUMBER, "-c", arguments.configuration, "-f", "0"]
    words += ["-tr", TRAINER, "-p", arguments.plans, "-device", arguments.device, "-npp", "1", "-nps", "1"]
    return run(["nnUNetv2_predict", *words], env)


# --- together --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Side by side with nnU-Net v2.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--hours", type=float, help="of each training; not needed to --prepare")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--unknown", choices=("ignore", "leave-out"), default="ignore")
    parser.add_argument("--configuration", default="2d", help="2d, 3d_fullres …")
    parser.add_argument("--plans", default=OWN_PLANS, help="name of the plans, e.g. nnUNetResEncUNetMPlans")
    parser.add_argument("--planner", default="nnUNetPlannerResEncM", help="makes other plans than nnUNetPlans")
    parser.add_argument("--memory", type=float, help="GB its plan is made for; its own 8 are batches of 62 slices here")
    parser.add_argument("--iterations", type=int, default=50, help="per epoch; nnU-Net's own 250 is long on a CPU")
    parser.add_argument("--method", default="resenc-unet")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--seed", type=int, default=35)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prepare", action="store_true", help="write nnU-Net's files, and no more")
    arguments = parser.parse_args()
    arguments.plans = plans_for(arguments.plans, arguments.memory)
    if not arguments.prepare:
        require_nnunet()
        if not arguments.hours:
            parser.error("--hours is needed, or --prepare")
    prepared = prepare(arguments.dataset, arguments.split, arguments.output, arguments.unknown)
    print(f"{len(prepared.ids)} structures, {prepared.ignored:.1%} of the training voxels ignored", flush=True)
    if arguments.prepare:
        return
    side_by_side(arguments, prepared)


def side_by_side(arguments: argparse.Namespace, prepared: Prepared) -> None:
    """Trains and scores both, and writes the table.

    Raises:
        ConfigError: the folder is of another training.
    """
    chosen = ("configuration", "plans", "planner", "hours", "iterations", "device")
    hold(arguments.output, {name: getattr(arguments, name) for name in chosen})
    env = environment(arguments.output, arguments.hours, arguments.iterations)
    folder = train(arguments, env)
    report_file = arguments.output / "nnunet-report.json"
    if not report_file.exists():
        target = arguments.output / "predictions"
        images = arguments.output / "nnUNet_raw" / DATASET / "imagesTs"
        seconds, peak = predict(arguments, images, target, env)
        name = read_manifest(arguments.dataset).name
        report = score(prepared, target, arguments.split, name, seconds, peak)
        report["parameters"] = int((folder / "parameters.txt").read_text(encoding="utf-8"))
        write_page(report, arguments.output / "nnunet-report.html")
        _write_json(report, report_file)
    report = json.loads(report_file.read_text(encoding="utf-8"))
    ours = f"SpineSegAI {arguments.method}"
    config = ComparisonConfig.model_validate(
        {
            "title": "Side by side with nnU-Net v2",
            "about": f"Unknown voxels: {arguments.unknown} ({prepared.ignored:.1%} of nnU-Net's training voxels "
            f"ignored). nnU-Net: {arguments.configuration}, {arguments.plans}. Its memory is that of all its "
            "processes.",
            "dataset": str(arguments.dataset.resolve()),
            "split": arguments.split,
            "budget": {"hours": arguments.hours},
            "seeds": [arguments.seed],
            "weights": "last",
            "entries": [{"name": ours, "method": arguments.method, "preset": arguments.preset}],
        }
    )
    work = Work(arguments.output / "ours", arguments.device, say=print)
    documents = run_comparison(config, work)
    for document in documents:
        document["pages"] = [f"ours/{page}" for page in document["pages"]]
        if arguments.unknown == "leave-out":
            document["report"]["variants"]["full"] = _only(document["report"]["variants"]["full"], prepared.ids)
    theirs = {
        "name": NAME, "paper": "", "seed": arguments.seed, "method": "nnU-Net", "preset": arguments.configuration,
        "taken": "", "steps": None, "hours": arguments.hours, "seen": [], "pages": ["nnunet-report.html"],
        "report": report,
    }  # fmt: skip
    found = tabulate(config, describe(config, work), [*documents, theirs])
    write_tables(found, arguments.output)
    print(markdown(found))
    one_volume(arguments, Path(documents[0]["checkpoint"]), env)


def one_volume(arguments: argparse.Namespace, checkpoint: Path, env: Mapping[str, str]) -> None:
    """One volume by each in a new process: start, model, image and all; OUTPUT/one-volume.json."""
    images = sorted((arguments.output / "nnUNet_raw" / DATASET / "imagesTs").glob("*.nii.gz"))
    largest = max(images, key=lambda p: sitk.ReadImage(str(p)).GetNumberOfPixels())
    alone = arguments.output / "one-volume"
    shutil.rmtree(alone, ignore_errors=True)
    (alone / "in").mkdir(parents=True)
    shutil.copy(largest, alone / "in")
    command = [sys.executable, "-m", "SpineSegAILib", "segment", str(largest), "--checkpoint", str(checkpoint)]
    command += ["--device", arguments.device, "--output", str(alone / "ours.nii.gz"), "--quiet", "--unvalidated"]
    figures = {}
    for name, measure in (
        (NAME, lambda: predict(arguments, alone / "in", alone / "out", env)),
        ("ours", lambda: run(command)),
    ):
        seconds, peak = measure()
        figures[name] = {"seconds": seconds, "peak_mb": peak}
        print(f"{name}: {seconds:.1f} s, {peak:.0f} MB", flush=True)
    _write_json({"image": largest.name, **figures}, arguments.output / "one-volume.json")


def _only(summary: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """The summary of our cases without the structures that were left out."""

    def number(value: Any) -> Any:
        return float("nan") if value is None else value

    reports = []
    for case in summary["cases"]:
        known = {f.name: case[f.name] for f in fields(CaseReport) if f.name in case}
        kept = [s for s in case["structures"] if s["id"] in ids]
        optional = ("matched_id", "level_right")
        known["structures"] = [
            StructureScore(**{k: v if k in optional else number(v) for k, v in s.items()}) for s in kept
        ]
        known["unscored"] = [UnscoredVolume(**u) for u in case["unscored"]]
        known["panoptic"] = {g: Panoptic(**p) for g, p in case["panoptic"].items()}
        reports.append(CaseReport(**known))
    return summarize(reports)


def _write_case(case: Case, name: str, folder: Path, ids: Mapping[int, int], unknown: str) -> float:
    """Image and label of a case; the share of it that is ignored."""
    label = nnunet_label(case, ids, unknown)
    _write(_upright(read_image(case.image)), folder / "imagesTr" / f"{name}_0000.nii.gz")
    _write(label, folder / "labelsTr" / f"{name}.nii.gz")
    return float((sitk.GetArrayViewFromImage(label) == len(ids) + 1).mean())


def _upright(image: sitk.Image) -> sitk.Image:
    """Slices from left to right, rows downwards, columns backwards: the order that `code_label` wants."""
    return sitk.DICOMOrient(image, "PIR")


def _write(image: sitk.Image, path: Path) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as (part,):
            sitk.WriteImage(image, str(part))


def _write_json(value: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made: {error.strerror}.", "Choose another folder.") from None
    with atomic_write(path) as (part,):
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except SpineSegAIError as problem:
        sys.exit(str(problem))
