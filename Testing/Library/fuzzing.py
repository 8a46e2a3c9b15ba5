"""What happens to inputs gone wrong: they are taken, or refused in words, and nothing else.

`SUBJECTS` has a function for each kind of input. It makes one from the samples by the random numbers that it is given,
and hands it to the product. Whatever is no `SpineSegAIError` is a fault, and so is what stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import math
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import SimpleITK as sitk
from mutations import NUMBERS, WORDS, altered, as_json, damaged, reworded
from scene_data import lumbar
from tiny_data import write_tiny_checkpoint

from SpineSegAILib import cli
from SpineSegAILib.anatomy import VALUE_MAPS, scheme
from SpineSegAILib.checkpoints import FOLDERS_VARIABLE, KEY, read_header, search_checkpoints
from SpineSegAILib.comparison.config import read_comparison
from SpineSegAILib.datasets import read_label, read_manifest
from SpineSegAILib.datasets.manifest import read_case
from SpineSegAILib.datasets.slicer_scene import read_scene
from SpineSegAILib.datasets.training_set import TrainingSet
from SpineSegAILib.errors import SpineSegAIError
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging import read_image
from SpineSegAILib.inference import Predictor
from SpineSegAILib.keypoints import read_keypoints
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results import Segmentation, read_segmentation
from SpineSegAILib.training import launcher
from SpineSegAILib.training.recipe import read_recipe
from SpineSegAILib.worker.process import Worker
from SpineSegAILib.worker.protocol import (
    CancelRequest,
    DeviceRequest,
    HintsMessage,
    MeasureRequest,
    ResultMessage,
    SegmentRequest,
    save_image,
)

SECRET = 4242
"""The voxels of a file that lies beside a scene, and that nothing in the scene may bring in."""


class Fault(Exception):
    """What must not happen, but raises nothing by itself."""


@dataclass(frozen=True)
class Samples:
    """What inputs are made from, in a folder that is only read.

    Attributes:
        folder: of the files.
        image: a sagittal stack of a few thousand voxels.
        result: its segmentation.
    """

    folder: Path
    image: sitk.Image
    result: Segmentation

    @property
    def checkpoint(self) -> Path:
        return self.folder / "tiny.safetensors"

    def data(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


IMAGES = ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.png", "a.jpg", "a.dcm")


def make_samples(folder: Path) -> Samples:
    """The files, made again."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = PhantomSpec(top="L2", bottom="S1", slices=4, slice_mm=8.0, pixel_mm=3.0, contrast="t2")
    phantom = make_phantom(spec, np.random.default_rng(0))
    image = sitk.Cast(phantom.image, sitk.sitkInt16)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(folder / name), useCompression=name == "a.nrrd")
    middle = sitk.Cast(sitk.RescaleIntensity(sitk.DICOMOrient(image, "ASL")[:, :, 2]), sitk.sitkUInt8)
    for name in ("a.png", "a.jpg"):
        sitk.WriteImage(middle, str(folder / name))
    sitk.WriteImage(image[:, :, 2:3], str(folder / "a.dcm"))
    result = Segmentation(phantom.labels, scheme("lumbar-mr"), 0.9, warnings=["The levels are a guess."])
    result.write(folder / "r.seg.nrrd")
    result.write(folder / "r.nii.gz")
    write_tiny_checkpoint(folder / "tiny.safetensors")
    entry = {
        "image": "a.nii.gz", "label": "r.nii.gz", "patient": "p", "source": "s", "annotated": ["L3", "L4", "L5"],
        "keypoints": {"L4": [0, 0, 0]}, "extent": "body",
    }  # fmt: skip
    table = {"name": "Tiny", "modality": {"0": "MR"}, "labels": {"background": 0, "L3": 22, "L4": 23, "L5": 24},
             "custom": {"tumor": 1000}, "extent": "body", "training": [entry], "validation": []}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(table))
    np.full((10, 40, 30), SECRET, np.int16).tofile(folder / "secret.raw")
    return Samples(folder, image, result)


# --- one input -------------------------------------------------------------------------------------------------------


def attempt(subject: str, rng: Random, samples: Samples, folder: Path) -> bool:
    """Hands one input to the product.

    Args:
        subject: one of `SUBJECTS`.
        folder: empty, for the input.

    Returns:
        whether it was taken; else it was refused in words.

    Raises:
        Exception: a fault.
    """
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        try:
            SUBJECTS[subject](rng, samples, folder)
            taken = True
        except SpineSegAIError as error:
            taken = False
            if not error.message.strip():
                raise Fault("a refusal without a word") from error
    _nothing_left(temporary)
    return taken


