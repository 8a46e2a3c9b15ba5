"""Files of a segmentation, with structure ids as voxel values.

- ``.seg.nrrd``: what 3D Slicer opens as a segmentation, with a named, coloured and coded segment per structure;
- ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``: a label image (VerSe ids), and beside it ``<name>.json`` with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .. import anatomy
from ..anatomy import STRUCTURES, Extent, LabelScheme, sorted_ids, terminology
from ..anatomy.terminology import CONFIDENCE_TAG, SCHEME_TAG, STRUCTURE_TAG, UNVALIDATED_TAG
from ..errors import CorrectionError, ImageError, OutputError, SchemeError
from ..files import parse_json, read_exactly, read_json, staged
from ..imaging.geometry import RAS_FROM_LPS, index_to_lps, set_index_to_lps
from .segmentation import FORMAT, Segmentation

SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")
"""File types that a segmentation can be written to and read from."""
_REFERENCE = "Reference image geometry"  # Slicer's conversion parameter; without it Slicer saves cropped segments
_HEADER_KEY = "SpineSegAI_Result"  # of a .seg.nrrd: the same document as in the other formats' side file


def stem_and_suffix(path: str | Path) -> tuple[str, str]:
    """File name without and with its suffix, double ones kept together: ``("case", ".nii.gz")``."""
    name = Path(path).name
    for double in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(double):
            return name[: -len(double)], double
    suffix = Path(name).suffix
    return name.removesuffix(suffix), suffix.lower()


def side_file(path: Path) -> Path | None:
    """Where a label image's names, confidence and provenance are; None for a ``.seg.nrrd``, which holds them."""
    stem, suffix = stem_and_suffix(path)
    return None if suffix == ".seg.nrrd" else path.with_name(f"{stem}.json")


def refuse_foreign_side_file(path: Path) -> None:
    """Raises:
    OutputError: where the side file of a result belongs, there is another program's (dcm2niix's, BIDS').
    """
    side = side_file(path)
    if side is None:
        return
    if not side.exists():
        return
    try:
        document = read_json(side, OutputError)
    except OutputError:
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise OutputError(
            f"{side}, which would go with the result, is there already and is not ours.",
            "Choose another name, or write a .seg.nrrd, which needs no second file.",
        )


def write_segmentation(result: Segmentation, path: str | Path, *, overwrite: bool = True) -> list[Path]:
    """Writes a file of the kind that the suffix says, and its side file where that kind needs one.

    The uncertainty map is an image of its own and not part of the file.

    Args:
        path: ends with one of `SUFFIXES`.
        overwrite: whether existing files may be replaced.

    Returns:
        What was written: the file, and for label images the ``.json`` beside it.

    Raises:
        OutputError: unknown suffix, no permission, disk full …; nothing is left behind.
    """
    path = Path(path)
    stem, suffix = stem_and_suffix(path)
    if suffix not in SUFFIXES or not stem:
        raise OutputError(f"“{path.name}” has no suffix that a segmentation is written to.", f"Use {_listed()}.")
    side = side_file(path)
    written = [path] if side is None else [path, side]
    for file in written:
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists already.", "Choose another name, or allow it to be replaced.")
    refuse_foreign_side_file(path)
    with staged(*written) as places:
        if suffix == ".seg.nrrd":
            _write_slicer(result, *places)
        else:
            write_image(result.labels, places[0])
            document = json.dumps(result.to_document(), indent=2, ensure_ascii=False)
            places[1].write_text(document + "\n", encoding="utf-8")
    return written


