"""Reading segmentations: what `files` writes, what people corrected in 3D Slicer, and label images of other programs.

This is the one reader for segmentations given as input. A segment is what it is called (`segment_names`); what is not
understood is said or refused, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .. import anatomy
from ..anatomy import STRUCTURES, VALUE_MAPS, Extent, LabelScheme, sorted_ids
from ..anatomy.terminology import (
    CONFIDENCE_TAG,
    QUALITY_TAG,
    SCHEME_TAG,
    STRUCTURE_TAG,
    UNSCALED_TAG,
    UNVALIDATED_TAG,
)
from ..errors import ConfigError, CorrectionError, ImageError, SchemeError, one_of
from ..files import SEGMENTATION_SUFFIXES, parse_json, read_json, stem_and_suffix
from ..imaging import carry_tags, read_file, whole_numbers
from ..imaging.geometry import RAS_FROM_LPS, like, set_index_to_lps
from .checks import check_once, check_overlap
from .files import HEADER_KEY, REFERENCE, side_file
from .numbering import Place, fitting_numberings, implausible, out_of_order, places, upside_down
from .segment_names import structure_of_segment
from .segmentation import FORMAT, Segmentation, set_direction
from .slicer_file import StoredSegmentation, conversion_parameter, damaged, has_segments, layers_of, read_stored

_MOST_VALUES = 150  # of labels: TotalSegmentator has 117, an image of 8 bits about 250
_LARGEST_GRID = 2**28  # voxels of the image that a cropped segmentation is brought back to: 512 × 512 × 1024


def read_segmentation(path: str | Path, *, complete: bool = False, values: str | None = None) -> Segmentation:
    """Reads what `Segmentation.write` wrote, segmentations that Slicer saved, and label images.

    A segment of Slicer is what its name says, else our tag, else its terminology; ids that programs give to segments do
    not count. A label image without our side file holds structure ids, or another program's numbers.

    Args:
        complete: refuse what would be omitted, instead of a warning.
        values: numbering of a label image, one of `anatomy.VALUE_MAPS`; default: structure ids.

    Returns:
        the segmentation; what was omitted or is doubtful stands in its `notes`, the former in its `warnings` too.

    Raises:
        ImageError: missing, damaged or foreign file.
        CorrectionError: segments overlap or are there twice, or something would be omitted (`complete`).
        SchemeError: values are not structures, or levels run upside down: numbers that mean something else.
        ConfigError: `values` is given for a file that says itself what it holds.
    """
    path = Path(path)
    _, suffix = stem_and_suffix(path)
    if path.is_dir():
        raise ImageError(f"“{path}” is a folder.", "Give the file of the segmentation.")
    if not path.is_file():
        raise ImageError(f"“{path}” was not found.", "Check the name of the file.")
    if suffix not in SEGMENTATION_SUFFIXES:
        raise ImageError(f"“{path.name}” is not a segmentation file.", f"Use {one_of(SEGMENTATION_SUFFIXES)}.")
    if not has_segments(path):
        return _read_label_image(path, values)
    if values:
        raise _needless(path)
    return _read_slicer(path, complete)


def _order_notes(where: Mapping[int, Place], name: str, ours: bool) -> list[str]:
    """A sentence if levels lie the other way round.

    Args:
        where: structure id → place (`numbering.places`).
        name: of the file.
        ours: whether SpineSegAI named the structures, so that they mean what they say.

    Raises:
        SchemeError: levels that others named run upside down.
    """
    wrong = upside_down(where)
    pairs = [wrong] if wrong else out_of_order(where)
    words = ", ".join(f"{STRUCTURES[lower].name} lies above {STRUCTURES[upper].name}" for upper, lower in pairs)
    if wrong and not ours:
        raise SchemeError(
            f"The levels of “{name}” run upside down: {words}.",
            "Correct their names; if the image is upside down, correct its orientation.",
        )
    how = "run upside down" if wrong else "are out of order"
    return [f"The levels of “{name}” {how}: {words}."] if pairs else []


# --- label images ----------------------------------------------------------------------------------------------------


def _read_label_image(path: Path, values: str | None) -> Segmentation:
    labels = _label_image(path)
    side = side_file(path)
    summary = _summary(side)
    if summary and values:
        raise _needless(path)
    _known_scheme(summary.get("scheme"))
    if values:
        labels = _translated(labels, values, path)
    set_direction(labels, summary)
    where = places(labels)
    _refuse_foreign(where, path)
    if not summary and not values:
        _refuse_implausible(where, path)
    notes = _order_notes(where, path.name, ours=bool(summary))
    result = _assembled(carry_tags(labels, sitk.Cast(labels, sitk.sitkInt16)), summary, where, str(side or path))
    result.notes += notes
    return result


def _label_image(path: Path) -> sitk.Image:
    """The labels of a file as whole numbers."""
    image = read_file(path)
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(
            f"“{path.name}” is not a label image: it is not three-dimensional with one value per voxel.",
            "Give a segmentation of the whole volume.",
        )
    image = whole_numbers(image, f"“{path.name}”")
    raw = sitk.GetArrayViewFromImage(image)
    different = len(np.unique(raw))
    if different > _MOST_VALUES:
        raise ImageError(
            f"“{path.name}” is an image, not a segmentation: it holds {different} different values.",
            "Choose the segmentation that was drawn on it.",
        )
    beyond = [v for v in (raw.min(), raw.max()) if not 0 <= v <= np.iinfo(np.int32).max]
    if beyond:
        raise SchemeError(f"“{path.name}” has label values that are not structure ids: {beyond[0]:g}.", _remedy([]))
    return carry_tags(image, like(image, raw.astype(np.int32)))


def _refuse_foreign(where: Mapping[int, Place], path: Path) -> None:
    """Raises:
    SchemeError: a value is not a structure id.
    """
    foreign = [value for value in where if value not in STRUCTURES]
    if foreign:
        listed = ", ".join(map(str, foreign[:5]))
        raise SchemeError(
            f"“{path.name}” has label values that are not structure ids: {listed}.", _remedy(fitting_numberings(where))
        )


def _refuse_implausible(where: Mapping[int, Place], path: Path) -> None:
    """Raises:
    SchemeError: the values cannot be structure ids, since their voxels lie elsewhere than these structures would.
    """
    if set(where) == {1}:  # C1, and nothing else? Rather the mask of whatever it was drawn on
        raise SchemeError(
            f"“{path.name}” is a mask: its only value is 1, which is not the id of a structure.",
            "Give it the value of what it shows (L1 20 … L5 24, S1 26, canal 61), or name its segment in 3D Slicer.",
        )
    why = implausible(where)
    if why:
        raise SchemeError(
            f"The values of “{path.name}” are not structure ids: {why}.", _remedy(fitting_numberings(where))
        )


def _remedy(fitting: list[str]) -> str:
    if not fitting:
        return "Give it the values of SpineSegAI (L1 20 … L5 24, S1 26, canal 61), or name its segments in 3D Slicer."
    return f"It looks like the numbering of {one_of(fitting)}: use --label-values {fitting[0]}."


def _translated(labels: sitk.Image, values: str, path: Path) -> sitk.Image:
    """Labels of another program as structure ids."""
    if values not in VALUE_MAPS:
        raise ConfigError(f"“{values}” is not a numbering.", f"Available: {', '.join(VALUE_MAPS)}.")
    table = VALUE_MAPS[values]
    raw = sitk.GetArrayViewFromImage(labels)
    found = np.unique(raw)
    foreign = [v for v in found.tolist() if v and v not in table]
    if foreign:
        listed = ", ".join(map(str, foreign[:5]))
        raise SchemeError(
            f"“{path.name}” has label values that {values} does not use: {listed}.",
            _remedy(fitting_numberings(places(labels))),
        )
    ids = np.array([table.get(v, 0) for v in found.tolist()], np.int32)
    translated = like(labels, ids[np.searchsorted(found, raw)])
    why = implausible(places(translated))
    if why:
        fitting = [name for name in fitting_numberings(places(labels)) if name != values]
        raise SchemeError(f"The values of “{path.name}” are not those of {values}: {why}.", _remedy(fitting))
    return translated


def _summary(side: Path | None) -> dict[str, Any]:
    """Our document beside a label image; empty if there is none, or somebody else's."""
    if side is None or not side.is_file():
        return {}
    try:
        found = read_json(side, ImageError)
    except ImageError as error:
        raise ImageError(error.message, "Remove it to read the label image alone.") from None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}


