"""Writing a segmentation to files, with structure ids as voxel values.

- ``.seg.nrrd``: what 3D Slicer opens as a segmentation, with a named, colored and coded segment per structure;
- ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha``: a label image (VerSe ids), and beside it ``<name>.json`` with the rest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..anatomy import CUSTOM_IDS, STRUCTURES, terminology
from ..anatomy.terminology import (
    CONFIDENCE_TAG,
    QUALITY_TAG,
    SCHEME_TAG,
    STRUCTURE_TAG,
    UNSCALED_TAG,
    UNVALIDATED_TAG,
)
from ..errors import ImageError, OutputError
from ..files import (
    IMAGE_SUFFIXES,
    SEGMENTATION_SUFFIXES,
    atomic_write,
    check_suffix,
    read_json,
    stem_and_suffix,
)
from ..imaging import nifti, read_file
from ..imaging.geometry import RAS_FROM_LPS, ids_in, index_to_lps
from ..imaging.tags import FORMS_TAG, without_tag
from .segmentation import FORMAT, Segmentation

REFERENCE = "Reference image geometry"  # Slicer's conversion parameter; without it Slicer saves cropped segments
HEADER_KEY = "SpineSegAI_Result"  # of a .seg.nrrd: the same document as in the other formats' side file


def side_file(path: Path) -> Path | None:
    """Where a label image's names, confidence and provenance are; None for a ``.seg.nrrd``, which holds them."""
    stem, suffix = stem_and_suffix(path)
    return None if suffix == ".seg.nrrd" else path.with_name(f"{stem}.json")


def check_sidecar(path: Path) -> None:
    """Raises:
    OutputError: where the side file of a result belongs, there is another program's (dcm2niix's, BIDS'), or that of
        another result with the same name and another suffix.
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
            _ANOTHER_NAME,
        )
    stem = stem_and_suffix(path)[0]
    for other in (path.with_name(f"{stem}{suffix}") for suffix in IMAGE_SUFFIXES):
        if other.name != path.name and other.exists() and _holds_structures(other):
            raise OutputError(f"{side}, which would go with the result, belongs to {other.name}.", _ANOTHER_NAME)


_ANOTHER_NAME = "Choose another name, or write a .seg.nrrd, which needs no second file."


def _holds_structures(path: Path) -> bool:
    """Whether a file is a label image of ours rather than the image that was segmented."""
    try:
        image = read_file(path)
    except ImageError:
        return False
    if not np.issubdtype(sitk.GetArrayViewFromImage(image).dtype, np.integer):
        return False
    return {*STRUCTURES, *CUSTOM_IDS} >= set(ids_in(image))


def write_segmentation(result: Segmentation, path: str | Path, *, overwrite: bool = True) -> list[Path]:
    """Writes a file of the kind that the suffix says, and its side file where that kind needs one.

    The uncertainty map is an image of its own and not part of the file.

    Args:
        path: ends with one of `SEGMENTATION_SUFFIXES`.
        overwrite: whether existing files may be replaced.

    Returns:
        What was written: the file, and for label images the ``.json`` beside it.

    Raises:
        OutputError: unknown suffix, no permission, disk full …; nothing is left behind.
    """
    path = Path(path)
    check_suffix(path, SEGMENTATION_SUFFIXES)
    _, suffix = stem_and_suffix(path)
    side = side_file(path)
    written = [path] if side is None else [path, side]
    for file in written:
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists already.", "Choose another name, or allow it to be replaced.")
    check_sidecar(path)
    with atomic_write(*written) as places:
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
        if result.level_confidence is not None and STRUCTURES[sid].is_counted:
            tags[CONFIDENCE_TAG] = f"{result.level_confidence:.4f}"
        if sid in result.outline_quality:
            tags[QUALITY_TAG] = f"{result.outline_quality[sid]:.4f}"
        if not result.scale_known:
            tags[UNSCALED_TAG] = "1"
        if sid in result.unvalidated:
            tags[UNVALIDATED_TAG] = "1"
        segments.append(
            {
                "id": _escaped(STRUCTURES[sid].name),
                "labelValue": sid,
                "layer": 0,
                "name": _escaped(result.name_of(sid, present)),
                "nameAutoGenerated": False,
                "color": list(STRUCTURES[sid].color),
                "colorAutoGenerated": False,
                "extent": extent,
                "tags": {key: _escaped(text) for key, text in tags.items()},
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
            {"name": REFERENCE, "value": _slicer_geometry(result.labels), "description": "Geometry of the image&"}
        ],
        "segments": segments,
        HEADER_KEY: _escaped(json.dumps(result.to_document())),
    }
    slicerio.write_segmentation(str(path), document, compression_level=4)
    header, end, rest = path.read_bytes().partition(b"\n\n")
    path.write_bytes(_in_utf8(header) + end + rest)


def _escaped(text: str) -> str:
    """A value of an NRRD header: backslashes and line breaks stand after a backslash, which slicerio leaves undone.

    So do the codes of what is not ASCII, which it refuses, until `_in_utf8` takes them back.
    """
    return text.replace("\\", "\\\\").replace("\n", "\\n").encode("ascii", "backslashreplace").decode()


def _in_utf8(header: bytes) -> bytes:
    codes = re.compile(rb"(\\[\\n])|\\(?:x..|u.{4}|U.{8})")
    return codes.sub(lambda found: found[1] or found[0].decode("unicode_escape").encode(errors="replace"), header)


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes and looks whether all of it arrived: some image writers do not notice a full disk."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            nifti.write(image, path)
        else:
            sitk.WriteImage(without_tag(image, FORMS_TAG), str(path), useCompression=True)
        written = read_file(path)  # kept in a name: a view does not keep its image alive
        whole = np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image))
    except (RuntimeError, ImageError):
        whole = False
    if not whole:
        raise OutputError(f"{path.name} could not be written whole.", "Is the disk full, or the folder protected?")


def _slicer_geometry(image: sitk.Image) -> str:
    """Slicer's way to write a geometry: the matrix from voxel index to RAS millimeters by rows, then the extent."""
    matrix = RAS_FROM_LPS @ index_to_lps(image)
    extent = [b for size in image.GetSize() for b in (0, size - 1)]
    return "".join(f"{value!r};" for value in (*matrix.ravel().tolist(), *extent))