def _write_slicer(result: Segmentation, path: Path) -> None:
    import slicerio  # only where such a file is touched

    present = result.present
    values = sitk.GetArrayViewFromImage(result.labels)
    extent = [b for size in result.labels.GetSize() for b in (0, size - 1)]  # whole: older Slicers crop to the first
    segments = []
    for sid in present:
        entry = terminology.terminology_entry(sid, present, result.scheme.extent)
        tags = {"TerminologyEntry": entry, STRUCTURE_TAG: str(sid), SCHEME_TAG: result.scheme.name}
        if sid in result.confidence:
            tags[CONFIDENCE_TAG] = f"{result.confidence[sid]:.4f}"
        if sid in result.unvalidated:
            tags[UNVALIDATED_TAG] = "1"
        segments.append(
            {
                "id": STRUCTURES[sid].name,
                "labelValue": sid,
                "layer": 0,
                "name": result.name_of(sid, present),
                "nameAutoGenerated": False,
                "color": list(STRUCTURES[sid].color),
                "colorAutoGenerated": False,
                "extent": extent,
                "tags": tags,
            }
        )
    smallest = np.uint8 if max(present, default=0) <= 255 else np.int16
    document = {
        "voxels": values.astype(smallest).T,  # (i, j, k), as the file has it
        "ijkToLPS": index_to_lps(result.labels),
        "containedRepresentationNames": ["Binary labelmap"],
        "masterRepresentation": "Binary labelmap",
        # Slicer reads a parameter only up to an ampersand, which slicerio does not write after the last one.
        "conversionParameters": [
            {"name": _REFERENCE, "value": _slicer_geometry(result.labels), "description": "Geometry of the image&"}
        ],
        "segments": segments,
        _HEADER_KEY: json.dumps(result.to_document()),
    }
    slicerio.write_segmentation(str(path), document, compression_level=4)


def read_segmentation(path: str | Path, *, strict: bool = False) -> Segmentation:
    """Reads what `Segmentation.write` wrote, and segmentations that Slicer saved after a reader's corrections.

    Segments of Slicer are recognised by our tag, by their id or name, else by their terminology; what is none of ours
    is left out and named in `warnings`. A label image without its side file is taken to hold structure ids.

    Args:
        strict: refuse what names or voxels leave in doubt: segments that overlap, are there twice, or were renamed by
            hand to another structure than they are recorded as.

    Raises:
        ImageError: missing, damaged or foreign file.
        CorrectionError: see `strict`.
        SchemeError: a label image holds values that are no structure ids.
    """
    path = Path(path)
    _, suffix = stem_and_suffix(path)
    if not path.is_file():
        raise ImageError(f"“{path}” is not there.", "Check the name of the file.")
    if suffix not in SUFFIXES:
        raise ImageError(f"“{path.name}” is no segmentation file.", f"Known are {_listed()}.")
    return _read_slicer(path, strict) if suffix == ".seg.nrrd" else _read_label_image(path)


def _read_label_image(path: Path) -> Segmentation:
    try:
        image = read_exactly(path)
    except RuntimeError as error:
        raise ImageError(f"“{path.name}” cannot be read: it is damaged or no image.", "Make it anew.") from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ImageError(
            f"“{path.name}” is no label image: it is not three-dimensional with one value per voxel.",
            "Give a segmentation of the whole volume.",
        )
    values = sitk.GetArrayFromImage(image)
    found = np.unique(values)
    side = side_file(path)
    assert side is not None  # no .seg.nrrd
    try:
        summary = read_json(side, ImageError) if side.is_file() else None
    except ImageError as error:
        raise ImageError(error.message, "Remove it to read the label image alone.") from None
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:  # none, or somebody else's JSON
        summary = {}
    _known_scheme(summary.get("scheme"))
    foreign = [v for v in found.tolist() if v and v not in STRUCTURES]
    if foreign:
        listed = ", ".join(f"{v:g}" for v in foreign[:5])
        raise SchemeError(f"“{path.name}” has label values that are no structure ids: {listed}.", "Relabel it first.")
    return _assembled(sitk.Cast(image, sitk.sitkInt16), summary, (int(v) for v in found if v), str(side))


