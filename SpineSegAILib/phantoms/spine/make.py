"""Makes a synthetic spine: image, labels and ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from .acquire import acquire, acquired_geometry
from .chain import build_chain
from .paint import (
    Canvas,
    column_frame,
    paint_body,
    paint_canal,
    paint_disc,
    paint_ligaments,
    paint_posterior,
    paint_sacral_wings,
    paint_surroundings,
    smooth_noise,
    tissues,
)
from .spec import SAMPLE_SPEC, PhantomSpec
from .truth import measure_truth


@dataclass(frozen=True)
class Phantom:
    """A generated case.

    Attributes:
        image: int16; MR in arbitrary units, CT in HU.
        labels: int16, same geometry; structure ids, vertebral *bodies*; every level in view is labeled.
        keypoints: structure id → center (LPS, mm), for vertebrae and discs whose center is in view.
        truth: measurements of the model itself, in mm and degrees; see `make_phantom`.
        spec: what it was made from.
    """

    image: sitk.Image
    labels: sitk.Image
    keypoints: dict[int, tuple[float, float, float]]
    truth: dict
    spec: PhantomSpec


def make_phantom(spec: PhantomSpec, rng: np.random.Generator) -> Phantom:
    """Generate one case. The same spec and generator state give the same voxels.

    `Phantom.truth` holds, in mm and degrees: ``levels`` (names wholly in view), ``heights`` (level → anterior, middle,
    posterior, at 80 % of the half depth before and behind the center and in the middle), ``discs`` (disc id → height in
    the middle), ``canal`` (level, or disc id, → depth of the thecal sac where the body's, or disc's, middle plane meets
    it), ``lordosis`` (L1-S1 endplates), ``sacral_slope``, ``cobb`` (of the whole curve), ``cobb_seen``
    (between the most tilted vertebrae wholly in view), ``listhesis`` (as asked for, of the bodies' middles), ``slip``
    (level → how far its lower back edge lies in front of the upper back edge of the next one below, along the disc
    between them) and ``variant``.
    """
    bodies, discs = build_chain(spec, rng)
    by_name = {b.name: b for b in bodies}
    top, bottom = by_name[spec.top], by_name[spec.bottom]
    first = min(top.at(0, -top.height / 2, k * top.depth / 2)[1] for k in (-1, 1)) - spec.margin_top_mm
    last = max(bottom.at(0, bottom.height / 2, k * bottom.depth / 2)[1] for k in (-1, 1)) + spec.margin_bottom_mm
    rows = np.arange(first, max(last, first + 30.0), spec.pixel_mm)
    width = spec.width_mm or len(rows) * spec.pixel_mm
    seen = [b for b in bodies if rows[0] < b.center[1] < rows[-1] and b.name not in ("S3", "S4", "S5")] or [top]
    middle = np.mean([b.center for b in seen], axis=0)
    columns = middle[2] - spec.spine_position * width + np.arange(0, width, spec.pixel_mm)
    slices = middle[0] + (np.arange(spec.slices) - (spec.slices - 1) / 2) * spec.slice_mm
    if spec.slices > 1:
        slices = slices + rng.uniform(-0.5, 0.5) * spec.slice_mm
    axes = slices.astype(np.float32), rows.astype(np.float32), columns.astype(np.float32)

    canvas = Canvas(axes, spec.pixel_mm)
    t = tissues(spec, rng)
    if spec.contrast != "ct":  # thin cortex is only partly resolved, in some sequences hardly
        t["cortex"] += (t["marrow"] - t["cortex"]) * rng.uniform(0.0, 0.6)
    column, half = column_frame(spec, bodies, discs, rows)
    depth = paint_surroundings(canvas, spec, column, t, rng)
    grain = smooth_noise(axes, (4, 2.5, 2.5), rng) + 0.7 * smooth_noise(axes, (12, 9, 9), rng)
    marrow = {b.name: t["marrow"] * float(np.exp(0.07 * rng.standard_normal())) for b in bodies}
    box = column.box(canvas)
    canvas.paint(box, column.distance(canvas.points(box), grow=2.5, shift=1.0), t["fat"])  # epidural
    for b in bodies:
        if b.name[0] == "S":
            paint_sacral_wings(canvas, b, t, marrow[b.name], half)
        else:
            paint_posterior(canvas, spec, b, t, marrow[b.name], half)
    conus_body = by_name.get(spec.conus, bodies[-1])
    paint_canal(canvas, spec, column, conus_body.at(0, conus_body.height / 2, 0)[1], t, rng)
    paint_ligaments(canvas, bodies, t)
    for d in discs:
        paint_disc(canvas, d, t, grain, rng)
    for b in bodies:
        paint_body(canvas, b, t, marrow[b.name], grain, rng)

    geometry = acquired_geometry(spec, axes)
    image, labels = geometry.image(acquire(canvas, spec, depth, rng)), geometry.image(canvas.labels)
    centers = {b.id: b.center for b in bodies if b.id} | {d.id: d.center for d in discs if d.id}
    keypoints = {}
    for sid, center in centers.items():
        if all(axis[0] <= x <= axis[-1] for axis, x in zip(axes[1:], center[1:], strict=True)):
            x, y, z = (geometry.matrix @ center[::-1]).tolist()
            keypoints[sid] = (x, y, z)
    if spec.orientation != "PIR":
        image, labels = (sitk.DICOMOrient(x, spec.orientation) for x in (image, labels))
    truth = measure_truth(spec, bodies, discs, column, rows)
    return Phantom(image, labels, keypoints, truth, spec)


def sample_case() -> Phantom:
    """The shipped sample, ``Resources/Samples/lumbar_phantom.nii.gz``: T2, T11 to S1, 15 slices of 4 mm."""
    return make_phantom(SAMPLE_SPEC, np.random.default_rng(2024))
