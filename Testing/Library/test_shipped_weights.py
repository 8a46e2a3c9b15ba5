"""The networks that ship answer as they did when they were published, whatever is rebuilt around their weights.

Inputs are formulas, so that nothing but torch and the network itself is in the recorded numbers. They are moments of
each map, which a permuted channel, a lost head or another scale of the rank changes. Where a checkpoint is replaced,
`python Testing/Library/test_shipped_weights.py` prints the numbers of the new one.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor

from SpineSegAILib.checkpoints import load_method, read_header
from SpineSegAILib.correction import Click, click_correction, load_click_method
from SpineSegAILib.hints import Hints
from SpineSegAILib.imaging.geometry import like
from SpineSegAILib.methods.base import Batch, Context, Method, coordinate_channels
from SpineSegAILib.methods.catalog import CLICK_CHECKPOINT
from SpineSegAILib.methods.verdiff_net.network import VerdiffNet
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.resources import resources_folder

SHAPE = {2: (64, 96), 3: (4, 64, 96)}
"""Small, and with sides that every method takes."""
SPACING = {2: (1.5, 1.5), 3: (4.0, 1.5, 1.5)}
T12, L3, SACRUM = 19, 22, 26

RECORDED: dict[str, dict[str, list[float]]] = {
    "lumbar-mr-atm-net": {
        "classes": [0.04, 0.03641, 0.010964, 0.0054864],
        "rank": [2.2937, 8.1521, 0.92369, 0.53716],
        "classes where the range is given": [0.04, 0.035067, 0.011262, 0.0056614],
        "rank where the range is given": [2.3011, 8.0586, 0.93764, 0.54815],
    },
    "lumbar-mr-la-caf": {
        "classes": [0.04, 0.04, 0.0008, 2.1355e-05],
        "loss total": [3.9555],
        "loss bce": [2.6388],
        "loss dice": [0.74962],
        "loss one_of": [0],
        "loss rank": [2.2683],
    },
    "lumbar-mr-resenc": {
        "kinds": [0.16667, 0.16651, 0.04862, 0.024699],
        "rank": [2.4345, 8.5233, 1.0491, 0.66106],
        "loss total": [12.465],
        "loss cross_entropy": [10.34],
        "loss dice": [0.99974],
        "loss rank": [2.2496],
    },
    "lumbar-mr-scar-net": {
        "classes": [0.04, 0.039991, 0.010401, 0.0052058],
        "rank": [4.5822, 21.092, 2.2541, 1.4915],
        "keypoints": [0.0078143, 0.00033332, 0.0042815, 0.0029556],
        "loss cross_entropy": [14.265],
        "loss heatmaps": [1.0008e-05],
        "loss total": [17.725],
        "loss dice": [0.99999],
        "loss rank": [4.8998],
    },
    "lumbar-mr-verdiff-net": {
        "classes": [0.04, 0.039041, 0.010512, 0.0052891],
        "uncertainty": [0.08684, 0.011926, 0.040906, 0.026331],
        "rank of the prior": [2.1385, 7.2143, 0.84845, 0.49672],
        "loss total": [6.4871],
        "loss cross_entropy": [6.4713],
        "loss kl": [0.015774],
    },
    "xray-verdiff-net": {
        "classes": [0.055556, 0.053159, 0.015113, 0.0076628],
        "rank of the prior": [6.6806, 66.049, 2.6793, 1.5765],
        "loss total": [30.937],
        "loss prior_cross_entropy": [8.9744],
        "loss prior_dice": [0.99773],
        "loss rank": [5.3871],
        "loss kind": [6.0905],
    },
}


def example(method: Method) -> tuple[Tensor, Tensor]:
    """Two images, or one volume, of waves (B, 1, *spatial), fainter ones as their neighbors where the method sees
    these, and their coordinates."""
    dims = method.config.dims
    shape = SHAPE[dims]
    *first, rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    images = [torch.sin(rows / (3 + i)) * torch.cos(columns / (5 + i)) for i in range(2 if dims == 2 else 1)]
    if first:
        images = [image + 0.2 * first[0] for image in images]
    coordinates = coordinate_channels(shape, SPACING[dims])
    seen = torch.stack(images)[:, None]
    around = [seen * 0.9 ** (k + 1) for k in range(2 * len(method.tiling.context_mm))]
    return torch.cat([seen, *around], 1), coordinates.expand(len(images), *coordinates.shape)


def lesson(method: Method) -> Batch:
    """The same images with labels in squares, one column of them undecided, and ranks."""
    images, coordinates = example(method)
    *_, rows, columns = torch.meshgrid(*(torch.arange(n) for n in images.shape[2:]), indexing="ij")
    label = ((rows // 8 + columns // 8) % method.scheme.channels).expand(len(images), *images.shape[2:])
    allowed = torch.stack([label == channel for channel in range(method.scheme.channels)], 1)
    allowed[:, :2, ..., :8] = True
    rank = torch.where(label % 2 == 1, (label % 7).float() - 1, torch.nan)
    return Batch(images, allowed, rank, coordinates, progress=0.5, position=torch.full((len(images),), 0.5))


def moments(values: Tensor) -> list[float]:
    """Of a map: mean, mean square, and means weighted by the place in it. Of a single number: itself."""
    if not values.ndim:
        return [float(values.detach())]
    x = values.detach().double().nan_to_num().flatten()
    place = torch.linspace(0, 1, len(x), dtype=torch.float64)
    return [float(v.mean()) for v in (x, x**2, x * place, x * place**2)]


def observed(name: str) -> dict[str, list[float]]:
    """Moments of what a shipped network says of the example, and of its losses on the lesson."""
    method = load_method(read_header(resources_folder() / "Checkpoints" / f"{name}.safetensors"))
    images, coordinates = example(method)
    said: dict[str, Tensor] = {}
    with torch.no_grad():
        said |= method.evidence(images, Context(coordinates))
        if method.config.method == "atm-net":
            informed = method.evidence(images, Context(coordinates, hints=Hints(visible=(T12, SACRUM))))
            said |= {f"{key} where the range is given": value for key, value in informed.items()}
        if isinstance(method, VerdiffNet) and (rank := method.condition(images, coordinates).rank) is not None:
            said["rank of the prior"] = rank
    if method.config.method != "atm-net":  # it learns from embedded sentences, which do not ship
        torch.manual_seed(0)
        losses = method.training_losses(lesson(method))
        said |= {f"loss {key}": value for key, value in losses.items()}
    return {key: moments(value) for key, value in said.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_a_shipped_network_answers_as_recorded(name):
    now, then = observed(name), RECORDED[name]
    assert now.keys() == then.keys()
    for key, values in then.items():
        np.testing.assert_allclose(now[key], values, rtol=2e-3, atol=2e-5, err_msg=f"{name}: {key}")


def test_every_shipped_checkpoint_is_recorded():
    """All but the one that follows clicks: what it does is tested below."""
    shipped = {path.stem for path in (resources_folder() / "Checkpoints").glob("*.safetensors")}
    assert shipped == {*RECORDED, CLICK_CHECKPOINT}


def test_the_shipped_network_follows_a_click():
    phantom = make_phantom(PhantomSpec(top="L2", slices=9), np.random.default_rng(2))
    truth = sitk.GetArrayFromImage(phantom.labels)
    l3 = np.argwhere(truth == L3)
    rows = l3[:, 1]
    cut = truth.copy()
    cut[:, : int(np.median(rows))][cut[:, : int(np.median(rows))] == L3] = 0
    z, y, x = np.median(l3[rows < np.quantile(rows, 0.3)], axis=0)
    click = Click(L3, phantom.image.TransformContinuousIndexToPhysicalPoint((x, y, z)), True)
    labels = like(phantom.labels, cut)
    found = click_correction(phantom.image, labels, [click], load_click_method(None)).apply(cut)

    def dice(labels):
        return 2 * ((labels == L3) & (truth == L3)).sum() / ((labels == L3).sum() + (truth == L3).sum())

    assert dice(cut) < 0.75 and dice(found) > dice(cut) + 0.1


if __name__ == "__main__":
    for name in RECORDED:
        print(f'    "{name}": {{')
        for key, values in observed(name).items():
            print(f'        "{key}": [{", ".join(f"{value:.5g}" for value in values)}],')
        print("    },")
