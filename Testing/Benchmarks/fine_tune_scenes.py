"""From corrected scenes to a better checkpoint, as a reader does it, measured on cases that were in no training.

    python Testing/Benchmarks/fine_tune_scenes.py DATA/lumbar_mr/dataset.json BASE.safetensors OUTPUT --source chu

BASE is a checkpoint that has seen nothing of the source. The training cases of the source are saved as scenes (.mrb) by
Slicer's own code, imported by ``spinesegai import-scenes``, and BASE is trained further on them in a process that the
launcher starts; with --mix, together with the training cases of the other sources, which is the surest way not to
forget them. Both checkpoints are then scored on the validation cases of the source, and on those of the others
(what BASE knew before); the new one segments a case in the panel. Needs slicer-core and PySide6.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing/Slicer")]


def main() -> None:
    """The whole way; what is there already from an earlier call is used again."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path, help="manifest with several sources")
    parser.add_argument("base", type=Path, help="checkpoint that has not seen the source")
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", default="chu")
    parser.add_argument("--hours", default="0.12")
    parser.add_argument("--phantoms", default="0")
    parser.add_argument("--mix", action="store_true", help="train on the old sources' training cases, too")
    parser.add_argument("--name", default="tuned", help="of the run")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="settings of the run")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(args.output.resolve())  # checkpoints that appear belong to this test

    table = json.loads(args.dataset.read_text(encoding="utf-8"))
    folder = args.output / "scenes"
    if not folder.exists():
        save_scenes(table, args, folder)
    training_set = args.output / "set"
    if not training_set.exists():
        spinesegai("import-scenes", folder, "--output", training_set, "--extent", "body", "--validation", "0.15")
    run = args.output / "runs" / args.name
    train(
        run, training_set / "dataset.json", ["--also", str(old_cases(table, args).resolve())] if args.mix else [], args
    )
    validation = {
        "new source": [c for c in table["validation"] if c["source"] == args.source],
        "old sources": [c for c in table["validation"] if c["source"] != args.source],
    }
    tuned = next(path for path in (run / "best.safetensors", run / "last.safetensors") if path.exists())
    found = {}
    for group, cases in validation.items():
        manifest = write_manifest(table, cases, args, args.output / f"{group.replace(' ', '_')}.json")
        for name, checkpoint in (("before", args.base), ("after", tuned)):
            found[group, name] = evaluate(manifest, checkpoint, args.output)
    for group in validation:
        before, after = found[group, "before"], found[group, "after"]
        for what in ("dice", "matched_dice"):
            change = after[what] - before[what]
            print(f"{group:<12} {what:<13} before {before[what]:.4f}  after {after[what]:.4f}  {change:+.4f}")
    print(segment_in_panel(validation["new source"][0], tuned, args))


def entry_path(args: argparse.Namespace, name: str) -> Path:
    return (args.dataset.parent / name).resolve()


def save_scenes(table: dict[str, Any], args: argparse.Namespace, folder: Path) -> None:
    """One .mrb per training case of the source: its volume, and a segmentation with the names that a reader gives."""
    import host

    host.start()
    import SimpleITK as sitk
    import slicer
    from SpineSegAISlicer.scene import results

    from SpineSegAILib.anatomy import SCHEMES
    from SpineSegAILib.results import Segmentation

    part = folder.with_name("scenes.part")
    part.mkdir(exist_ok=True)
    for case in table["training"]:
        if case["source"] != args.source:
            continue
        slicer.mrmlScene.Clear(0)
        volume = slicer.util.loadVolume(str(entry_path(args, case["image"])))
        label = sitk.Cast(sitk.ReadImage(str(entry_path(args, case["label"]))), sitk.sitkInt16)
        results.segmentationFromResult(Segmentation(labels=label, scheme=SCHEMES["lumbar-mr"]), volume)
        name = Path(case["image"]).name.split("_image")[0]
        if not slicer.mrmlScene.WriteToMRB(str(part / f"{name}.mrb")):
            sys.exit(f"{name} could not be saved.")
    slicer.mrmlScene.Clear(0)
    part.rename(folder)
    print(f"{len(list(folder.glob('*.mrb')))} scenes saved")