def _nothing_left(folder: Path) -> None:
    left = [path.name for path in folder.rglob("*")]
    if left:
        raise Fault(f"left behind: {', '.join(left)}")


# --- images and segmentations ----------------------------------------------------------------------------------------


def _with_header(data: bytes, end: bytes, rng: Random, secret: str) -> bytes:
    """The same voxels after a header that was reworded."""
    at = data.index(end) + len(end)
    header = reworded(data[:at].decode("latin-1"), rng, secret)
    return header.encode("utf-8", "replace") + data[at:]


_NIFTI_SHORTS = [*range(40, 56, 2), 70, 72, 252, 254]  # dim, datatype, bitpix, qform_code, sform_code
_NIFTI_FLOATS = [*range(76, 108, 4), 108, 112, 116, *range(256, 328, 4)]  # pixdim, vox_offset, slope, quaternion, sform


def _other_nifti(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.randrange(2):
            value = rng.choice((0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 128, 256, 512, 768, 1024, 30000, 32767, -1, -32768))
            struct.pack_into("<h", changed, rng.choice(_NIFTI_SHORTS), value)
        else:
            value = rng.choice((0.0, -1.0, 1.0, 1e-9, 1e9, 3e38, 352.5, 1e6, math.nan, math.inf, -math.inf))
            struct.pack_into("<f", changed, rng.choice(_NIFTI_FLOATS), value)
    return bytes(changed)


def changed_file(name: str, data: bytes, rng: Random, secret: str) -> bytes:
    """An image or segmentation file gone wrong, in its bytes or in what its header says."""
    if rng.randrange(3) == 0:
        return damaged(data, rng)
    if name.endswith(".nrrd"):
        return _with_header(data, b"\n\n", rng, secret)
    if name.endswith(".mha"):
        return _with_header(data, b"ElementDataFile = LOCAL\n", rng, secret)
    if name.endswith(".nii"):
        return _other_nifti(data, rng)
    if name.endswith(".nii.gz"):
        inner = gzip.decompress(data)
        return gzip.compress(_other_nifti(inner, rng) if rng.randrange(2) else damaged(inner, rng))
    return damaged(data, rng)


def image(rng: Random, samples: Samples, folder: Path) -> None:
    name = rng.choice(IMAGES)
    data = changed_file(name, samples.data(name), rng, str(samples.folder / "secret.raw"))
    path = folder / (rng.choice(IMAGES) if rng.randrange(8) == 0 else name)
    path.write_bytes(data)
    read = read_image(path)
    if rng.randrange(4) == 0:
        _predictor(samples).segment(read)


def segmentation(rng: Random, samples: Samples, folder: Path) -> None:
    name = rng.choice(("r.seg.nrrd", "r.seg.nrrd", "r.nii.gz", "a.nrrd", "a.mha"))
    path = folder / name
    path.write_bytes(changed_file(name, samples.data(name), rng, str(samples.folder / "secret.raw")))
    if name == "r.nii.gz" and rng.randrange(2):
        path.write_bytes(samples.data(name))
        (folder / "r.json").write_text(as_json(altered(samples.result.to_document(), rng), rng), "utf-8", "replace")
    values = rng.choice((None, None, *VALUE_MAPS))
    read = read_segmentation(path, complete=bool(rng.randrange(2)), values=values)
    read.to_document()
    if rng.randrange(4) == 0:
        read.write(folder / "again.seg.nrrd")
        read_segmentation(folder / "again.seg.nrrd")
    if rng.randrange(8) == 0:
        _predictor(samples).segment(samples.image, hints=Hints(locked=read.labels))


_LOADED: dict[Path, Any] = {}


def _predictor(samples: Samples) -> Predictor:
    if samples.checkpoint not in _LOADED:
        _LOADED[samples.checkpoint] = Predictor(samples.checkpoint, device="cpu")
    return _LOADED[samples.checkpoint]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(rng: Random, samples: Samples, folder: Path) -> None:
    data = samples.data("tiny.safetensors")
    if rng.randrange(8) == 0:
        data = damaged(data, rng)
    else:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        if rng.randrange(8) == 0:
            header = altered(header, rng)
            text = as_json(header, rng)
        else:
            described = altered(json.loads(header["__metadata__"][KEY]), rng)
            text = json.dumps({**header, "__metadata__": {KEY: as_json(described, rng)}})
        raw = text.encode("utf-8", "replace")
        data = struct.pack("<Q", len(raw)) + raw + data[8 + length :]
    path = folder / "fuzzed.safetensors"
    path.write_bytes(data)
    with mock.patch.dict("os.environ", {FOLDERS_VARIABLE: str(folder)}):
        found, unusable = search_checkpoints()
        listed = [info for info in found if info.path == path]
        if len(listed) + sum("fuzzed" in str(error) for error in unusable) != 1:
            raise Fault("a checkpoint is neither listed nor named as unusable")
        _shell(["checkpoints"], folder)
    info = read_header(path)
    assert isinstance(info.title, str) and info.trained_on is not None and info.unvalidated is not None
    Predictor(info, device="cpu").segment(samples.image)


# --- scenes, manifests and other tables ------------------------------------------------------------------------------


def scene(rng: Random, samples: Samples, folder: Path) -> None:
    made = lumbar(tags={"L4 vertebra": "Terminology:x~y^z|Segmentation.Status:inprogress|"})
    made.points('{"markups": [{"controlPoints": [{"label": "L4", "position": [0, 0, 0]}]}]}')
    secret, document = str(samples.folder / "secret.raw"), made.document()
    kind = rng.randrange(4)
    files = {name: _bytes_of(content, folder) for name, content in made.files.items()}
    if kind == 0:
        document = reworded(document, rng, secret)
    elif kind == 1:
        name = rng.choice(sorted(files))
        files[name] = changed_file(name, files[name], rng, secret)
    elif kind == 2:
        points = json.loads(files["Data/points.mrk.json"])
        files["Data/points.mrk.json"] = as_json(altered(points, rng), rng).encode("utf-8", "replace")
    inner = {"a/a.mrml": document.encode("utf-8", "replace"), **{f"a/{name}": data for name, data in files.items()}}
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    ) as archive:
        for name, data in inner.items():
            archive.writestr(name, data)
    path = folder / "a.mrb"
    path.write_bytes(damaged(packed.getvalue(), rng) if kind == 3 else packed.getvalue())
    report = read_scene(path)
    if any((sitk.GetArrayViewFromImage(case.image) == SECRET).any() for case in report.cases):
        raise Fault("a file outside of the scene was read")
    if rng.randrange(4) == 0:
        _shell(["import-scenes", str(path), "--output", str(folder / "set"), "--quiet"], folder)


