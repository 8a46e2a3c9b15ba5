"""``slicer.dicomDatabase``: finds files by their UIDs, and keeps copies of what it is given."""

from __future__ import annotations

import shutil
from pathlib import Path

from PySide6 import QtCore


class ctkDICOMDatabase(QtCore.QObject):
    """Closed until a file for its index is named; the copies lie beside that."""

    def __init__(self) -> None:
        super().__init__()
        self._file = ""
        self._files: dict[str, str] = {}

    isOpen = QtCore.Property(bool, lambda self: bool(self._file))
    databaseFilename = QtCore.Property(str, lambda self: self._file)

    def openDatabase(self, file: str) -> None:
        self._file, self._files = file, {}

    def closeDatabase(self) -> None:
        self._file, self._files = "", {}

    def insert(self, path: str, store: bool = True) -> None:
        """A file that is no DICOM is passed over, as the original does, with a line in its log."""
        import pydicom

        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (OSError, pydicom.errors.InvalidDicomError):
            return
        if not self._file:
            return
        if store:
            folder = Path(self._file).parent / "dicom" / header.StudyInstanceUID / header.SeriesInstanceUID
            folder.mkdir(parents=True, exist_ok=True)
            path = shutil.copy(path, folder / header.SOPInstanceUID)
        self._files[str(header.SOPInstanceUID)] = str(path)

    def fileForInstance(self, uid: str) -> str:
        return self._files.get(uid, "")
