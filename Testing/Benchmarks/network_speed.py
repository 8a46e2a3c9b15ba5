"""What methods cost beyond the networks of MONAI they are built on: ``python Testing/Benchmarks/network_speed.py``.

Each is given a volume, on its own grid, as inference gives it: windows, batches, probabilities, whole path from array
to evidence. Its base is the bare network on the same slices and channels, in the same batches. A method may take as
much longer as it has more arithmetic; what goes beyond that is ours to answer for. Weights are random, widths those of
the preset ``small``. Times are the shortest of several passes; arithmetic is what torch's counter counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from SpineSegAILib.imaging import CanonicalVolume, Preprocessing
from SpineSegAILib.inference.sliding_window import predict_volume
from SpineSegAILib.methods.base import Method
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom

BASELINES = ("unet", "attention-unet", "segresnet", "dynunet", "unetr", "swin-unetr")
BATCH = 4
BUILT_ON = {
    "atm-net": ("swin-unetr", {"text_encoder": "learned_table", "text_width": 384}),
    "la-caf": ("swin-unetr", {"backbone": "swinunetr", "widths": (12, 24), "text_encoder": "hashed"}),
}
"""Method → what it is built on, and its configuration beyond the preset."""


def cases() -> list[tuple[str, Method, nn.Module, dict[str, str]]]:
    """Title, method, bare network, run-time options."""
    found = []
    for name in BASELINES:
        method = build_method(make_config(name, "small"))
        found.append((name, method, method.network, {}))
    for name, (base, more) in BUILT_ON.items():
        method = build_method(make_config(name, "small", **more))
        bare = build_method(make_config(base, "small", dims=method.config.dims, coordinates=method.config.coordinates))
        options = {"prompt_source": "generic"} if name == "atm-net" else {}
        found.append((f"{name} on {base}", method, bare.network, options))
    return found


def volume(slices: int, pixel_mm: float) -> CanonicalVolume:
    """A phantom's examination on the grid of the networks."""
    spec = PhantomSpec(top="T12", bottom="S1", slices=slices, slice_mm=4.0, pixel_mm=pixel_mm, contrast="t2")
    return Preprocessing(pixel_mm=pixel_mm).apply(make_phantom(spec, np.random.default_rng(0)).image)


def bare_pass(network: nn.Module, channels: int, dims: int, shape: tuple[int, ...], divisor: int) -> Callable[[], None]:
    """The network on random slices of the same size and number."""
    slices, *size = shape
    padded = [-(-n // divisor) * divisor for n in size]
    if dims == 3:
        batches = [torch.randn(1, channels, -(-slices // divisor) * divisor, *padded)]
    else:
        batches = list(torch.randn(slices, channels, *padded).split(BATCH))

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                network(batch)

    return run


def measure(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """(seconds, GFLOP) of a pass."""
    with FlopCounterMode(display=False) as counter:
        run()
    best = np.inf
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best, counter.get_total_flops() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--pixel-mm", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="titles that contain one of these words")
    arguments = parser.parse_args()
    data = volume(arguments.slices, arguments.pixel_mm)
    shape = data.array.shape
    print(f"{shape[0]} slices of {shape[1]} × {shape[2]} pixels, {torch.get_num_threads()} threads\n")
    print("| method | ms per slice | MONAI's | GFLOP per slice | MONAI's | times the time | times the arithmetic |")
    print("|---|---|---|---|---|---|---|")
    for title, method, network, options in cases():
        if arguments.only and not any(word in title for word in arguments.only):
            continue
        method.eval()
        network.eval()
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
        window = method.tiling.window

        def ours(method: Method = method, options: dict[str, str] = options) -> object:
            return predict_volume(method, data, torch.device("cpu"), options={**options, "batch": BATCH})

        size = shape if window is None or len(window) != 2 else (shape[0], *window)
        theirs = bare_pass(
            network, first.in_channels, method.config.dims, size, max(method.tiling.divisors(method.config.dims))
        )
        (mine, work), (base, least) = measure(ours, arguments.repeats), measure(theirs, arguments.repeats)
        cells = [1000 * mine / shape[0], 1000 * base / shape[0], work / shape[0], least / shape[0]]
        print(f"| {title} | " + " | ".join(f"{c:.1f}" for c in cells) + f" | {mine / base:.2f} | {work / least:.2f} |")


if __name__ == "__main__":
    main()
