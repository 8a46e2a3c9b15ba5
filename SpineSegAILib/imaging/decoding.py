"""Pixels of DICOM files.

What is compressed is decoded in a process of its own, since damaged JPEG streams end the decoder's process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, is_out_of_memory
from .dicom_headers import File, Frame

_SECONDS, _SECONDS_PER_FILE = 40.0, 0.5
_CHILD = """
import json, sys
import numpy, SimpleITK
reader = SimpleITK.ImageFileReader()
reader.SetImageIO("GDCMImageIO")
for source, target in json.load(sys.stdin):
    reader.SetFileName(source)
    numpy.save(target, SimpleITK.GetArrayFromImage(reader.Execute()))
"""


def pixels(files: Sequence[File], slices: Sequence[tuple[File, Frame]], name: str) -> np.ndarray:
    """(slices, rows, columns) values in the units that the files give."""
    read: dict[Path, np.ndarray] = {}
    try:
        compressed = [file.path for file in files if not file.is_plain and not _scaled_by_frame(file)]
        if compressed:
            read.update(zip(compressed, _decode(compressed), strict=True))
        for file in files:
            array = read[file.path] if file.path in read else _decoded_here(file)
            array = array.reshape(len(file.frames), *array.shape[-2 if file.samples == 1 else -3 :])
            if array.shape[1:3] != file.size[::-1]:
                raise RuntimeError(f"{file.path} holds {array.shape}")
            read[file.path] = array
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise ImageError(f"There is not enough memory to read {name}.", "Close other applications.") from error
        raise ImageError(
            f"{name} cannot be read: a file is damaged or incomplete, or compressed in an unknown way.",
            "Export it again, without compression.",
        ) from error
    return np.stack([read[file.path][frame.number] for file, frame in slices])


def _decoded_here(file: File) -> np.ndarray:
    """Values of a file that is not compressed."""
    if _scaled_by_frame(file):
        return _rescaled_by_frame(file)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file.path), imageIO="GDCMImageIO"))


def _scaled_by_frame(file: File) -> bool:
    """Whether frames have scales of their own: ITK would apply the first one's to all."""
    return len({frame.rescale for frame in file.frames}) > 1


def _rescaled_by_frame(file: File) -> np.ndarray:
    """(frames, rows, columns) float32 of a file whose frames have scales of their own."""
    import pydicom

    try:
        stored = pydicom.dcmread(file.path).pixel_array
    except Exception as error:  # compressed, or whatever pydicom met
        raise ImageError(
            f"The frames of {file.path.name} have scales of their own, and it is compressed or damaged.",
            "Export it as a classic series.",
        ) from error
    scales = [frame.rescale or (1.0, 0.0) for frame in file.frames]
    return np.stack([s * slope + offset for s, (slope, offset) in zip(stored, scales, strict=True)]).astype(np.float32)


def _decode(paths: Sequence[Path]) -> list[np.ndarray]:
    """Values of each file in the units that it gives, as ITK has them.

    Raises:
        RuntimeError: one cannot be decoded.
        ImageError: the decoder crashed, or takes too long.
    """
    python = _python()
    if python is None:
        return [sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO")) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(str(path.resolve()), str(Path(folder) / f"{n}.npy")) for n, path in enumerate(paths)]
        try:
            done = subprocess.run(
                [python, "-c", _CHILD],
                input=json.dumps(jobs).encode(),
                capture_output=True,
                timeout=_SECONDS + _SECONDS_PER_FILE * len(jobs),
            )
        except subprocess.TimeoutExpired:
            raise ImageError(f"{paths[0].name} takes too long to decode.", "Export it without compression.") from None
        if done.returncode > 0:
            raise RuntimeError(done.stderr.decode("utf-8", "replace")[-2000:])
        if done.returncode < 0:
            raise ImageError(
                f"{paths[0].name} cannot be read: the decoder crashed on it.", "Export it without compression."
            )
        return [np.load(target) for _, target in jobs]


def _python() -> str | None:
    """The interpreter to start; None inside an application that has none of its own."""
    if "python" in os.path.basename(sys.executable or "").lower():
        return sys.executable
    return shutil.which("PythonSlicer")
