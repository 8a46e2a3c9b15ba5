"""NIfTI-1: its header, and the two ways (*qform*, *sform*) in which it may say where the voxels lie."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .geometry import EXACT, NEARLY, PERPENDICULAR, nearest_rotation, shear
from .headers import Header, beside, check_size, damaged, first_bytes, inflated, not_readable
from .tags import FORMS_TAG

_HEADER_BYTES = 348
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 128: "u1", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8", 1792: "c16", 2304: "u1",
}  # fmt: skip
_COLORS = {128: 3, 2304: 4}
_TO_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # of the units' code: unknown, meter, millimeter, micrometer
_TO_LPS = np.diag([-1.0, -1.0, 1.0])
_SCANNER = 1  # the sform's code that ITK, and with it Slicer, prefers to the qform
SAME_PLACE_MM = 0.1
"""The two forms may differ by this much, which is their rounding."""


@dataclass(frozen=True)
class Forms:
    """What a file says about its orientation, as it says it; lengths in mm, RAS.

    Attributes:
        qform_code, sform_code: 0 where that form is not given.
        qfac: -1 where the qform's third axis is reversed.
        quaternion, offset: the qform's rotation and translation.
        rows: the sform, (3 × 4).
    """

    qform_code: int
    sform_code: int
    qfac: float
    quaternion: tuple[float, ...]
    offset: tuple[float, ...]
    rows: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Forms:
        """What `str` made of them."""
        qform_code, sform_code, qfac, quaternion, offset, rows = json.loads(text)
        return cls(qform_code, sform_code, qfac, tuple(quaternion), tuple(offset), tuple(rows))

    def __str__(self) -> str:
        return json.dumps(astuple(self))

    def qform(self, spacing: np.ndarray) -> np.ndarray:
        """(4, 4) from voxel index to RAS, mm."""
        b, c, d = self.quaternion
        left = 1.0 - (b * b + c * c + d * d)
        if left < 1e-7:  # a rotation by 180°, and rounding
            scale = 1.0 / math.sqrt(b * b + c * c + d * d)
            a, b, c, d = 0.0, b * scale, c * scale, d * scale
        else:
            a = math.sqrt(left)
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
            ]
        )
        return _affine(rotation * (spacing * (1.0, 1.0, self.qfac)), self.offset)

    @property
    def sform(self) -> np.ndarray:
        """(4, 4) from voxel index to RAS, mm."""
        rows = np.reshape(self.rows, (3, 4))
        return _affine(rows[:, :3], rows[:, 3])

    def fit(self, image: sitk.Image) -> bool:
        """Whether they say of an image what its geometry says: it may have been moved since it was read."""
        spacing, size = np.array(image.GetSpacing()), image.GetSize()
        try:
            direction, origin, _ = _placed(Path(), self, spacing, size)
        except ImageError:
            return False
        direction = np.eye(3) if direction is None else direction
        return bool(
            np.allclose(image.GetDirection(), direction.ravel(), atol=1e-4)
            and np.allclose(image.GetOrigin(), origin, atol=1e-2)
        )

    def put_into(self, header: bytearray) -> None:
        """Writes them into a little-endian header."""
        struct.pack_into("<f", header, 76, self.qfac)
        struct.pack_into("<2h", header, 252, self.qform_code, self.sform_code)
        struct.pack_into("<6f12f", header, 256, *self.quaternion, *self.offset, *self.rows)


def write(image: sitk.Image, path: Path) -> None:
    """Writes a NIfTI file with the forms that the image's own file had, where they are known and still true.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.

    Raises:
        RuntimeError, OSError: it cannot be written.
    """
    forms = Forms.parse(image.GetMetaData(FORMS_TAG)) if image.HasMetaDataKey(FORMS_TAG) else None
    if forms is None or not forms.fit(image):
        sitk.WriteImage(image, str(path), useCompression=True)
        return
    plain = path.with_name("plain.nii")
    try:
        sitk.WriteImage(image, str(plain), useCompression=False)
        content = bytearray(plain.read_bytes())
    finally:
        plain.unlink(missing_ok=True)
    forms.put_into(content)
    path.write_bytes(gzip.compress(content, 6) if path.name.lower().endswith(".gz") else content)


def is_nifti(start: bytes) -> bool:
    """Whether a file begins like NIfTI, or like its forerunner or its successor."""
    return len(start) >= 4 and {struct.unpack(order + "i", start[:4])[0] for order in "<>"} & {348, 540} != set()


def read_compressed(path: Path) -> Header:
    """The header of a NIfTI file compressed with gzip.

    Raises:
        ImageError: see `headers.read_header`; or what is compressed is something else.
    """
    start = b""
    try:
        for piece in inflated(path):
            start += piece
            if len(start) >= 1024:
                break
    except OSError as error:
        raise not_readable(path, error) from None
    except (EOFError, zlib.error):
        pass  # whoever reads the voxels says so
    if start.startswith(b"\x1f\x8b"):
        raise ImageError(
            f"{path.name} cannot be read: it was compressed twice.", "Decompress it once (gunzip), then read it."
        )
    if not is_nifti(start):
        raise ImageError(
            f"{path.name} cannot be read: what is compressed in it is damaged, or not NIfTI.",
            "Decompress it, or export it again.",
        )
    if not path.name.lower().endswith(".gz"):
        raise ImageError(
            f"{path.name} cannot be read: it is compressed (gzip), but its name does not end in .gz.",
            f"Rename it to {path.name}.gz.",
        )
    return _parse(path, start, compressed=True)


def read(path: Path, start: bytes) -> Header:
    """The header of a NIfTI file.

    Args:
        start: its first bytes.

    Raises:
        ImageError: see `headers.read_header`.
    """
    if path.name.lower().endswith(".gz"):
        raise ImageError(
            f"{path.name} cannot be read: it is not compressed, although its name ends in .gz.",
            f"Rename it to {path.name[:-3]}.",
        )
    return _parse(path, start, compressed=False)


def _parse(path: Path, start: bytes, *, compressed: bool) -> Header:
    order = next(o for o in "<>" if struct.unpack(o + "i", start[:4])[0] in (348, 540))
    if struct.unpack(order + "i", start[:4])[0] == 540:
        raise ImageError(
            f"{path.name} cannot be read: it is NIfTI-2, which is not supported.",
            "Convert it to NIfTI-1 (.nii.gz) or NRRD.",
        )
    if len(start) < _HEADER_BYTES:
        raise ImageError(f"{path.name} cannot be read: it ends within its header.", "Export or copy it again.")
    magic = start[344:348]
    if magic not in (b"n+1\0", b"ni1\0"):
        raise ImageError(
            f"{path.name} cannot be read: it is an Analyze file, which does not store its orientation, or is damaged.",
            "Convert it to NIfTI (.nii.gz), or export it again.",
        )

    def values(form: str, at: int) -> tuple:
        return struct.unpack_from(order + form, start, at)

    dim = values("8h", 40)
    if not 1 <= dim[0] <= 7:
        raise damaged(path, f"it has {dim[0]} dimensions")
    size = tuple(dim[1 : dim[0] + 1])
    check_size(size, path.name)
    if len(size) < 2:
        raise damaged(path, "it has one dimension")
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    (code,) = values("h", 70)
    if code not in _TYPES:
        raise ImageError(
            f"The voxels of {path.name} are of a type that is not supported (NIfTI's {code}).",
            "Export it as 16-bit integers or 32-bit floating-point numbers.",
        )
    slope, intercept = values("2f", 112)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        slope, intercept = 1.0, 0.0
    scale = _TO_MM.get(start[123] & 7, 1.0)
    pixdim = values("8f", 76)
    qform_code, sform_code = values("2h", 252)
    forms = Forms(
        qform_code,
        sform_code,
        -1.0 if pixdim[0] < 0 else 1.0,
        values("3f", 256),
        tuple(scale * v for v in values("3f", 268)),
        tuple(scale * v for v in values("12f", 280)),
    )
    told = tuple(abs(scale * v) for v in pixdim[1 : len(size) + 1])
    spacing = told if all(told) else None
    data, (offset,) = path, values("f", 108)
    if magic == b"ni1\0":
        data = _image_of(path)
        compressed = first_bytes(data, 2) == b"\x1f\x8b"
    if not (0 if data != path else _HEADER_BYTES + 4) <= offset < 2**31:
        raise damaged(path, f"its voxels would begin at byte {offset:.0f}")
    direction: np.ndarray | None = None
    origin: tuple[float, ...] = (0.0,) * len(size)
    notes: tuple[str, ...] = ()
    if len(size) < 3:
        _, origin, _ = _placed(path, forms, np.array([*(spacing or (1.0, 1.0)), 1.0])[:3], (*size, 1))
        origin = origin[: len(size)]
    elif len(size) == 3:
        direction, origin, notes = _placed(path, forms, np.array(spacing or (1.0, 1.0, 1.0)), size)
    return Header(
        path=path,
        kind="nifti",
        size=size,
        components=_COLORS.get(code, 1),
        dtype=np.dtype(order + _TYPES[code]),
        data=data,
        offset=int(offset),
        compressed=compressed,
        spacing=spacing,
        origin=origin,
        direction=direction,
        slope=slope,
        intercept=intercept,
        forms=str(forms) if len(size) == 3 else "",
        notes=notes,
    )


def _image_of(path: Path) -> Path:
    """The .img file of a .hdr file."""
    stem = path.name[: -len(path.suffix)]
    for suffix in (".img", ".img.gz"):
        if (path.parent / f"{stem}{suffix}").is_file():
            return path.parent / f"{stem}{suffix}"
    return beside(path, f"{stem}.img")


def _placed(
    path: Path, forms: Forms, spacing: np.ndarray, size: tuple[int, ...]
) -> tuple[np.ndarray | None, tuple[float, ...], tuple[str, ...]]:
    """Direction and origin (LPS) as ITK and Slicer take them, and what a reader should know.

    There is no direction where the file gives none.

    The sform counts if it is said to be the scanner's or is the only one; else the qform does.

    Raises:
        ImageError: the axes are not perpendicular.
    """
    candidates = []
    if forms.sform_code == _SCANNER:
        candidates.append(forms.sform)
    if forms.qform_code > 0:
        candidates.append(forms.qform(spacing))
    if forms.sform_code > 1:
        candidates.append(forms.sform)
    if not candidates:
        return None, (0.0, 0.0, 0.0), ()
    usable = [(shear(matrix[:3, :3]), matrix) for matrix in candidates]
    chosen = next((m for limit in (EXACT, NEARLY) for s, m in usable if s <= limit), None)
    if chosen is None:
        raise ImageError(f"The axes of {path.name} are not perpendicular (a sheared volume).", PERPENDICULAR)
    if not np.isfinite(chosen).all():
        raise damaged(path, "its origin is not a number")
    rotation = nearest_rotation(chosen[:3, :3])
    used = _affine(rotation * spacing, chosen[:3, 3])
    notes = []
    corners = np.array(
        [[*(at * (n - 1) for at, n in zip(corner, size, strict=True)), 1.0] for corner in product((0, 1), repeat=3)]
    )
    with np.errstate(over="ignore", invalid="ignore"):  # one of the two may be nonsense
        apart = max(float(np.linalg.norm((corners @ (used - other).T)[:, :3], axis=1).max()) for other in candidates)
    if not apart <= SAME_PLACE_MM:
        other = "qform" if len(candidates) > 1 else "pixdim"
        notes.append(
            f"{path.name} gives two positions ({other} and sform), which differ by up to {apart:.3g} mm: "
            "programs that read the other one show it elsewhere. A result in NIfTI keeps both."
        )
    x, y, z = (_TO_LPS @ chosen[:3, 3]).tolist()
    return _TO_LPS @ rotation, (x, y, z), tuple(notes)


def _affine(axes: np.ndarray, origin: np.ndarray | tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, origin
    return matrix
