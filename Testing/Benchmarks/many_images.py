"""How much one call with many images saves: `spinesegai segment` with N images against N calls with one.

    OMP_NUM_THREADS=1 python Testing/Benchmarks/many_images.py [--images 20] [--checkpoint NAME]

The images are small phantoms, so that starting and loading count as they do for a user's stacks on a fast machine.
Prints wall and processor seconds; of the latter, other work on the machine takes nothing. Of version 0.1.0, twenty
images on one core: 62 s of processor time in twenty calls, 17 s in one, 3.8 times as fast (wall time on a busy machine:
606 and 117 s).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--checkpoint", default="lumbar-mr-resenc")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / f"case{n}.nii.gz" for n in range(args.images)]
        for n, path in enumerate(images):
            spec = PhantomSpec(top="L1", bottom="S1", slices=5, slice_mm=5.0, pixel_mm=1.5)
            sitk.WriteImage(make_phantom(spec, np.random.default_rng(n)).image, str(path))
        words = ["-o", f"{folder}/results/", "-m", args.checkpoint, "--quiet", "--device", "cpu", "--overwrite"]
        together = cost([[*images, *words]])
        single = cost([image, *words] for image in images)
    for name, one, many in zip(("wall", "processor"), together, single, strict=True):
        print(f"{name}: {len(images)} calls {many:.1f} s, one call {one:.1f} s, {many / one:.2f} times as fast")


def cost(calls: Iterable[list[str | Path]]) -> tuple[float, float]:
    """Wall and processor seconds of calls, one after the other."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    for words in calls:
        subprocess.run([sys.executable, "-m", "SpineSegAILib", "segment", *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
