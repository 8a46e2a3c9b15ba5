"""The sentences ATM-Net reads (ATPG, section 3.2 of the paper): made from structures, and read back into them.

The wording is ours, the information the paper's. A prompt names what is in a slice, from superior to inferior, what has
no level last, and in which third of the stack the slice lies. What can be said of a label scheme is a finite list, the
*grammar*, so every sentence is embedded once and a checkpoint carries the result. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...anatomy import (
    CANAL_ID,
    CORD_ID,
    Kind,
    LabelScheme,
    Structure,
    disc_below,
    disc_name,
    level_chain,
    order_of,
    sorted_ids,
    structure,
)
from ...errors import HintError, SchemeError

THIRDS = ("upper", "middle", "lower")
"""Thirds of the sagittal stack as the paper calls them: of the slice numbers, from the patient's left to the right."""

Granularity = Literal["3", "2", "1", "range", "empty"]
"""What a training prompt says: as much as an option, the levels alone, or nothing."""

OPTIONS = (1, 2, 3)
"""How much a prompt says: the kind of image; and what it shows; and where the slice lies and what lies below what."""

_REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar", "S": "sacral"}
_TUBES = {CORD_ID: "spinal cord", CANAL_ID: "spinal canal"}
_VARIANTS = (28, 25)  # T13 and L6: in a sentence only where a case has them


@dataclass(frozen=True)
class Prompt:
    """What a sentence says.

    Attributes:
        option: one of `OPTIONS`, or 0 for no words at all.
        structures: ids, top down, structures without a level last.
        third: one of `THIRDS`; option 3 only.
    """

    option: int
    structures: tuple[int, ...] = ()
    third: str = "middle"

    def text(self, scheme: LabelScheme) -> str:
        """The sentence; with nothing to list, that of option 1."""
        if self.option == 0:
            return ""
        opening = _opening(scheme)
        ids = sorted_ids(self.structures)
        if self.option == 1 or not ids:
            return opening
        if self.option == 2:
            return f"{opening} It shows: {', '.join(_name(i, ids) for i in ids)}."
        plane = "mid-sagittal" if self.third == "middle" else "para-sagittal"
        place = f"Slice in the {self.third} third of the sagittal stack ({plane} plane)."
        return f"{opening} {place} From superior to inferior: {'; '.join(_related(ids))}."


def parse_prompt(text: str) -> Prompt:
    """What a sentence says: the inverse of `Prompt.text`.

    Raises:
        HintError: the sentence is not one of the grammar.
    """
    if not text:
        return Prompt(0)
    listed = re.search(r"It shows: (.*)\.$", text)
    related = re.search(r"Slice in the (\w+) third .*? From superior to inferior: (.*)\.$", text)
    try:
        if related:
            names = [_bare(part) for part in related[2].split("; ")]
            return Prompt(3, tuple(structure(n).id for n in names), _third(related[1]))
        if listed:
            return Prompt(2, tuple(structure(_bare(part)).id for part in listed[1].split(", ")))
    except (SchemeError, ValueError) as error:
        raise HintError(f"“{text}” is not a sentence that ATM-Net knows.", str(error)) from None
    if not re.fullmatch(r"Sagittal \w*\s?image of the (lumbar )?spine\.", text):
        raise HintError(f"“{text}” is not a sentence that ATM-Net knows.", "Choose a prompt source instead.")
    return Prompt(1)


def class_prompt(structure_id: int, present: bool) -> str:
    """The sentence about one class, for the contrastive loss; 0 is the background."""
    verb = "contains" if present else "does not contain"
    if structure_id == 0:
        return f"It {verb} background."
    s = structure(structure_id)
    if s.is_vertebral and s.order is not None:
        return f"It {verb} {_REGIONS[s.name[0]]} vertebra {s.name}."
    return f"It {verb} {_name(s.id, (s.id,))}."


def third_of(index: int, count: int) -> str:
    """The third that a slice lies in, which needs no annotation.

    Args:
        index: of the slice, 0 at the patient's left.
        count: slices in the stack.
    """
    return THIRDS[min(int(3 * (index + 0.5) / count), 2)]


# --- runs of levels --------------------------------------------------------------------------------------------------


