"""What Slicer needs to know of `anatomy`: terminology entries of segments, the terminology file and the color table.

``python -m SpineSegAILib.anatomy.terminology`` writes ``Resources/Terminology``; a test compares it with what is there.

Codes are SNOMED CT. Where none is known for a level, the type is the generic concept (“Vertebral body”) and the level
is its modifier, in DICOM's way of naming codes that are nobody else's: a coding scheme that begins with 99.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import anatomy
from ..files import atomic_write
from .structures import BUILT_IN, STRUCTURES, Code, Extent, Kind

STRUCTURE_TAG = "SpineSegAI.StructureId"
CONFIDENCE_TAG = "SpineSegAI.Confidence"
QUALITY_TAG = "SpineSegAI.OutlineQuality"
UNSCALED_TAG = "SpineSegAI.UnknownScale"
UNVALIDATED_TAG = "SpineSegAI.Unvalidated"
SCHEME_TAG = "SpineSegAI.Scheme"
"""Tags of a segment in Slicer, which keeps them when it saves; the first is its identity, whatever its name.

The confidence is that of the levels, the same in every segment that has one; the quality is that of the segment's
outline. Both are 0…1. The scale is unknown where the image did not tell the size of its pixels."""

LOG_ATTRIBUTE = "SpineSegAI.CorrectionLog"
"""Attribute of a segmentation node in Slicer (or tag of one of its segments): the correction log as JSON."""

CONTEXT = "Segmentation category and type - SpineSegAI"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
CATEGORY = Code("123037004", "Anatomical Structure")
PRIVATE_SCHEME = "99SPINESEGAI"

TERMINOLOGY_FILE = "SpineSegAI-SegmentationCategoryTypeModifier.json"
COLORS_FILE = "SpineSegAI-Colors.ctbl"


def codes(structure_id: int, present: Iterable[int] = (), extent: Extent | None = None) -> tuple[Code, Code | None]:
    """Type and modifier of a structure; together they name it unambiguously.

    Args:
        present: ids in the case, since the disc below L5 is L5/L6 where there is an L6.
        extent: whether vertebral masks are bodies or whole vertebrae; whole where not given.
    """
    s = anatomy.structure(structure_id)
    present = set(present)
    concept = anatomy.code(s.id, present, extent)
    side = anatomy.laterality(s.id)
    if s.kind is Kind.POSTERIOR:
        return concept, Code(s.name.removesuffix(" elements"), s.name, PRIVATE_SCHEME)  # 16 characters at most
    if side or s.order is None or not _is_generic(concept):
        return concept, side
    level = anatomy.disc_name(s.id, present) if s.kind is Kind.DISC else s.name
    return concept, Code(level, level, PRIVATE_SCHEME)


def terminology_entry(structure_id: int, present: Iterable[int] = (), extent: Extent | None = None) -> str:
    """The serialised entry that Slicer keeps in a segment's ``TerminologyEntry`` tag.

    The parts, separated by ``~``: context, category, type, type modifier, anatomic context, region, region modifier.
    """
    concept, modifier = codes(structure_id, present, extent)
    return "~".join((CONTEXT, _joined(CATEGORY), _joined(concept), _joined(modifier), ANATOMIC_CONTEXT, "^^", "^^"))


def structure_of_entry(entry: str) -> tuple[int, Extent | None] | None:
    """Structure id and extent that a serialised entry stands for; None if it names none of ours.

    The context does not matter: entries made with another terminology are understood by their codes. The code tells a
    body from a whole vertebra; for discs and others the extent is None.
    """
    parts = entry.split("~")
    return structure_of_codes(parts[2].split("^"), parts[3].split("^")) if len(parts) >= 4 else None


def structure_of_codes(
    concept: Sequence[str] | None, modifier: Sequence[str] | None
) -> tuple[int, Extent | None] | None:
    """The same for a type and its modifier, each as coding scheme, value and (not looked at) meaning."""
    if not concept:
        return None
    return _BY_CODES.get((tuple(concept[:2]), tuple(modifier[:2]) if modifier and modifier[0] else None))


def terminology_document() -> dict[str, Any]:
    """The JSON document that Slicer's Terminologies module loads: every structure, bodies and whole vertebrae."""
    types: dict[str, dict[str, Any]] = {}
    for s, present, extent in _variants():
        concept, modifier = codes(s.id, present, extent)
        entry = types.setdefault(concept.value, _coded(concept))
        if modifier is None:
            entry["recommendedDisplayRGBValue"] = list(s.color_255)
            entry["3dSlicerLabel"] = anatomy.display_name(s.id, present, extent)
            entry["3dSlicerIntegerLabel"] = s.id
        else:
            entry.setdefault("recommendedDisplayRGBValue", list(s.color_255))
            modifiers = entry.setdefault("Modifier", [])
            if all(m["CodeValue"] != modifier.value for m in modifiers):
                modifiers.append(
                    {
                        **_coded(modifier),
                        "recommendedDisplayRGBValue": list(s.color_255),
                        "3dSlicerLabel": anatomy.display_name(s.id, present, extent),
                        "3dSlicerIntegerLabel": s.id,
                    }
                )
    return {
        "SegmentationCategoryTypeContextName": CONTEXT,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [{**_coded(CATEGORY), "showAnatomy": False, "Type": list(types.values())}]},
    }


