"""What an image shows, judged by its values alone: whether it is an image at all, of which modality, from which side.

Each statistic has one threshold, set where it separates what was measured: 80 sagittal MR volumes (T2, water), two CT
volumes in a dozen units and windows, 420 radiographs.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

_PADDING_SHARE, _PADDING_GAP = 0.005, 5.0  # of the values; in widths of the contrast of the rest
_FEW_VALUES, _EQUAL_SHARE, _LEAST_PAIRS = 300, 0.8, 200
_FEW_GRAYS = 20
_AT_THE_ENDS, _ENDS_SHARE, _TOP_SHARE = 0.02, 0.85, 0.12  # of the range; of all voxels; of those above the background
_AIR_HU, _AIR_SHARE = (-1200, -900), 0.02
_BLACK = 0.03  # of the range from the darkest to the brightest value; what is darker is air
_DARK = 0.08
_LEAST_AIR = 0.05
_TISSUE_WIDTH, _TISSUE_LEVEL, _TISSUE_SHARE = 0.55, 0.3, 0.42
_GRAY, _NOT_GRAY, _DARK_WEIGHT = 0.2, -0.05, 0.7
_MIRROR_SIDE = 96  # pixels; left and right are compared on a coarse picture
_MIRROR_LEVEL = 0.25
_LEAST_SHOWN = 0.25  # of a picture: what shows less, such as a spine alone, says nothing about its plane


def sampled_values(values: np.ndarray) -> np.ndarray:
    """(n,) about a million of the values, evenly taken."""
    return values.reshape(-1)[:: max(1, values.size // 1_000_000)]


def without_padding(some: np.ndarray) -> np.ndarray:
    """The values without those that no scanner measured: an extreme one that many voxels have and that lies far beyond
    all others, such as −32768 around a volume that was turned or stitched."""
    for extreme in (some.min(), some.max()):
        rest = some[some != extreme]
        if not rest.size or some.size - rest.size <= _PADDING_SHARE * some.size:
            continue
        low, high = np.percentile(rest, (0.5, 99.5)).astype(float)
        if low < high and abs(float(extreme) - (low + high) / 2) > (_PADDING_GAP + 0.5) * (high - low):
            some = rest
    return some


def shows_labels(image: sitk.Image) -> bool:
    """Whether an image is a label map: few whole numbers, and neighbors that are not background are mostly equal.

    At least 95 % of them were in 200 label maps, at most 44 % in images, also in those of 8 bit.
    """
    values = sitk.GetArrayViewFromImage(image)
    some = sampled_values(values)
    if values.ndim < 2 or not np.isfinite(some).all() or some.min() < 0 or not np.array_equal(some, np.rint(some)):
        return False
    found, counts = np.unique(some, return_counts=True)
    if len(found) > _FEW_VALUES:
        return False
    background = found[counts.argmax()]
    planes = values if values.ndim == 2 else values[:: max(1, len(values) // 10)]
    equal = pairs = 0
    for one, other in ((planes[..., 1:], planes[..., :-1]), (planes[..., 1:, :], planes[..., :-1, :])):
        inside = (one != background) & (other != background)
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (one == other)))
    return pairs >= _LEAST_PAIRS and equal > _EQUAL_SHARE * pairs


def shows_mask(values: np.ndarray) -> bool:
    """Whether values are those of a mask or of probabilities: nearly all of them the least or the largest.

    In images up to 71 % were, with at most 18 % of what is not background at the top, however they were cut off; in
    masks smoothed by up to two voxels from 87 %, with 15 % at the top.
    """
    some = sampled_values(values)
    if not np.isfinite(some).all() or some.min() == some.max():
        return False
    if np.array_equal(some, np.rint(some)) and len(np.unique(some)) <= _FEW_GRAYS:
        return False  # a label map, or a drawing: `shows_labels` tells
    unit = (some.astype(float) - some.min()) / (float(some.max()) - float(some.min()))
    least, most = (unit <= _AT_THE_ENDS).mean(), (unit >= 1 - _AT_THE_ENDS).mean()
    return bool(least + most >= _ENDS_SHARE and most >= _TOP_SHARE * (unit > 0.05).mean())


def in_hounsfield_units(values: np.ndarray) -> bool:
    """Whether there is air at −1000."""
    low, high = _AIR_HU
    some = sampled_values(values)
    return bool(((low < some) & (some < high)).mean() > _AIR_SHARE)


def seems_ct(values: np.ndarray) -> bool:
    """Whether values are those of CT, in Hounsfield units or shifted, scaled or cut off at a wide window.

    In CT soft tissue lies far above air and close together, with little in between: the middle half of what is not
    black spans less than half of its median (0.1 to 0.45 in CT, from 0.79 in MR), or a few gray levels hold most of it.
    What was cut off at a narrow window looks like MR; `bright_rim` tells it once vertebrae are known.
    """
    if in_hounsfield_units(values):
        return True
    unit = _unit(without_padding(sampled_values(values)))
    body = unit[unit > _BLACK]
    if not body.size:
        return False
    low, level, high = np.percentile(body, (25, 50, 75))
    counts, _ = np.histogram(body, 94, (0.04, 0.98))
    fullest = np.sort(counts)[-10:].sum() / max(1, counts.sum())
    air, between = (unit < level / 3).mean(), ((unit >= level / 3) & (unit < level / 2)).mean()
    if air < max(_LEAST_AIR, between):
        return False
    return bool(level > _TISSUE_LEVEL and ((high - low) < _TISSUE_WIDTH * level or fullest > _TISSUE_SHARE))


def seems_radiograph(values: np.ndarray) -> bool:
    """Whether a single picture is a radiograph rather than a slice of MR: gray nearly everywhere, on no dark ground."""
    return _grayness(values) > _GRAY


def seems_slice(values: np.ndarray) -> bool:
    """Whether a single picture is a slice of MR rather than a radiograph: dark where there is little signal."""
    return _grayness(values) < _NOT_GRAY


def _grayness(values: np.ndarray) -> float:
    """Of slices of MR at most 0.16, in the median −0.1; of radiographs 0.18 in nine of ten, −0.07 in 99 of 100."""
    unit = _unit(without_padding(sampled_values(values)))
    return float(np.median(unit) - _DARK_WEIGHT * (unit < _DARK).mean())


def is_symmetric(planes: np.ndarray) -> bool:
    """Whether pictures show left and right alike, as most do that are axial or coronal, and sagittal ones do not: those
    reached 0.2.

    Args:
        planes: (n, rows, columns), one or more.
    """
    return float(np.mean([_mirror_correlation(plane) for plane in planes])) > _MIRROR_LEVEL


def _mirror_correlation(plane: np.ndarray) -> float:
    """How alike the halves beside a vertical axis are, wherever it is in the middle half.

    What is the same along rows or columns does not count: it is like its mirror image in every picture of a back.
    """
    from scipy import ndimage  # takes a while to import

    unit = ndimage.zoom(_unit(plane), _MIRROR_SIDE / max(plane.shape), order=1)
    if min(unit.shape) < 8 or (unit > _BLACK).mean() < _LEAST_SHOWN:
        return 0.0
    rest = unit - unit.mean(0, keepdims=True) - unit.mean(1, keepdims=True) + unit.mean()
    count = rest.shape[1]
    best = 0.0
    for shift in range(-count // 4, count // 4 + 1):
        part = rest[:, max(0, shift) : count + min(0, shift)]
        power = float((part * part).sum())
        if power > 0:
            best = max(best, float((part * part[:, ::-1]).sum()) / power)
    return best


def bright_rim(array: np.ndarray, vertebrae: np.ndarray) -> bool:
    """Whether vertebrae have a rim that is brighter than their inside and than what is around them.

    That is cortical bone, white in CT whatever its window, and black in MR whatever its sequence.

    Args:
        array: (D, H, W) image with square pixels of about a millimeter.
        vertebrae: (D, H, W) where they are.
    """
    from scipy import ndimage

    slices = np.flatnonzero(vertebrae.any(axis=(1, 2)))
    if not slices.size:
        return False
    chosen = slices[np.unique(np.linspace(0.2, 0.8, 7) * (len(slices) - 1)).round().astype(int)]
    mask, values = vertebrae[chosen], array[chosen]
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = (slice(None), slice(max(0, rows[0] - 12), rows[-1] + 13), slice(max(0, columns[0] - 12), columns[-1] + 13))
    mask, values = mask[box], values[box]
    plane = ndimage.generate_binary_structure(2, 1)[np.newaxis]

    def grown(steps: int) -> np.ndarray:
        return ndimage.binary_dilation(mask, plane, steps)

    def shrunk(steps: int) -> np.ndarray:
        return ndimage.binary_erosion(mask, plane, steps)

    parts = (grown(1) & ~shrunk(1), shrunk(3), grown(9) & ~grown(3))
    if not all(part.any() for part in parts):
        return False
    rim, inside, around = (float(np.median(values[part])) for part in parts)
    low, high = np.percentile(values, (5, 95))
    return min(rim - inside, rim - around) > 0.03 * float(high - low)


def _unit(values: np.ndarray) -> np.ndarray:
    """From 0, the darkest, to 1, the brightest, without the last two per mille at either end."""
    numbers = values.astype(np.float32)
    low, high = np.percentile(numbers, (0.2, 99.8))
    return np.clip((numbers - low) / (high - low), 0.0, 1.0) if low < high else np.zeros_like(numbers)
