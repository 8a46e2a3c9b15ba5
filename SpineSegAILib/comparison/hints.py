"""What a user who sees a case would tell a method: made of the case's reference, or of what the default finds."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, Kind, structure, vertebra_above
from ..evaluation import HintMaker
from ..hints import Hints
from ..imaging import upright
from ..inference import Predictor


def hint_maker(name: str, device: str) -> HintMaker | None:
    """What an entry's cases are given with (`Entry.hints`); None for nothing.

    Args:
        name: ``"visible"``: the range of levels; ``"reference"``: the reference, for methods that take boxes or centers
            of it; ``"found"``: what the default checkpoint finds, for the same; or empty.
        device: for the default checkpoint.
    """
    if name == "visible":
        return HintMaker(lambda image, reference: visible_levels(reference))
    if name == "reference":
        return HintMaker(
            lambda image, reference: Hints(prior=reference),
            "Each case was given with the boxes of its reference: not a result on new images.",
        )
    if name == "found":
        predictor = Predictor(device=device)
        return HintMaker(
            lambda image, reference: Hints(prior=predictor.segment(image).labels),
            f"Each case was given with the boxes of what {predictor.info.name} finds.",
        )
    return None


def visible_levels(reference: sitk.Image) -> Hints:
    """The range of levels in view: the uppermost and the lowest vertebra that is labeled and wholly in the image.

    A labeled disc stands for the vertebra above it. Few references label the sacrum, though it is in view wherever L5
    is: a range that reaches L5 ends at S1.
    """
    turned = upright(reference)  # kept in a name: a view does not keep its image alive
    labels = sitk.GetArrayViewFromImage(turned)
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
