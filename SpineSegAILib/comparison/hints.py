"""What a user who sees a case would tell a method, made of the case's reference."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, Kind, structure, vertebra_above
from ..hints import Hints


def visible_levels(reference: sitk.Image) -> Hints:
    """The range of levels in view: the uppermost and the lowest vertebra that is labelled and wholly in the image.

    A labelled disc stands for the vertebra above it. Few references label the sacrum, though it is in view wherever L5
    is: a range that reaches L5 ends at S1.
    """
    upright = sitk.DICOMOrient(reference, "PIR")  # y runs downwards
    labels = sitk.GetArrayViewFromImage(upright)
    levels = set()
    for sid in (int(v) for v in np.unique(labels) if v):
        rows = np.flatnonzero((labels == sid).any((0, 2)))
        kind = STRUCTURES[sid].kind
        if kind is Kind.DISC and STRUCTURES[sid].order is not None:
            levels.add(vertebra_above(sid).id)
        elif kind is Kind.VERTEBRA and rows[0] > 0 and rows[-1] < labels.shape[1] - 1:
            levels.add(sid)
    if not levels:
        return Hints()
    in_order = sorted(levels, key=lambda sid: STRUCTURES[sid].order or 0.0)
    last = in_order[-1] if in_order[-1] != structure("L5").id else structure("S1").id
    return Hints(visible=(in_order[0], last))