def _needless(path: Path) -> ConfigError:
    return ConfigError(f"“{path.name}” already lists the structures that it holds.", "Omit --label-values.")


# --- segmentations of Slicer -----------------------------------------------------------------------------------------


@dataclass
class _Named:
    """What the segments of a file are, by structure id.

    Attributes:
        values: structure id of every voxel, (z, y, x).
        tags: of each structure's segment.
        former: structure id by our tag → id by the name, of segments renamed by hand.
        unknown: what is omitted.
    """

    values: np.ndarray
    tags: dict[int, Mapping[str, str]] = field(default_factory=dict)
    extents: set[Extent] = field(default_factory=set)
    former: dict[int, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _read_slicer(path: Path, complete: bool) -> Segmentation:
    stored = read_stored(path)
    summary = _header_document(stored, path)
    _known_scheme(summary.get("scheme"))
    for segment in stored.segments:
        _known_scheme({"name": segment.tags.get(SCHEME_TAG)})
    named = _named(stored)
    if named.unknown and complete:
        raise CorrectionError(
            f"“{path.name}” has segments that are not structures of SpineSegAI: {', '.join(named.unknown)}.",
            "Name them after structures (L4, L4/L5, canal …), or remove them.",
        )
    labels = _uncropped(like(_first(stored.image), named.values), stored, path)
    ours = not named.former and all(STRUCTURE_TAG in tags for tags in named.tags.values())
    set_direction(labels, summary)
    notes = [*named.notes, *_order_notes(places(labels), path.name, ours)]
    result = _assembled(labels, summary, named.tags, path.name, named.extents)
    _follow(result, named, has_document=bool(summary))
    result.notes += notes
    if named.unknown:
        left_out = f"Omitted, since no structure of SpineSegAI has that name: {', '.join(named.unknown)}."
        result.notes.append(left_out)
        result.warnings = list(dict.fromkeys([*result.warnings, left_out]))
    return result


def _first(image: sitk.Image) -> sitk.Image:
    return sitk.VectorIndexSelectionCast(image, 0) if image.GetNumberOfComponentsPerPixel() > 1 else image


def _header_document(stored: StoredSegmentation, path: Path) -> dict[str, Any]:
    found = parse_json(stored.keys.get(HEADER_KEY, "{}"), path.name, ImageError)
    if not isinstance(found, dict):
        raise damaged(path)
    return found


def _named(stored: StoredSegmentation) -> _Named:
    layers = layers_of(stored.image)
    named = _Named(np.zeros(layers[0].shape, np.int16))
    masks: dict[int, np.ndarray] = {}
    called: list[tuple[int, str]] = []
    for segment in stored.segments:
        mask = layers[segment.layer] == segment.value
        sid, extent, note = structure_of_segment(segment.name, segment.tags)
        if sid is None:
            if mask.any():
                named.unknown.append(f"“{segment.name}”")
            continue
        called.append((sid, segment.name))
        check_once(called)
        masks[sid] = mask
        named.tags[sid] = segment.tags
        if extent:
            named.extents.add(extent)
        if note:
            named.notes.append(note)
            named.former[int(segment.tags[STRUCTURE_TAG])] = sid
    for stray in stored.orphans.values():
        named.unknown += [f"value {v:g}, which no segment has" for v in stray]
    check_overlap(masks)
    for sid, mask in masks.items():
        named.values[mask] = sid
    return named


def _follow(result: Segmentation, named: _Named, has_document: bool) -> None:
    """What is known of a structure follows its segment where that was renamed; tags know better than the document."""
    new = named.former
    gone = set(new) - set(new.values())
    result.keypoints = {new.get(i, i): p for i, p in result.keypoints.items() if i in named.tags or i in new}
    result.outline_quality = {new.get(i, i): q for i, q in result.outline_quality.items() if i not in gone or i in new}
    # Of absent structures nothing follows: who takes the name of one does not become experimental.
    as_before = set(named.tags) - set(new.values())
    result.unvalidated = frozenset(new.get(i, i) for i in result.unvalidated if i in new or i in as_before)
    for sid, tags in named.tags.items():
        quality = _share(tags.get(QUALITY_TAG, ""))
        if quality is not None:
            result.outline_quality[sid] = quality
    if not has_document:  # Slicer keeps the tags of the segments, not the header
        confidence = [_share(tags.get(CONFIDENCE_TAG, "")) for tags in named.tags.values()]
        result.level_confidence = min((c for c in confidence if c is not None), default=None)
        result.scale_known = not any(UNSCALED_TAG in tags for tags in named.tags.values())
        result.unvalidated = frozenset(sid for sid, tags in named.tags.items() if UNVALIDATED_TAG in tags)
        schemes = {tags[SCHEME_TAG] for tags in named.tags.values() if SCHEME_TAG in tags}
        if len(schemes) == 1:
            result.scheme = _known_scheme({"name": schemes.pop()}) or result.scheme


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _uncropped(labels: sitk.Image, stored: StoredSegmentation, path: Path) -> sitk.Image:
    """Labels on the grid of the image that was segmented: Slicer may save just the box that holds the segments."""
    written = conversion_parameter(stored.keys, REFERENCE)
    try:
        numbers = [float(part) for part in written.split(";") if part.strip()]
        extent = [int(n) for n in numbers[16:]]
    except (ValueError, OverflowError):
        raise damaged(path) from None
    if len(numbers) != 22 or not np.isfinite(numbers).all():
        return labels
    size = [last - first + 1 for first, last in zip(extent[::2], extent[1::2], strict=True)]
    if min(size) < 1 or math.prod(size) > _LARGEST_GRID:
        return labels
    matrix = RAS_FROM_LPS @ np.reshape(numbers[:16], (4, 4))
    matrix[:3, 3] = (matrix @ [*extent[::2], 1.0])[:3]
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        return labels
    reference = sitk.Image(size, labels.GetPixelID())
    set_index_to_lps(reference, matrix)
    same_grid = np.allclose(reference.GetSpacing(), labels.GetSpacing(), rtol=1e-3) and np.allclose(
        reference.GetDirection(), labels.GetDirection(), atol=1e-3
    )
    if not same_grid:  # drawn on a finer grid: left as drawn
        return labels
    return sitk.Resample(labels, reference, sitk.Transform(), sitk.sitkNearestNeighbor)


# --- what both have in common ----------------------------------------------------------------------------------------


def _assembled(
    labels: sitk.Image, document: dict[str, Any], present: Iterable[int], name: str, extents: Iterable[Extent] = ()
) -> Segmentation:
    """Voxels with the document that was written with them; without one, the scheme is made up from the voxels."""
    found = set(extents)
    extent = found.pop() if len(found) == 1 else None
    scheme = LabelScheme("file", "Structures of a file", tuple(sorted_ids(present)), extent, "any")
    try:
        return Segmentation.from_document(labels, document, scheme=scheme)
    except ImageError as error:
        raise ImageError(f"“{name}”: {error.message[0].lower()}{error.message[1:]}", error.remedy) from error


def _known_scheme(described: Any) -> LabelScheme | None:
    """The scheme that a file names, if it is one of ours; from then on the structures that it adds are known."""
    name = described.get("name") if isinstance(described, dict) else None
    try:
        return anatomy.scheme(name) if isinstance(name, str) else None
    except SchemeError:
        return None