def color_table() -> str:
    """Slicer's color table: a line per structure id with name, red, green, blue and alpha in 0…255."""
    lines = [
        "# Color table file SpineSegAI",
        f"# {len(BUILT_IN) + 1} values",
        "0 background 0 0 0 0",
    ]
    for sid in sorted(BUILT_IN):
        name = anatomy.display_name(sid).replace(" ", "_")  # Slicer shows underscores as spaces
        lines.append(f"{sid} {name} {' '.join(str(c) for c in STRUCTURES[sid].color_255)} 255")
    return "\n".join(lines) + "\n"


def write_resources(folder: str | Path) -> list[Path]:
    """Writes the terminology and the color table into a folder; returns what was written.

    Raises:
        OutputError: if the folder cannot be written to.
    """
    paths = [Path(folder) / TERMINOLOGY_FILE, Path(folder) / COLORS_FILE]
    contents = [json.dumps(terminology_document(), indent=2, ensure_ascii=False) + "\n", color_table()]
    with atomic_write(*paths) as places:
        for path, content in zip(places, contents, strict=True):
            path.write_text(content, encoding="utf-8", newline="\n")
    return paths


def _is_generic(concept: Code) -> bool:
    return concept.value in _GENERIC_VALUES


def _joined(concept: Code | None) -> str:
    return f"{concept.scheme}^{concept.value}^{concept.meaning}" if concept else "^^"


def _coded(concept: Code) -> dict[str, Any]:
    return {"CodingSchemeDesignator": concept.scheme, "CodeValue": concept.value, "CodeMeaning": concept.meaning}


def _variants() -> Iterator[tuple[anatomy.Structure, frozenset[int], Extent | None]]:
    """Every structure with each extent that it can have, and discs under both names that T13 and L6 give them."""
    for sid in anatomy.sorted_ids(BUILT_IN):
        s = STRUCTURES[sid]
        if s.is_vertebral:
            yield from ((s, frozenset(), extent) for extent in (Extent.WHOLE, Extent.BODY))
        else:
            yield s, frozenset(), None
            other = {"T12/L1": frozenset({28}), "L5/S1": frozenset({25})}.get(s.name)
            if other:
                yield s, other, None


# Concepts that stand for more than one level: what `anatomy.code` gives for structures without a level.
_GENERIC_VALUES = frozenset(
    anatomy.code(sid, (), extent).value for sid in (anatomy.VERTEBRA_ID, anatomy.DISC_ID) for extent in Extent
)


def _by_codes() -> dict[tuple[tuple[str, ...], tuple[str, ...] | None], tuple[int, Extent | None]]:
    result: dict[tuple[tuple[str, ...], tuple[str, ...] | None], tuple[int, Extent | None]] = {}
    for s, present, extent in _variants():
        concept, modifier = codes(s.id, present, extent)
        key = ((concept.scheme, concept.value), (modifier.scheme, modifier.value) if modifier else None)
        result.setdefault(key, (s.id, extent))
    return result


_BY_CODES = _by_codes()


if __name__ == "__main__":
    for written in write_resources(Path(__file__).parents[2] / "Resources" / "Terminology"):
        print(written)