def level_run(scheme: LabelScheme, top: int, bottom: int, present: Iterable[int] = ()) -> tuple[int, ...]:
    """Every vertebra and disc of the scheme from one vertebra down to another.

    Args:
        scheme: whose structures may be named.
        top: id of the uppermost vertebra.
        bottom: id of the lowest one, or the sacrum.
        present: other ids of the case; T13 and L6 are in the run only if they are among these or the ends.

    Raises:
        HintError: upside down, or an end is not a vertebra.
        SchemeError: an end is not in the scheme.
    """
    upper, lower = scheme.require(top), scheme.require(bottom)
    for end in (upper, lower):
        if not end.is_vertebral or end.order is None:
            raise HintError(f"{end.name} cannot end a range of levels.", "Give vertebrae, such as T11 and S1.")
    if order_of(top) > order_of(bottom):
        raise HintError(
            f"The visible range is upside down: {upper.name} lies below {lower.name}.", "Give the upper level first."
        )
    chain = _chain(scheme, {top, bottom, *present})
    ids = [s.id for s in chain]
    return _with_discs(scheme, chain[ids.index(top) : ids.index(bottom) + 1])


def likely_run(scheme: LabelScheme, present: Collection[int]) -> tuple[int, ...]:
    """The contiguous run of levels that agrees best with a set of structures; empty where no vertebra is in it.

    Each vertebra of the run that is present counts +1, each that is not −1: single gaps are filled, a lone level two or
    more gaps away is omitted.
    """
    chain = _chain(scheme, present)
    score = np.array([1 if s.id in present else -1 for s in chain])
    best, ends = 0, (0, 0)
    for first in range(len(chain)):
        for last in range(first, len(chain)):
            total = int(score[first : last + 1].sum())
            if (total, last - first + 1) > (best, ends[1] - ends[0]) and total > 0:
                best, ends = total, (first, last + 1)
    run = chain[slice(*ends)]
    # T13 and L6 outside the run are not of it; inside, they count as present because the chain has them.
    return _with_discs(scheme, run)


def tubes(scheme: LabelScheme) -> tuple[int, ...]:
    """Ids of the scheme's canal and cord, which follow the levels in a sentence."""
    return scheme.of_kind(Kind.CORD, Kind.CANAL)


def level_range(ids: Collection[int]) -> str:
    """``"T11:S1"``, or nothing where there is no vertebra."""
    names = [s.name for s in map(structure, sorted_ids(ids)) if s.is_vertebral]
    return f"{names[0]}:{names[-1]}" if names else ""


def _all_runs(scheme: LabelScheme) -> list[tuple[int, ...]]:
    runs: dict[tuple[int, ...], None] = {}
    known = [i for i in _VARIANTS if i in scheme.channel_of]
    for variants in ((), *((i,) for i in known), *((tuple(known),) if len(known) > 1 else ())):
        chain = _chain(scheme, variants)
        for first in range(len(chain)):
            for last in range(first, len(chain)):
                runs[_with_discs(scheme, chain[first : last + 1])] = None
    return list(runs)


def _chain(scheme: LabelScheme, present: Iterable[int]) -> list[Structure]:
    return [s for s in level_chain(present) if s.id in scheme.channel_of]


def _with_discs(scheme: LabelScheme, vertebrae: list[Structure]) -> tuple[int, ...]:
    ids: list[int] = []
    for vertebra in vertebrae:
        disc = disc_below(vertebra)
        ids.append(vertebra.id)
        if disc is not None and vertebra is not vertebrae[-1] and disc.id in scheme.channel_of:
            ids.append(disc.id)
    return tuple(ids)


# --- the grammar -----------------------------------------------------------------------------------------------------


def inference_grammar(scheme: LabelScheme, option: int) -> list[str]:
    """Every sentence that inference can meet: none, the general one, and each run of levels at `option`.

    Canal and cord are always named, where the scheme has them: they are in every view of a column.
    """
    prompts = [Prompt(0), Prompt(1)]
    if option > 1:
        rest = tubes(scheme)
        for run in _all_runs(scheme):
            prompts += [Prompt(option, run + rest, third) for third in (THIRDS if option == 3 else ("middle",))]
    return list(dict.fromkeys(p.text(scheme) for p in prompts))


def training_grammar(scheme: LabelScheme) -> list[str]:
    """Every sentence that training can meet: all options, with and without canal and cord, and the class prompts."""
    texts: dict[str, None] = {}
    for option in OPTIONS:
        texts |= dict.fromkeys(inference_grammar(scheme, option))
    if tubes(scheme):
        for run in _all_runs(scheme):
            texts[Prompt(2, run).text(scheme)] = None
            texts |= dict.fromkeys(Prompt(3, run, third).text(scheme) for third in THIRDS)
    texts |= dict.fromkeys(class_prompt(i, present) for i in (0, *scheme.ids) for present in (True, False))
    return list(texts)