def _bytes_of(content: bytes | sitk.Image, folder: Path) -> bytes:
    if isinstance(content, bytes):
        return content
    path = folder / "temporary" / "part.nrrd"
    sitk.WriteImage(content, str(path), useCompression=True)
    data = path.read_bytes()
    path.unlink()
    return data


def manifest(rng: Random, samples: Samples, folder: Path) -> None:
    table = altered(json.loads(samples.data("dataset.json")), rng)
    path = folder / "dataset.json"
    path.write_text(as_json(table, rng), "utf-8", "replace")
    for name in ("a.nii.gz", "r.nii.gz"):
        (folder / name).symlink_to(samples.folder / name)
    for use in (
        _read_cases,
        lambda path: TrainingSet(path).rows(),
        _evaluate(samples) if rng.randrange(8) == 0 else None,
    ):
        if use is not None:
            with contextlib.suppress(SpineSegAIError):
                use(path)


def _read_cases(path: Path) -> None:
    found = read_manifest(path)
    for split in ("training", "validation", "test"):
        for case in found.cases(split):
            read_case(case)
            read_label(case)


def _evaluate(samples: Samples) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        words = ["evaluate", str(path), "--split", "training", "--checkpoint", str(samples.checkpoint)]
        _shell([*words, "--output", str(path.with_name("report.json")), "--quiet"], path.parent)

    return run


