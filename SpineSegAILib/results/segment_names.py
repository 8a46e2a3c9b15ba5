"""Which structure a segment is: what the reader says, then the level in its name, then our tag, then its terminology.

The name is what people see and change: a segment that was renamed by hand is what it is called, whatever is recorded of
it. A segment's id in its file says nothing: other programs number theirs.

A *target* is what a segment is taken as: a structure's name (``L4``, ``L4/L5``, ``canal``), ``custom:tumor`` for a
structure of the reader's own, or ``ignore``. A segment that nothing is known of has the empty target and is reported.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..anatomy import (
    DISC_ID,
    GENERIC_IDS,
    POSTERIOR_ID,
    STRUCTURES,
    VERTEBRA_ID,
    Extent,
    Kind,
    disc_below,
    next_below,
    posterior_of,
    scheme,
    structure,
    terminology,
)
from ..anatomy.terminology import SCHEME_TAG, STRUCTURE_TAG
from ..errors import DatasetError, SchemeError
from ..files import read_json

IGNORE = "ignore"
CUSTOM = "custom:"

How = Literal["table", "tag", "terminology", "name", ""]

TERMINOLOGY_TAG = "TerminologyEntry"  # Slicer's


@dataclass(frozen=True)
class Placement:
    """What a segment is taken as, and why.

    Attributes:
        target: structure name, ``custom:…``, ``ignore``, or empty if it could not be placed.
        how: where that comes from.
        extent: whether it is a body or a whole vertebra, where that is said.
        note: a sentence for the reader, e.g. that tag and name disagree.
    """

    target: str
    how: How
    extent: Extent | None = None
    note: str = ""


def place(name: str, tags: Mapping[str, str], table: Mapping[str, str], customs: Iterable[str] = ()) -> Placement:
    """What a segment is.

    Args:
        name: the segment's.
        tags: of the segment, as Slicer keeps them.
        table: the reader's: `name_key` of a segment → target.
        customs: names of the reader's own structures that are known already.
    """
    key = name_key(name)
    named = structure_of_name(name)
    said = terminology.structure_of_entry(tags.get(TERMINOLOGY_TAG, ""))
    tagged, tag_extent = _tagged(tags)
    extent = (said[1] if said else None) or tag_extent or (named[1] if named else None)
    if key in table:
        return Placement(table[key], "table", extent)
    if named and named[0] not in (*GENERIC_IDS, tagged):  # “vertebra” alone says less than a tag or a code
        note = ""
        if tagged is not None:
            note = (
                f"“{name}” was made as {STRUCTURES[tagged].name} and renamed by hand: "
                f"it is taken as {STRUCTURES[named[0]].name}."
            )
        return Placement(target_of(named[0]), "name", extent, note)
    if tagged is not None:
        return Placement(target_of(tagged), "tag", extent)
    own = {name_key(custom): custom for custom in customs}
    if key in own:
        return Placement(f"{CUSTOM}{own[key]}", "name")
    if said:
        return Placement(target_of(said[0]), "terminology", extent)
    return Placement(target_of(named[0]), "name", extent) if named else Placement("", "")


def structure_of_segment(name: str, tags: Mapping[str, str]) -> tuple[int | None, Extent | None, str]:
    """Structure id of a segment, its extent where that is said, and a sentence for the reader if it was renamed.

    The id is None for a segment that is not a structure known here.
    """
    customs = [s.name for s in STRUCTURES.values() if s.kind is Kind.CUSTOM]
    found = place(name, tags, {}, customs)
    sid = structure(found.target.removeprefix(CUSTOM)).id if found.target else None
    return sid, found.extent, found.note


def target_of(structure_id: int) -> str:
    """The target that means a structure."""
    s = STRUCTURES[structure_id]
    return f"{CUSTOM}{s.name}" if s.kind is Kind.CUSTOM else s.name


def parse_target(text: str) -> str:
    """A target as the reader wrote it, in its usual form.

    Raises:
        DatasetError: it is none.
    """
    text = re.sub(r"\s+", " ", text.strip())
    if text.lower() == IGNORE:
        return IGNORE
    if text.lower().startswith(CUSTOM):
        name = text[len(CUSTOM) :].strip()
        if not name or name.isdecimal() or set(name) & set("+=,"):
            raise DatasetError(f"“{text}” is not a name for a structure.", "Use letters, as in custom:tumor.")
        try:
            known = structure(name)
        except SchemeError:
            return f"{CUSTOM}{name}"
        return target_of(known.id)
    try:
        return target_of(structure(text).id)
    except SchemeError:
        found = structure_of_name(text)
    if found is None:
        raise DatasetError(
            f"“{text}” is not a structure.",
            "Use names such as L4, L4/L5 or canal, custom:tumor for one of your own, or ignore.",
        )
    return target_of(found[0])


def parse_table(entries: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The reader's table, ready for `place`.

    Raises:
        DatasetError: a target is none, or a name is there twice with different ones.
    """
    table: dict[str, str] = {}
    for name, text in entries:
        target = parse_target(text)
        if table.setdefault(name_key(name), target) != target:
            raise DatasetError(f"“{name.strip()}” is mapped twice.", "Name it once.")
    return table


