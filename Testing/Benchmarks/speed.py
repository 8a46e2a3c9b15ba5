"""How long a segmentation takes, by stage, and how much memory: ``python Testing/Benchmarks/speed.py``.

A new process is started, so that the cold start is one: imports, loading the checkpoint, and the first segmentation. It
then segments the same volume again, warm. The volume is a phantom of 39 × 305 × 305 voxels (2 × 1.25 × 1.25 mm), or any
image. Memory is the largest resident set of that process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SLICES, ROWS, COLUMNS = 39, 305, 305

_CHILD = "import sys; sys.path[:0] = sys.argv[1:3]; import speed; speed.measure(*sys.argv[3:])"


def main() -> None:
    """Runs the measurement in a process of its own and shows it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image", help="any image instead of the phantom")
    parser.add_argument("--checkpoint", default="", help="name or file; the default one if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves them alone")
    parser.add_argument("--repeats", type=int, default=3, help="warm segmentations; the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the figures, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = args.image or write_phantom(Path(folder) / "phantom.nii.gz")
        words = [image, args.checkpoint, args.device, args.threads, args.repeats]
        started = time.perf_counter()
        command = [sys.executable, "-c", _CHILD, str(ROOT), str(Path(__file__).parent), *map(str, words)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        whole = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    # What the interpreter needs before our first line, and after our last one, belongs to the cold start.
    found["cold"]["interpreter"] = whole - found.pop("measured")
    found["cold_start"] = sum(found["cold"].values()) - found["warm_total"]
    show(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_phantom(path: Path) -> str:
    """A T2 phantom of the size of a real examination, T10 to the sacrum."""
    import numpy as np
    import SimpleITK as sitk

    from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

    spec = PhantomSpec(
        top="T10",
        margin_top_mm=40,
        margin_bottom_mm=120,
        width_mm=COLUMNS * 1.25 + 10,
        slices=SLICES,
        slice_mm=2.0,
        pixel_mm=1.25,
    )
    image = make_phantom(spec, np.random.default_rng(0)).image[:COLUMNS, :ROWS, :]
    if image.GetSize() != (COLUMNS, ROWS, SLICES):
        raise RuntimeError(f"The phantom is {image.GetSize()} voxels")
    sitk.WriteImage(image, str(path))
    return str(path)


def measure(image: str, checkpoint: str, device: str, threads: str, repeats: str) -> None:
    """The measured process: prints one line of JSON."""
    import resource

    began = time.perf_counter()
    from SpineSegAILib.imaging import read_image
    from SpineSegAILib.inference import Predictor

    imported = time.perf_counter()
    import torch

    if int(threads):
        torch.set_num_threads(int(threads))
    predictor = Predictor(checkpoint or None, device=device)
    loaded = time.perf_counter()
    volume = read_image(image)
    read = time.perf_counter()
    result = predictor.segment(volume)
    first = time.perf_counter()
    runs, stages = [], []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        result = predictor.segment(volume)
        runs.append(time.perf_counter() - start)
        stages.append(result.provenance["seconds"])
    # Linux gives kilobytes, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1) / 1024
    warm = statistics.median(runs)
    by_stage = {name: statistics.median(s[name] for s in stages) for name in stages[0]}
    found = {
        "size": list(volume.GetSize()),
        "checkpoint": predictor.info.name,
        "device": result.provenance["device"],
        "threads": torch.get_num_threads(),
        "structures": len(result.present),
        "cold": {"import": imported - began, "load": loaded - imported, "read": read - loaded, "first": first - read},
        "warm": {**by_stage, "rest": warm - sum(by_stage.values())},
        "warm_total": warm,
        "outside_network": 1 - by_stage.get("network", 0.0) / warm,
        "peak_mb": peak,
        "measured": time.perf_counter() - began,
    }
    print(json.dumps(found))


def show(found: dict) -> None:
    """Prints the figures."""
    size = " × ".join(map(str, found["size"]))
    print(f"{found['checkpoint']} on {found['device']}, {found['threads']} threads, {size} voxels")
    print(f"{'warm, by stage':<32}{'s':>8}")
    for name, seconds in found["warm"].items():
        print(f"  {name:<30}{seconds:8.2f}")
    print(f"  {'together':<30}{found['warm_total']:8.2f}   {found['outside_network']:.0%} outside the network")
    print(f"{'first segmentation of a process':<32}{'s':>8}")
    for name, seconds in found["cold"].items():
        print(f"  {name:<30}{seconds:8.2f}")
    print(f"  {'more than a warm one':<30}{found['cold_start']:8.2f}")
    print(f"{'peak memory':<32}{found['peak_mb']:8.0f} MB")
    print(f"{found['structures']} structures found")


if __name__ == "__main__":
    main()
