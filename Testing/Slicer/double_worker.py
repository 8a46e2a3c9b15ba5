"""The real worker with a predictor that is quick and predictable: finds boxes where the image is bright.

Only for tests of what happens around a prediction (progress, cancel, faults). What it does is set by environment
variables: ``DOUBLE_SECONDS`` how long it computes, ``DOUBLE_STUBBORN`` that it ignores Cancel, ``DOUBLE_SLOW`` how long
it goes on after Cancel, ``DOUBLE_FAIL`` the name
of an error to raise, ``DOUBLE_NOISE`` that it prints to standard output, as libraries do, ``DOUBLE_ASK`` that levels
are a close call. Asked for several samples, it is unsure at the edges.
"""

import builtins
import os
import sys
import time

import numpy as np
import SimpleITK as sitk

from SpineSegAILib import errors
from SpineSegAILib.anatomy import SCHEMES
from SpineSegAILib.anatomy import STRUCTURES as ANATOMY
from SpineSegAILib.correction import LabeledStructures, shift
from SpineSegAILib.keypoints import centres_of
from SpineSegAILib.results import Alternative, Segmentation
from SpineSegAILib.worker import process as worker

STRUCTURES = (20, 120, 21, 121, 22, 122, 23, 123, 24, 124, 26, 61)


def other_naming():
    """Everything a level higher."""
    found = [i for i in STRUCTURES if ANATOMY[i].order is not None]
    up = shift(LabeledStructures(frozenset(found)), "up")
    return Alternative("T12 L1 L2 L3 L4 L5", 0.25, up.mapping, "L1 to S1, or T12 to L5 (25 %)?")


class DoublePredictor:
    def __init__(self, checkpoint, device):
        self.checkpoint, self.device = checkpoint, device
        print(f"LOADED {checkpoint}", file=sys.stderr, flush=True)

    @staticmethod
    def doubt(labels, image):
        """Much at the edges of the structures, nothing elsewhere; more the farther down."""
        edges = np.zeros(labels.shape, bool)
        edges[:, 1:] = labels[:, 1:] != labels[:, :-1]
        rows = np.arange(labels.shape[1])[None, :, None]
        result = sitk.GetImageFromArray((edges * (0.1 + 0.4 * rows / labels.shape[1])).astype(np.float32))
        result.CopyInformation(image)
        return result

    def segment(self, image, hints=None, options=None, progress=None, cancelled=None):
        if os.environ.get("DOUBLE_NOISE"):
            print("a library says hello")
            os.system("echo and so does a C program")
        if os.environ.get("DOUBLE_FAIL"):
            kind = getattr(errors, os.environ["DOUBLE_FAIL"], None) or getattr(builtins, os.environ["DOUBLE_FAIL"])
            raise kind("It went wrong on purpose.", "Do something else.")
        seconds = float(os.environ.get("DOUBLE_SECONDS", "0.2"))
        stubborn = bool(os.environ.get("DOUBLE_STUBBORN"))
        slow, asked = float(os.environ.get("DOUBLE_SLOW", "0")), 0.0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
            progress(1 - (end - time.monotonic()) / seconds, "Computing")
            if cancelled():
                asked = asked or time.monotonic()
            if asked and not stubborn and time.monotonic() >= asked + slow:
                raise errors.Cancelled("Cancelled.")
        array = sitk.GetArrayFromImage(image)
        labels = np.zeros(array.shape, np.int16)
        bright = array > array.min()
        bands = np.array_split(np.arange(array.shape[1]), len(STRUCTURES))
        for structure, rows in zip(STRUCTURES, bands, strict=True):
            labels[:, rows, :] = structure
        labels[~bright] = 0
        result = sitk.GetImageFromArray(labels)
        result.CopyInformation(image)
        options = options or {}
        evaluations = options.get("samples", 0) * options.get("steps", 0)
        about = {"options": options, "seconds": {"network": 0.001 * len(array) * max(evaluations, 1), "back": 1.0}}
        doubt = self.doubt(labels, image) if options.get("samples", 1) > 1 else None
        if doubt is not None:
            values = sitk.GetArrayViewFromImage(doubt)
            means = {i: float(values[labels == i].mean()) for i in STRUCTURES}
            about["uncertainty"] = {ANATOMY[i].name: round(mean, 4) for i, mean in means.items()}
        asked = [other_naming()] if os.environ.get("DOUBLE_ASK") else []
        return Segmentation(
            labels=result,
            alternatives=asked,
            scheme=SCHEMES["lumbar-mr"],
            outline_quality={s: 0.9 for s in STRUCTURES},
            warnings=[*(a.question for a in asked), "The sacrum is not visible: levels are a guess."],
            unvalidated=frozenset({61}),
            provenance={"checkpoint": str(self.checkpoint), "device": "cpu", "hints": str(hints), **about},
            uncertainty=doubt,
            keypoints=centres_of(result) | (hints.keypoints if hints else {}),
        )


if __name__ == "__main__":
    sys.exit(worker.main(make_predictor=DoublePredictor))