def read_table(path: str | Path) -> list[tuple[str, str]]:
    """Entries of a JSON file ``{"my tumor": "custom:tumor"}``.

    Raises:
        DatasetError: it cannot be read or is of another form.
    """
    table = read_json(path, DatasetError)
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise DatasetError(
            f"{path} is not a table of names.", 'Write {"my tumor": "custom:tumor", "L4 old": "ignore"}.'
        )
    return list(table.items())


def name_key(name: str) -> str:
    """Names that differ only in case and spaces are one."""
    return re.sub(r"\s+", " ", name.strip().casefold())


def _tagged(tags: Mapping[str, str]) -> tuple[int | None, Extent | None]:
    """Structure id and extent of a segment that we made; what its scheme adds by name is known from then on."""
    extent = None
    if tags.get(SCHEME_TAG):
        with contextlib.suppress(SchemeError):  # of another version: the structure's id means the same
            extent = scheme(tags[SCHEME_TAG]).extent
    text = tags.get(STRUCTURE_TAG, "")
    known = int(text) if text.isdecimal() and int(text) in STRUCTURES else None
    return known, extent if known is not None and STRUCTURES[known].is_vertebral else None


# --- names -----------------------------------------------------------------------------------------------------------

_LEVEL = r"(?:[c][1-7]|(?:th?|d)(?:1[0-3]|[1-9])|l[1-6]|s1)"
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh")
_NUMBERS = {word: str(n) for n, word in enumerate((*_ORDINALS, "twelfth"), start=1)}
# Words as `_plain` has them: without accents. English, German, French, Spanish, Italian and Dutch.
_REGIONS = {
    **dict.fromkeys(("cervical", "cervicale", "hwk", "hw", "halswirbel", "halswirbelkorper"), "c"),
    **dict.fromkeys(("thoracic", "dorsal", "thoracique", "dorsale", "toracica", "bwk", "bw", "brustwirbel"), "t"),
    **dict.fromkeys(("brustwirbelkorper",), "t"),
    **dict.fromkeys(("lumbar", "lombaire", "lombare", "lwk", "lw", "lendenwirbel", "lendenwirbelkorper"), "l"),
    **dict.fromkeys(("swk",), "s"),
}
_BODY_WORDS = {"body", "bodies", "corpus", "vb", "wirbelkorper", "corps", "cuerpo", "corpo", "wervellichaam"}
_VERTEBRA_WORDS = {
    *("vertebra", "vertebrae", "vertebral", "vert", "whole", "bone", "wirbel", "vertebre", "vertebres", "vertebrale"),
    *("wervel", *_BODY_WORDS),
}
_DISC_WORDS = {
    *("disc", "disk", "discs", "disks", "intervertebral", "ivd", "discus", "diskus", "bandscheibe", "bandscheiben"),
    *("zwischenwirbelscheibe", "disque", "disques", "disco", "dischi", "intervertebrale", "tussenwervelschijf"),
}
_POSTERIOR_WORDS = {"posterior", "element", "elements", "arch", "neural"}
_SACRUM_WORDS = {"sacrum", "sacral", "sakrum", "kreuzbein", "sacro", "sacrale", "os"}
_AND = {"and", "und", "et", "y"}
_FILLERS = {
    *("the", "of", "between", "level", "segment", "seg", "label", "mask", "spine", "spinal", "human", "id", *_AND),
    *("de", "du", "des", "der", "die", "das", "le", "la", "el", "il", "della", "del", "zwischen", "entre", "niveau"),
    # what people add to a name when they have looked at it; not “old” and “copy”, of which there is another one
    *("corrected", "edited", "revised", "reviewed", "checked", "fixed", "modified", "manual", "final", "corr"),
    *("korrigiert", "bearbeitet", "corrige", "corrigee", "corregido", "corregida", "corretto", "corretta"),
}
_TUBES = {
    "canal": {
        *("canal", "spinalcanal", "spinalkanal", "wirbelkanal", "canal rachidien", "canale", "canalis"),
        *("vertebral canal", "vertebra canal", "canal vertebral", "canale vertebrale", "canalis vertebralis"),
        *("canal espinal", "canal medullaire", "canal medular", "wervelkanaal"),
    },
    "cord": {
        *("cord", "myelon", "ruckenmark", "moelle", "moelle epiniere", "medula", "medula espinal", "midollo"),
        *("midollo spinale", "medulla spinalis", "ruggenmerg"),
    },
}
_TUBE_NAMES = {words: tube for tube, names in _TUBES.items() for words in names}


