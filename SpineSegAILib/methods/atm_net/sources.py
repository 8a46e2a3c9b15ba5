"""Where the sentence comes from when nobody has drawn anything: never from a reference mask.

The paper writes its prompts from the annotation and says of no other source, so its gains with detailed prompts partly
reflect being told which levels are visible. Here the reader says it (`range`), a first pass finds it (`self`), the
encoder guesses it (`presence`), or nobody does (`generic`). `oracle` reads the reference, for evaluation alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ...anatomy import LabelScheme
from ...errors import ConfigError, HintError
from ...hints import Hints
from ..base import Context
from ..options import choice_option, switch_option
from .config import AtmNetConfig
from .prompts import Prompt, level_range, level_run, likely_run, third_of, tubes

SOURCES = ("range", "self", "presence", "generic", "none")
"""Where prompts may come from; and in evaluations from the ``oracle``."""
SOURCE = "prompt source"
"""Where a volume's memory holds the source in use."""
RUNS = "runs of levels"
"""Where a volume's memory holds the run of each slice between the passes of `self`."""
SELF_PASSES = 3
"""One without detail, then at most two repeats with what was found."""


def choose(option: int, usual: str, hints: Hints, options: Mapping[str, Any]) -> str:
    """The source of a volume's prompts.

    Args:
        option: the most that the network's prompts say (0: it reads no text, 1: the kind of image).
        usual: the source without hints.
        hints: of the reader.
        options: run-time options.

    Raises:
        ConfigError: the source is unknown, impossible with this network, or forbidden.
        HintError: the range is asked for and not given.
    """
    asked = choice_option(options, "prompt_source", SOURCES, "", unlisted=("oracle",))
    if not switch_option(options, "allow_label_leak", False) and asked == "oracle":
        raise ConfigError(
            "prompt_source=oracle reads the reference segmentation: its result says nothing about new images.",
            "It is for “spinesegai evaluate --allow-label-leak” alone; use range, self or generic.",
        )
    if option == 0:
        if asked not in ("", "none"):
            raise ConfigError(f"This checkpoint reads no text: prompt_source={asked} means nothing.", "Omit it.")
        return "none"
    if option == 1 and asked in ("", "range", "self", "presence", "oracle"):
        if asked:
            raise ConfigError("This checkpoint knows only the general prompt.", "Use prompt_source=generic or none.")
        return "generic"
    both_ends = hints.visible is not None and None not in hints.visible
    if asked == "range" and not both_ends:
        raise HintError("The prompt source is range, and no visible range is given.", "Give one, such as T11:S1.")
    return asked or ("range" if both_ends else usual)


def range_run(scheme: LabelScheme, hints: Hints) -> tuple[int, ...]:
    """The levels of the visible range.

    Raises:
        HintError: upside down.
        SchemeError: a level is not in the scheme.
    """
    top, bottom = hints.visible or (None, None)
    assert top is not None and bottom is not None  # `choose` has seen to it
    return level_run(scheme, top, bottom, present=(a.structure_id for a in hints.anchors))


def prompts(
    source: str,
    scheme: LabelScheme,
    config: AtmNetConfig,
    context: Context,
    found: Sequence[Collection[int]],
    pixel_mm2: float,
) -> list[Prompt]:
    """A prompt per slice of a batch.

    Args:
        source: one of `SOURCES`, not ``"none"``; or ``"oracle"``.
        scheme: of the labels.
        config: of the method.
        context: of the batch.
        found: for `presence`: the structures that each slice seems to show.
        pixel_mm2: area of a pixel.
    """
    slices = context.slices or (0,) * len(found)
    count = context.slice_count if context.slices else 1
    runs: list[tuple[int, ...]]
    if source == "range":
        runs = [range_run(scheme, context.hints)] * len(slices)
    elif source == "self":
        known = context.memory.get(RUNS)
        runs = [known[i] if known else () for i in slices]
    elif source == "presence":
        runs = [likely_run(scheme, ids) for ids in found]
    elif source == "oracle":
        runs = [likely_run(scheme, _drawn(context, i, config.smallest_mm2 / pixel_mm2)) for i in slices]
    else:
        runs = [()] * len(slices)
    rest = tubes(scheme)
    return [
        Prompt(config.option, run + rest, third_of(i, count) if config.option == 3 else "middle") if run else Prompt(1)
        for i, run in zip(slices, runs, strict=True)
    ]


def voted_runs(
    scheme: LabelScheme, classes: np.ndarray, pixel_mm2: float, smallest_mm2: float
) -> list[tuple[int, ...]]:
    """The run of levels of each slice, from a pass over the volume.

    A structure is in a slice if most of the slice and its two neighbors show it on a large enough area.

    Args:
        scheme: what the channels mean.
        classes: (C, D, H, W) probabilities.
        pixel_mm2: area of a pixel.
        smallest_mm2: area from which a structure counts.
    """
    winner = classes.argmax(0)
    areas = np.stack([np.bincount(s.ravel(), minlength=len(classes)) for s in winner]) * pixel_mm2
    seen = (areas >= max(smallest_mm2, pixel_mm2))[:, 1:]
    votes, voters = _with_neighbours(seen), _with_neighbours(np.ones((len(seen), 1), bool))
    voted = 2 * votes > voters
    return [likely_run(scheme, {sid for sid, yes in zip(scheme.ids, row, strict=True) if yes}) for row in voted]


def improved(
    scheme: LabelScheme,
    smallest_mm2: float,
    maps: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    memory: MutableMapping,
) -> bool:
    """Whether a pass over the volume found other runs of levels than it was given, which the next one is to be given
    (`Passes.between` of the source `self`)."""
    if memory.get(SOURCE) != "self":
        return False
    runs = voted_runs(scheme, maps["classes"], spacing[1] * spacing[2], smallest_mm2)
    changed = runs != memory.get(RUNS, [()] * len(runs))
    memory[RUNS] = runs
    return changed


def _with_neighbours(seen: np.ndarray) -> np.ndarray:
    """(D, n) bool → how many of a slice and its neighbors are true."""
    padded = np.pad(seen.astype(int), ((1, 1), (0, 0)))
    return padded[:-2] + padded[1:-1] + padded[2:]


def note(source: str, used: Sequence[Prompt], texts: Sequence[str], context: Context) -> None:
    """Tell the result which sentence was used: the one of the middle slice, and the levels named anywhere."""
    slices = context.slices or (0,)
    named = context.memory.setdefault("named", {})
    named.update({i: prompt.structures for i, prompt in zip(slices, used, strict=False)})
    context.about["prompt_source"] = source
    context.about["prompt_levels"] = level_range({i for ids in named.values() for i in ids})
    middle = context.slice_count // 2 if context.slices else 0
    if middle in slices:
        context.about["prompt"] = texts[slices.index(middle)]


def _drawn(context: Context, index: int, smallest: float) -> set[int]:
    reference = context.memory.get("reference")
    if reference is None:
        raise ConfigError(
            "prompt_source=oracle needs the reference segmentation.", "It is for “spinesegai evaluate” alone."
        )
    ids, counts = np.unique(reference[index], return_counts=True)
    return {int(i) for i, n in zip(ids, counts, strict=True) if i and n >= smallest}