def _read_slicer(path: Path, strict: bool) -> Segmentation:
    import slicerio

    from .checks import check_names, check_overlap

    try:
        document = slicerio.read_segmentation(str(path))
        voxels = np.asarray(document["voxels"])
        layers = voxels if voxels.ndim == 4 else voxels[np.newaxis]
        values = np.zeros(layers.shape[1:], np.int16)
        unknown: list[str] = []
        tags: dict[int, dict[str, str]] = {}
        extents: set[Extent] = set()
        named: list[tuple[int, str]] = []
        masks: dict[int, np.ndarray] = {}
        summary = parse_json(document.get(_HEADER_KEY, "{}"), path.name, ImageError)
        _known_scheme(summary.get("scheme"))
        for segment in document["segments"]:
            _known_scheme({"name": segment.get("tags", {}).get(SCHEME_TAG)})
            sid, extent = _recognised(segment)
            if sid is None:
                unknown.append(segment.get("name", segment["id"]))
                continue
            mask = layers[segment.get("layer", 0)] == segment.get("labelValue", 1)
            values[mask] = sid
            if strict:
                named.append((sid, segment.get("name", "")))
                masks[sid] = mask
            if extent:
                extents.add(extent)
            tags[sid] = segment.get("tags", {})
        confidence = {sid: float(t[CONFIDENCE_TAG]) for sid, t in tags.items() if CONFIDENCE_TAG in t}
        labels = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        set_index_to_lps(labels, document["ijkToLPS"])
        labels = _uncropped(labels, document.get("conversionParameters", ()))
        check_names(named)
        check_overlap(masks)
    except CorrectionError:
        raise
    except Exception as error:  # slicerio and pynrrd raise whatever their parsing met
        raise ImageError(
            f"“{path.name}” cannot be read as a Slicer segmentation ({error}).", "Make it anew."
        ) from error
    result = _assembled(labels, summary, (int(v) for v in np.unique(values) if v), path.name, extents)
    result.confidence.update(confidence)
    if not summary:  # Slicer keeps the tags of the segments, not the header
        result.unvalidated = frozenset(sid for sid, t in tags.items() if UNVALIDATED_TAG in t)
        schemes = {t[SCHEME_TAG] for t in tags.values() if SCHEME_TAG in t}
        if len(schemes) == 1:
            result.scheme = _known_scheme({"name": schemes.pop()}) or result.scheme
    if unknown:
        names = ", ".join(f"“{name}”" for name in unknown)
        result.warnings.append(f"Left out, since no structure of SpineSegAI has that name: {names}.")
    return result


def _recognised(segment: dict[str, Any]) -> tuple[int | None, Extent | None]:
    """Structure id of a Slicer segment, and its extent where the terminology tells it; None if it is none of ours."""
    coded = None
    if "terminology" in segment:
        concept, modifier = (segment["terminology"].get(part) for part in ("type", "typeModifier"))
        coded = terminology.structure_of_codes(concept, modifier)
    extent = coded[1] if coded else None
    tagged = segment.get("tags", {}).get(STRUCTURE_TAG, "")
    if tagged.isdigit() and int(tagged) in STRUCTURES:
        return int(tagged), extent
    for name in (segment["id"], segment.get("name", "")):
        try:
            return anatomy.structure(name).id, extent
        except SchemeError:
            continue
    return coded or (None, None)


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


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes and looks whether all of it arrived: some image writers do not notice a full disk."""
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        written = sitk.ReadImage(str(path))  # kept in a name: a view does not keep its image alive
        whole = np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image))
    except RuntimeError:
        whole = False
    if not whole:
        raise OutputError(f"{path.name} could not be written whole.", "Is the disk full, or the folder protected?")


def _slicer_geometry(image: sitk.Image) -> str:
    """Slicer's way to write a geometry: the matrix from voxel index to RAS millimetres by rows, then the extent."""
    matrix = RAS_FROM_LPS @ index_to_lps(image)
    extent = [b for size in image.GetSize() for b in (0, size - 1)]
    return "".join(f"{value!r};" for value in (*matrix.ravel().tolist(), *extent))


def _uncropped(labels: sitk.Image, parameters: Iterable[dict[str, str]]) -> sitk.Image:
    """Labels on the grid of the image that was segmented: Slicer may save just the box that holds the segments."""
    written = next((p["value"] for p in parameters if p["name"] == _REFERENCE), "")
    numbers = [float(part) for part in written.split(";") if part.strip()]
    if len(numbers) != 22:
        return labels
    extent = [int(n) for n in numbers[16:]]
    size = [last - first + 1 for first, last in zip(extent[::2], extent[1::2], strict=True)]
    if min(size) < 1:
        return labels
    matrix = RAS_FROM_LPS @ np.reshape(numbers[:16], (4, 4))
    matrix[:3, 3] = (matrix @ [*extent[::2], 1.0])[:3]
    reference = sitk.Image(size, labels.GetPixelID())
    set_index_to_lps(reference, matrix)
    same_grid = np.allclose(reference.GetSpacing(), labels.GetSpacing(), rtol=1e-3) and np.allclose(
        reference.GetDirection(), labels.GetDirection(), atol=1e-3
    )
    if not same_grid:  # drawn on a finer grid: left as drawn
        return labels
    return sitk.Resample(labels, reference, sitk.Transform(), sitk.sitkNearestNeighbor)


def _listed() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
