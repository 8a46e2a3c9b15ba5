"""Images in folders: volumes and DICOM series; segmentations and what is not an image are left aside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ImageError
from ..files import IMAGE_SUFFIXES, real_path, stem_and_suffix
from . import dicom_headers

VOLUME_SUFFIXES = (*IMAGE_SUFFIXES, ".mhd")
"""Of the images that are looked for in a folder, beside DICOM files."""

_NOT_IMAGES = re.compile(r"(?:^|[._-])(?:\w*label(?:s|map)?|d?seg|segmentation|mask|uncertainty)$", re.I)
"""How the names of label maps and of other results end."""


def find_images(paths: Iterable[str | Path], omit: Iterable[Path] = ()) -> list[Path]:
    """Images, and those in folders and their sub-folders: volumes, and a DICOM series for each.

    A series that has its folder to itself is that folder; of several in one folder each is one of its files, which
    `read_image` takes for the series. In folders, files that are named like label maps are passed over; what is named
    itself is taken as it is.

    Args:
        omit: folders that are not entered, such as that of the results.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    left_aside = {real_path(folder) for folder in omit}
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = list(_inside(path, left_aside - {real_path(path)}))
            if not inside:
                raise ImageError(
                    f"There is no image in {path}.", f"Images are {', '.join(VOLUME_SUFFIXES)} and DICOM files."
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    return list(dict.fromkeys(found))


def _inside(folder: Path, left_aside: set[Path]) -> Iterator[Path]:
    series: dict[str, list[Path]] = {}
    volumes: list[Path] = []
    damaged: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f[0] != "." and real_path(Path(place) / f) not in left_aside)
        rest = []
        for path in (Path(place) / name for name in sorted(names) if name[0] != "."):
            stem, suffix = stem_and_suffix(path)
            if suffix in VOLUME_SUFFIXES:
                volumes += [] if _NOT_IMAGES.search(stem) else [path]
            elif suffix != ".seg.nrrd":
                rest.append(path)
        try:
            for file in dicom_headers.images(rest):
                series.setdefault(file.series, []).append(file.path)
        except ImageError:  # of one file; reading the folder says which, and why
            damaged.append(Path(place))
    files = [path for path in series.values() if path[0].parent not in damaged]
    alone: dict[Path, int] = {}
    for paths in files:
        for parent in {p.parent for p in paths}:
            alone[parent] = alone.get(parent, 0) + 1
    yield from sorted(volumes)
    yield from sorted(damaged)
    if not volumes and not damaged and len(files) == 1:
        yield folder if len({p.parent for p in files[0]}) > 1 else files[0][0].parent
        return
    for paths in files:
        parents = {p.parent for p in paths}
        yield paths[0].parent if len(parents) == 1 and alone[paths[0].parent] == 1 else paths[0]
