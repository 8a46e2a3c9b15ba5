"""Whole vertebrae, as a view of a result that has bodies and posterior elements apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..anatomy import SCHEMES, STRUCTURES, Extent, Kind, LabelScheme, extended, level_of, scheme, sorted_ids
from ..errors import ConfigError
from ..imaging.geometry import like
from .segmentation import Segmentation

WHOLE_SCHEME = "lumbar-mr-whole"
GAP_MM = 2.0
"""A body and its own posterior elements grow together over a gap of this width, which is that of their outlines."""


def whole_vertebrae(segmentation: Segmentation) -> Segmentation:
    """A copy in which the posterior elements of each vertebra are part of it.

    Posterior elements whose vertebra is not segmented stay out. A vertebra is as certain, and as experimental, as its
    body; where its posterior elements are experimental a warning says so.

    Raises:
        ConfigError: there are no posterior elements to add.
    """
    if segmentation.scheme.extent is Extent.WHOLE:
        return segmentation
    values = sitk.GetArrayFromImage(segmentation.labels)
    boxes = ndimage.find_objects(values)
    present = {sid for sid, box in enumerate(boxes, start=1) if box is not None}
    posterior = {sid for sid in present if sid in STRUCTURES and STRUCTURES[sid].kind is Kind.POSTERIOR}
    if not segmentation.scheme.of_kind(Kind.POSTERIOR) and not posterior:
        raise ConfigError(
            f"Whole vertebrae need posterior elements, which the label scheme “{segmentation.scheme.name}” lacks.",
            "Use a model that segments them, or --extent body.",
        )
    spacing = segmentation.labels.GetSpacing()[::-1]
    for sid in sorted(posterior):
        vertebra = level_of(sid)
        if vertebra in present:
            _join(values, sid, vertebra, (boxes[sid - 1], boxes[vertebra - 1]), spacing)
        values[values == sid] = vertebra if vertebra in present else 0
    warnings = list(segmentation.warnings)
    doubtful = [STRUCTURES[level_of(sid)].name for sid in sorted_ids(posterior & segmentation.unvalidated)]
    if doubtful:
        warnings.append(f"The posterior elements of {', '.join(doubtful)} are experimental.")
    every = {i for i, s in STRUCTURES.items() if s.kind is Kind.POSTERIOR}
    return replace(
        segmentation,
        labels=like(segmentation.labels, values),
        scheme=_scheme(set(segmentation.scheme.ids) - every),
        outline_quality={i: q for i, q in segmentation.outline_quality.items() if i not in every},
        alternatives=[a.restricted_to(set(STRUCTURES) - every) for a in segmentation.alternatives],
        keypoints={i: p for i, p in segmentation.keypoints.items() if i not in every},
        unvalidated=segmentation.unvalidated - every,
        warnings=warnings,
        provenance=dict(segmentation.provenance),
    )


def _scheme(ids: set[int]) -> LabelScheme:
    """The scheme of whole vertebrae, with what a result has beyond it: the cord, or the reader's own structures."""
    more = sorted_ids(ids - set(SCHEMES[WHOLE_SCHEME].ids))
    return scheme(extended(WHOLE_SCHEME, [STRUCTURES[sid].name for sid in more]))


def _join(
    values: np.ndarray,
    first: int,
    second: int,
    boxes: tuple[tuple[slice, ...], tuple[slice, ...]],
    spacing: tuple[float, ...],
) -> None:
    """Gives the background between two structures to the second, where they are close to each other."""
    margin = [int(np.ceil(GAP_MM / mm)) for mm in spacing]
    box = tuple(
        slice(max(min(a.start, b.start) - m, 0), min(max(a.stop, b.stop) + m, n))
        for a, b, m, n in zip(*boxes, margin, values.shape, strict=True)
    )
    part = values[box]
    near = [ndimage.distance_transform_edt(part != sid, sampling=spacing) for sid in (first, second)]
    part[(part == 0) & (near[0] + near[1] <= GAP_MM + min(spacing))] = second