def spinesegai(*words: Any) -> str:
    """The command line; ends the program if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "SpineSegAILib", *map(str, words)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def old_cases(table: dict[str, Any], args: argparse.Namespace) -> Path:
    """A dataset of the old sources' training cases."""
    old = [c for c in table["training"] if c["source"] != args.source]
    old = [{**c, **{key: str(entry_path(args, c[key])) for key in ("image", "label")}} for c in old]
    rest = {k: v for k, v in table.items() if k not in ("training", "validation", "test", "unlabelled")}
    path = args.output / "old.json"
    path.write_text(json.dumps({**rest, "training": old}), encoding="utf-8")
    return path


def train(folder: Path, dataset: Path, more: list[str], args: argparse.Namespace) -> None:
    """Start the run, or go on with it, and wait for its end."""
    from SpineSegAILib.training import launcher

    words = [str(dataset), "--from", str(args.base.resolve()), "--hours", args.hours, "--phantoms", args.phantoms]
    words += more
    for setting in args.set:
        words += ["--set", setting]
    if not (folder / "config.json").exists():
        launcher.start(folder, words)
    elif launcher.status(folder).can_resume:
        launcher.resume(folder)
    shown = ""
    while (report := launcher.status(folder)).state.is_active:
        line = f"{report.state.value}, step {report.step}"
        if line != shown:
            print(line, flush=True)
            shown = line
        time.sleep(10)
    print(f"{report.state.value}: {report.step} steps {report.message}")
    if report.state is not launcher.State.FINISHED:
        sys.exit(launcher.log_tail(folder))


def write_manifest(table: dict[str, Any], cases: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> Path:
    """A dataset of these cases alone."""
    cases = [{**c, **{key: str(entry_path(args, c[key])) for key in ("image", "label")}} for c in cases]
    rest = {k: v for k, v in table.items() if k not in ("training", "test", "unlabelled")}
    path.write_text(json.dumps({**rest, "validation": cases}), encoding="utf-8")
    return path


def evaluate(manifest: Path, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Figures of all structures together: Dice (with the right level) and Dice whatever the level."""
    report = folder / f"report-{manifest.stem}-{checkpoint.parent.name}.json"
    spinesegai(
        "evaluate", manifest, "--split", "validation", "--checkpoint", checkpoint, "--output", report, "--device", "cpu"
    )
    summary = json.loads(report.read_text(encoding="utf-8"))["variants"]["full"]
    scores = [s for case in summary["cases"] for s in case["structures"]]
    return {key: sum(s[key] for s in scores) / len(scores) for key in ("dice", "matched_dice")}


def segment_in_panel(case: dict[str, Any], checkpoint: Path, args: argparse.Namespace) -> str:
    """Click “Segment spine” with the new checkpoint; what was found."""
    import host

    host.start()
    import slicer
    from panel_case import open_widget

    from SpineSegAI import SpineSegAIWidget

    slicer.mrmlScene.Clear(0)
    widget = open_widget(SpineSegAIWidget)
    widget._parameterNode.inputVolume = slicer.util.loadVolume(str(entry_path(args, case["image"])))
    widget.segmentPanel.useCheckpointFile(str(checkpoint.resolve()))
    if not widget.ui.applyButton.enabled:
        sys.exit(widget.ui.applyButton.toolTip)
    widget.ui.applyButton.click()
    host.wait_until(lambda: not widget.segmentPanel.isRunning, 600)
    node = widget._parameterNode.outputSegmentation
    segmentation = node.GetSegmentation()
    names = [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())]
    widget.cleanup()
    return f"In the panel: {', '.join(names)}"


if __name__ == "__main__":
    main()
