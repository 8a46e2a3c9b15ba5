"""What a DICOM file says of the study: for reports."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ImageError
from .dicom_headers import images

_STUDY = {
    "Study": "StudyDescription",
    "Series": "SeriesDescription",
    "Date": "SeriesDate StudyDate AcquisitionDate ContentDate",
    "Modality": "Modality",
    "Scanner": "ManufacturerModelName",
}
_PATIENT = {"Patient": "PatientName", "Patient ID": "PatientID", "Birth date": "PatientBirthDate", "Sex": "PatientSex"}


def study_of(path: str | Path, *, patient: bool = False) -> dict[str, str]:
    """Title → value of what a DICOM image, or the first in a folder, says of its study; empty for other files.

    Args:
        patient: the patient's name, ID, birth date and sex too.

    Raises:
        ImageError: the file cannot be opened.
    """
    import pydicom

    found = _first(Path(path))
    if found is None:
        return {}
    titles = {**(_PATIENT if patient else {}), **_STUDY}
    words = " ".join(titles.values()).split()
    try:
        header = pydicom.dcmread(found, stop_before_pixels=True, force=True, specific_tags=words)
        values = {
            title: next((v for key in keys.split() if (v := _text(header.get(key)))), "")
            for title, keys in titles.items()
        }
    except Exception as error:  # pydicom raises whatever its parsing meets
        raise ImageError(f"{found} cannot be read: its DICOM header is damaged.", "Export it again.") from error
    return {title: value for title, value in values.items() if value}


def _first(path: Path) -> Path | None:
    inside = (Path(at) / name for at, _, names in sorted(os.walk(path)) for name in sorted(names))
    candidates = inside if path.is_dir() else iter([path])
    return next((file.path for p in candidates for file in images([p])), None)


def _text(value: object) -> str:
    text = " ".join(str(value if value is not None else "").replace("^", " ").split())
    date = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", text)
    return "-".join(date.groups()) if date else text