def structure_of_name(name: str) -> tuple[int, Extent | None] | None:
    """Structure id and extent that a name says, if every word of it is understood: “vertebra L4”, “L4-5”, “LWK 4”,
    “vertèbre L4”, “disc L4/L5”, “TH12”, “4th lumbar vertebra”, “L4 corrected”, “spinal canal”. None for “L4 tumor”,
    “L4/L6”, “disc L4”, and for numbers: what other programs mean by them is not known."""
    exact = _EXACT.get(name_key(name))
    if exact is not None:
        return exact, None
    text = _plain(name)
    body = "(body)" in text or re.search(rf"vertebral[\s_]*bod|\b(?:{'|'.join(_BODY_WORDS)})\b", text) is not None
    text = re.sub(r"[\s_\-–—/\\.,:;()&+]+", " ", text).strip()
    words = _joined_levels(text)
    levels, rest = [w for w in words if re.fullmatch(_LEVEL, w)], [w for w in words if not re.fullmatch(_LEVEL, w)]
    if not levels and " ".join(rest) in _TUBE_NAMES:
        return structure(_TUBE_NAMES[" ".join(rest)]).id, None
    rest = [w for w in rest if w not in _FILLERS]
    disc = bool(set(rest) & _DISC_WORDS)
    if set(rest) & _SACRUM_WORDS - {"os"}:
        rest = [w for w in rest if w not in _SACRUM_WORDS]
        levels = levels or ["s1"]
    if not levels and " ".join(rest) in _TUBE_NAMES:
        return structure(_TUBE_NAMES[" ".join(rest)]).id, None
    posterior = "posterior" in rest or "arch" in rest
    if posterior:
        rest = [w for w in rest if w not in _POSTERIOR_WORDS]
    if set(rest) - _VERTEBRA_WORDS - _DISC_WORDS - set(_REGIONS):
        return None
    ids = [structure(_usual(level)).id for level in levels]
    if posterior:
        own = posterior_of(ids[0]) if len(ids) == 1 else STRUCTURES[POSTERIOR_ID] if not ids else None
        return (own.id, None) if own and not disc and not body else None
    extent = None if disc else Extent.BODY if body else Extent.WHOLE if "whole" in rest else None
    if not ids and rest and disc:
        return DISC_ID, None
    if not ids and rest and set(rest) & _VERTEBRA_WORDS:
        return VERTEBRA_ID, extent
    if len(ids) == 1 and not disc:
        return ids[0], extent
    if _AND & set(words) and not disc:  # perhaps two vertebrae in one segment
        return None
    if len(ids) == 2 and not set(rest) & (_VERTEBRA_WORDS - {"vertebral"}):
        upper, lower = sorted(ids, key=lambda i: STRUCTURES[i].order or 0.0)
        below = next_below(STRUCTURES[upper], {upper, lower})
        between = disc_below(upper)
        return (between.id, None) if below and below.id == lower and between else None
    return None


def _plain(name: str) -> str:
    """Small letters without accents, without what we add to names ourselves."""
    text = unicodedata.normalize("NFKD", name.strip().casefold())
    text = "".join(c for c in text if not unicodedata.combining(c))
    for own in ("(unvalidated)", "(experimental)"):
        text = text.replace(own, " ")
    return text.replace("koerper", "korper").replace("ruecken", "rucken")


def _joined_levels(text: str) -> list[str]:
    """Words, with levels made out: “l4 5” → l4, l5; “l4l5” → l4, l5; “lumbar vertebra 4”, “4th lumbar” → l4."""
    words: list[str] = []
    text = re.sub(r"\b(lwk?|bwk?|hwk?|swk) ?(?=\d)", lambda m: _REGIONS[m[1]], text)  # LWK 4 is L4
    text = re.sub(r"\b(l|th?|d|c|s) (?=\d)", r"\1", text)
    for word in text.split():
        pair = re.fullmatch(rf"({_LEVEL})({_LEVEL}|s)", word)
        words += [pair[1], pair[2]] if pair else [re.sub(r"^(\d+)(st|nd|rd|th)$", r"\1", _NUMBERS.get(word, word))]
    region = next((_REGIONS[w] for w in words if w in _REGIONS), "")
    found: list[str] = []
    for word in words:
        last = found[-1] if found else ""
        if word == "s" and re.fullmatch(r"l[56]", last):
            found.append("s1")
        elif word.isdecimal() and re.fullmatch(_LEVEL, last):  # L4-5; a number that does not follow is a copy's
            letter = last.rstrip("0123456789")
            found.append(f"{letter}{word}" if int(word) == int(last.removeprefix(letter)) + 1 else "?")
        elif word.isdecimal() and region and re.fullmatch(_LEVEL, f"{region}{word}"):
            found.append(f"{region}{word}")
        else:
            found.append(word)
    return found


def _usual(level: str) -> str:
    """``TH12`` and ``D12`` are T12."""
    return re.sub(r"^(th|d)", "t", level).upper()


_EXACT = {name_key(s.name): s.id for s in STRUCTURES.values() if s.kind is not Kind.CUSTOM}
"""Names as `anatomy` has them; those of vessels among them."""