# --- what training draws ---------------------------------------------------------------------------------------------


def draw_prompt(
    rng: np.random.Generator,
    scheme: LabelScheme,
    mixture: Mapping[Granularity, float],
    option: int,
    present: Collection[int],
    possible: Collection[int],
    third: str,
    corruption: float,
) -> Prompt:
    """The sentence of one training image, of random granularity and sometimes wrong, so that inference may say less.

    Args:
        rng: decides.
        scheme: of the labels.
        mixture: weights of ``"3" "2" "1" "range" "empty"``; what says more than `option` says `option`.
        option: the most that prompts say.
        present: ids that are labeled in the image.
        possible: ids that may be in it although nobody labeled them; a level of these next to the run is named half of
            the times, since it is neither known to be there nor known to be absent.
        third: where the slice lies.
        corruption: share of the detailed prompts that are one level too short or too long, or in the wrong third.
    """
    kinds = sorted(mixture)
    weights = np.array([mixture[k] for k in kinds], float)
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    if kind == "empty":
        return Prompt(0)
    run = likely_run(scheme, present)
    if kind == "1" or option == 1 or not run:
        return Prompt(1)
    chain = [s.id for s in _chain(scheme, run)]
    levels = [i for i in chain if i in run]
    first, last = chain.index(levels[0]), chain.index(levels[-1])
    if first > 0 and chain[first - 1] in possible and rng.random() < 0.5:
        first -= 1
    if last + 1 < len(chain) and chain[last + 1] in possible and rng.random() < 0.5:
        last += 1
    said = min(option, int(kind)) if kind != "range" else option
    rest = tubes(scheme)
    if kind != "range":
        if rng.random() < corruption:
            wrong = _corrupted(rng, first, last, len(chain), third if said == 3 else None)
            if wrong is not None:
                first, last, other = wrong
                third = other or "middle"
        seen = [i for i in rest if i in present or (i in possible and rng.random() < 0.5)]
        rest = rest if seen else ()
    return Prompt(said, level_run(scheme, chain[first], chain[last], run) + rest, third)


def _corrupted(
    rng: np.random.Generator, first: int, last: int, count: int, third: str | None
) -> tuple[int, int, str | None] | None:
    """A run one level shorter or longer, or another third; None where the choice is impossible."""
    what = rng.integers(3 if third else 2)
    upper_end = rng.random() < 0.5
    if what == 2:
        return first, last, str(rng.choice([t for t in THIRDS if t != third]))
    step = 1 if what == 0 else -1  # 0 drops a level, 1 adds one
    first, last = (first + step, last) if upper_end else (first, last - step)
    return (first, last, third) if 0 <= first <= last < count else None


# --- words -----------------------------------------------------------------------------------------------------------


def _opening(scheme: LabelScheme) -> str:
    if scheme.modality in ("MR", "CT"):
        return f"Sagittal {scheme.modality} image of the lumbar spine."
    return "Sagittal image of the spine."


def _name(structure_id: int, present: Collection[int]) -> str:
    s = structure(structure_id)
    if s.id in _TUBES:
        return _TUBES[s.id]
    if s.kind is Kind.DISC and s.order is not None:
        return f"disc {disc_name(s.id, present)}"
    return f"vertebra {s.name}" if s.is_vertebral and s.order is not None else s.name


def _related(ids: list[int]) -> list[str]:
    parts = []
    for number, sid in enumerate(ids):
        name = _name(sid, ids)
        if sid in _TUBES:
            parts.append(f"{name} behind the column")
            continue
        if structure(sid).kind is Kind.DISC and "/" in name:
            upper, lower = name.removeprefix("disc ").split("/")
            name = f"{name}, lying between {upper} and {lower}"
        parts.append(name if number == 0 else f"below it {name}")
    return parts


def _bare(part: str) -> str:
    """``"below it disc L4/L5, lying between L4 and L5"`` → ``"L4/L5"``."""
    part = part.removeprefix("below it ").removesuffix(" behind the column").split(", lying")[0]
    return part.removeprefix("vertebra ").removeprefix("disc ")


def _third(word: str) -> str:
    if word not in THIRDS:
        raise ValueError(f"{word} is not a third")
    return word