def table(rng: Random, samples: Samples, folder: Path) -> None:
    """Keypoints, runs, recipes, configurations of comparisons, and tables of names."""
    text = lambda document: as_json(altered(document, rng), rng)  # noqa: E731
    kind = rng.randrange(5)
    path = folder / "table.json"
    if kind == 0:
        points = {"L4": [0.0, 1.0, 2.0], "L5": [0.0, 1.0, 3.0]}
        markups = {"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"label": "L4", "position": [0, 1, 2]}]}]}
        path.write_text(text(rng.choice((points, markups))), "utf-8", "replace")
        read_keypoints(path)
    elif kind == 1:
        parts = {
            "config.json": {"method": {"method": "resenc-unet"}, "dataset": "d.json", "name": "x"},
            "status.json": {"state": "running", "pid": 1, "step": 3, "steps": 9, "time": 1.0, "seconds": 2.0},
            "launch.json": {"pid": 999_999, "started": 1.0},
        }
        broken = rng.choice(sorted(parts))
        for name, document in parts.items():
            (folder / name).write_text(text(document) if name == broken else json.dumps(document), "utf-8", "replace")
        events = "\n".join(text({"event": "step", "step": n, "loss": 0.5, "time": 1.0}) for n in range(3))
        (folder / "events.jsonl").write_text(events, "utf-8", "replace")
        launcher.status(folder)
        launcher.log_tail(folder)
        launcher.offer(folder)
    elif kind == 2:
        recipe = {"title": "t", "method": "resenc-unet", "preset": "tiny", "sources": [{"manifest": "d.json"}],
                  "stages": [{"name": "one", "set": {"optimization.steps": 2}}]}  # fmt: skip
        path.write_text(text(recipe), "utf-8", "replace")
        read_recipe(path)
    elif kind == 3:
        config = {"title": "t", "dataset": "d.json", "budget": {"steps": 1}, "split": "validation", "seeds": [1],
                  "set": {"data.phantoms": 1}, "papers": [], "argmax": True,
                  "entries": [{"name": "a", "method": "resenc-unet", "preset": "tiny", "set": {"method.dims": 2}},
                              {"name": "b", "checkpoint": "c", "options": {"batch": 2}}]}  # fmt: skip
        path.write_text(text(config), "utf-8", "replace")
        read_comparison(path)
    else:
        path.write_text(text({"my tumor": "custom:tumor", "x": "L4"}), "utf-8", "replace")
        missing = [str(folder / "none.mrb"), "--output", str(folder / "set")]
        _shell(["import-scenes", "--mapping", str(path), *missing], folder)


# --- the shell -------------------------------------------------------------------------------------------------------

_COMMANDS = ("segment", "segment", "relabel", "evaluate", "import-scenes", "import-dataset", "rank", "checkpoints",
             "methods", "phantom", "complete", "train")  # fmt: skip


def flags(rng: Random, samples: Samples, folder: Path) -> None:
    """Commands with flags of theirs, any of them wrong; trainings only of data that are not there."""
    name = rng.choice(_COMMANDS)
    given = {
        "IMAGE": "a.nii.gz", "INPUT": "r.seg.nrrd", "DATASET.json": "none.json" if name == "train" else "dataset.json",
        "SCENE": "none.mrb", "FOLDER": "folder", "--output": str(folder / rng.choice(_OUTPUTS)), "--split": "training",
        "--checkpoint": "tiny.safetensors", "--format": "nnunet", "--device": "cpu",
    }  # fmt: skip
    for path in samples.folder.iterdir():
        (folder / path.name).symlink_to(path)
    words = [name]
    for action in _actions(name):
        flag = action.option_strings[-1] if action.option_strings else ""
        known = given.get(flag or str(action.metavar))
        if known is None and rng.randrange(6):
            continue
        words += [flag] if flag else []
        if action.nargs != 0:
            words.append(known if known is not None and rng.randrange(8) else _word(action, rng))
    with _working_in(folder):
        if _shell(words, folder) == 2:
            raise SpineSegAIError("The command refused it.")


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


_OUTPUTS = (
    "o.seg.nrrd",
    "o.nii.gz",
    "o.mha",
    "o.json",
    "o.csv",
    "out",
    "no/o.nii.gz",
    "o",
    ".nii.gz",
    "x" * 260 + ".mha",
)
_FILES = ("a.nii.gz", "r.seg.nrrd", "r.nii.gz", "dataset.json", "tiny.safetensors", "a.png", "none", ".", "secret.raw",
          "o.json", "o.csv", "o.png", "-")  # fmt: skip
_ENDLESS = ("2147483647", "9223372036854775807", "99999999999999999999", "1e9", "1e308", "inf")


def _word(action: argparse.Action, rng: Random) -> str:
    """A value for a flag; work that is asked for does not last for ever."""
    kind = rng.randrange(5)
    if kind == 0 and action.choices:
        return str(rng.choice(sorted(map(str, action.choices))))
    if kind == 1:
        return rng.choice(_FILES)
    if kind == 2:
        return rng.choice(NUMBERS)
    if kind == 3:
        key = rng.choice(("batch", "overlap", "mirror", "samples", "steps", "top", "slices", "L4", "x", ""))
        value = rng.choice((*(n for n in NUMBERS if n not in _ENDLESS), "L4=L5", *WORDS))
        return f"{key}={value}"
    return rng.choice(WORDS)


def _actions(name: str) -> list[argparse.Action]:
    parser = cli.build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [a for a in subparsers.choices[name]._actions if a.dest != "help"]


def _shell(words: list[str], folder: Path) -> int:
    """Runs a command and returns its exit code; what it refuses leaves the folder as it was."""
    before = set(folder.rglob("*"))
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = cli.main(words)
        except SystemExit as ending:
            code = ending.code
    if code not in (0, 2):
        raise Fault(f"{words} ended with {code}: {said.getvalue()[-500:]}")
    if code == 2:
        if not said.getvalue().strip():
            raise Fault(f"{words} was refused without a word")
        left = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
        if left:
            raise Fault(f"{words} was refused and left {left}: {said.getvalue()[-300:]}")
    if "Traceback" in said.getvalue():
        raise Fault(f"{words} showed a traceback: {said.getvalue()[-800:]}")
    return code


# --- the worker ------------------------------------------------------------------------------------------------------


def worker(rng: Random, samples: Samples, folder: Path) -> None:
    """A few lines at a time; each but the blank ones and what cancels gets one answer, and none is “a bug”."""
    image = save_image(samples.image, folder / "image.npy")
    result = ResultMessage.of(samples.result, folder, "result")
    prior = save_image(samples.result.labels, folder / "prior.npy")
    hints = HintsMessage(visible=(21, 26), anchors=((23, (0.0, 0.0, 0.0)),), structures=(23, 24), locked=prior)
    requests = [
        SegmentRequest(job=1, image=image, checkpoint=str(samples.checkpoint), device="cpu", hints=hints),
        MeasureRequest(job=2, result=result),
        DeviceRequest(job=3, device="cpu"),
        CancelRequest(job=4),
    ]  # fmt: skip
    lines = []
    for request in rng.sample(requests, rng.choice((1, 2, 3))):
        document = altered(request.model_dump(mode="json"), rng)
        line = as_json(document, rng).replace("\n", " ").encode("utf-8", "surrogatepass")
        lines.append((damaged(line, rng).replace(b"\n", b" ") if rng.randrange(4) == 0 else line) + b"\n")
    output = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):
        served = Worker(output, folder, lambda name, device: _predictor(samples) if name == str(samples.checkpoint)
                        else Predictor(name, device))  # fmt: skip
        served.read(lines)
        served.run()
    events = [json.loads(line) for line in output.getvalue().splitlines()]
    answers = [event for event in events if event["event"] not in ("ready", "progress")]
    bugs = [event for event in answers if event.get("kind") == "InternalError"]
    if bugs:
        raise Fault(f"{lines} is called a bug: {bugs[0]['traceback'][-1500:]}")
    asked = sum(bool(line.strip()) and not _cancels(line) for line in lines)
    if len(answers) != asked:
        raise Fault(f"{asked} lines have {len(answers)} answers: {lines}")


def _cancels(line: bytes) -> bool:
    from SpineSegAILib.worker.protocol import REQUEST

    try:
        return isinstance(REQUEST.validate_json(line), CancelRequest)
    except ValueError:
        return False


SUBJECTS: Mapping[str, Callable[[Random, Samples, Path], None]] = {
    "image": image,
    "segmentation": segmentation,
    "checkpoint": checkpoint,
    "scene": scene,
    "manifest": manifest,
    "table": table,
    "flags": flags,
    "worker": worker,
}
"""Kind of input → what makes one and tries it."""


@contextlib.contextmanager
def place_for_input(parent: Path) -> Iterator[Path]:
    """A folder that is there as long as its input; always the same one, since inputs name it."""
    folder = parent / "input"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
