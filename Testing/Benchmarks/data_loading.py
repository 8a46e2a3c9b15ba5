"""Whether training waits for its data: ``python Testing/Benchmarks/data_loading.py DATASET.json``.

Times the steps of real training batches (cases read from the cache, windows cut and augmented by the loading process)
against the same steps on batches that are in memory already. The two take turns in short blocks, so that whatever else
the computer does meets both alike; the ratio of the medians counts. The goal is 0.9 or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from SpineSegAILib.datasets.manifest import read_manifest  # noqa: E402
from SpineSegAILib.imaging import AIR, Preprocessing  # noqa: E402
from SpineSegAILib.methods.catalog import build_method, make_config  # noqa: E402
from SpineSegAILib.training.augmentation import Augmenter  # noqa: E402
from SpineSegAILib.training.config import AugmentationConfig, DataConfig  # noqa: E402
from SpineSegAILib.training.data import SampleDataset, StepSampler, cache_case  # noqa: E402
from SpineSegAILib.training.trainer import _collate, _single_thread  # noqa: E402

BLOCK_STEPS = 4


def main() -> None:
    """Measures and shows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", help="manifest")
    parser.add_argument("--method", default="resenc-unet")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cases", type=int, default=12, help="of the training split")
    parser.add_argument("--blocks", type=int, default=12, help=f"of {BLOCK_STEPS} steps, of each kind")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="folder for preprocessed cases")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real, memory = measure(args, args.cache or Path(folder))
    for name, times in (("loaded", real), ("in memory", memory)):
        print(f"{name:<10}{BLOCK_STEPS / statistics.median(times):8.3f} steps/s")
    print(f"{'ratio':<10}{statistics.median(memory) / statistics.median(real):8.3f}")


def measure(args: argparse.Namespace, cache: Path) -> tuple[list[float], list[float]]:
    """Seconds of each block of steps: on loaded batches, and on batches in memory."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    method = build_method(make_config(args.method, args.preset)).to(device)
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    data, preprocessing = DataConfig(), Preprocessing(pixel_mm=1.25)
    training = read_manifest(args.dataset).cases("training")[: args.cases]
    cases = [cache_case(case, preprocessing, method.scheme, cache) for case in training]
    dataset = SampleDataset(cases, method.scheme, data, 0, AIR)
    augment = Augmenter(data.patch, AugmentationConfig(), 0, AIR)
    on_cpu = device.type == "cpu"
    steps = BLOCK_STEPS * (args.blocks + 2) + 16
    loader = DataLoader(
        dataset,
        batch_sampler=StepSampler(0, steps, args.batch),
        num_workers=args.workers,
        collate_fn=partial(_collate, augment) if on_cpu else None,
        worker_init_fn=_single_thread,
        pin_memory=not on_cpu,
    )
    batches = iter(loader)

    def step(raw: Any) -> None:
        batch = raw if on_cpu else augment(raw, device)
        method.training_losses(batch)["total"].backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    kept = [next(batches) for _ in range(BLOCK_STEPS)]
    for raw in kept:  # the first steps allocate
        step(raw)
    real: list[float] = []
    memory: list[float] = []
    for _ in range(args.blocks):
        # The loading process works ahead by two batches: those are used up first, so that none counts as free, and it
        # stands still while the batches in memory are timed.
        for _ in range(2):
            step(next(batches))
        real.append(_time(lambda: [step(next(batches)) for _ in range(BLOCK_STEPS)], device))
        memory.append(_time(lambda: [step(raw) for raw in kept], device))
    return real, memory


def _time(work: Any, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
