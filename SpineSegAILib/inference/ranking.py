"""Which image to annotate next: the one that a checkpoint is least sure of.

Three signs, each from 0 (sure) to 1 (lost), and their mean, by which images are ranked:

- *levels*: how little the best naming of the vertebrae leads over the second-best one; 1 where nothing was found;
- *entropy*: of what the network says about the voxels of the spine and of its edges, relative to a coin's;
- *disagreement*: how much of the spine is drawn otherwise when the same image comes mirrored or with other contrast.

A network can be wrong and sure. So this is an order in which to look, not a measure of quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..anatomy import Kind
from ..consistency import LevelResult
from ..errors import Cancelled, ImageError, SpineSegAIError
from ..evidence import Evidence
from ..files import atomic_write, checksum, write_csv_rows
from ..imaging import CanonicalVolume, read_image

if TYPE_CHECKING:
    import SimpleITK as sitk

    from .predictor import Predictor

Progress = Callable[[float, str], None]

SURE_MARGIN = 6.0
"""Log odds from which on the naming counts as certain: 400 to 1."""
FOREGROUND = 0.05
"""A voxel counts as the spine's, or as its edge, from this probability on."""
GAMMA = 1.5
"""Exponent of the second look's contrast: about as different as two scanners' T2."""


@dataclass(frozen=True)
class Scores:
    """How unsure a checkpoint is of an image.

    Attributes:
        path: the image.
        levels, entropy, disagreement: see the module; None if the image could not be segmented at all.
        margin: log odds of the naming, None without levels.
        sequence: the levels that were seen.
        reason: for a reader: what the uncertainty comes from, or why there is none.
    """

    path: Path
    levels: float | None = None
    entropy: float | None = None
    disagreement: float | None = None
    margin: float | None = None
    sequence: str = ""
    reason: str = ""

    @property
    def uncertainty(self) -> float | None:
        """Mean of what is known of the three; None if nothing is."""
        known = [s for s in (self.levels, self.entropy, self.disagreement) if s is not None]
        return sum(known) / len(known) if known else None

    def figures(self) -> tuple[str, str, str, str]:
        """Uncertainty, margin, entropy and disagreement for a table."""

        def shown(value: float | None) -> str:
            return "" if value is None else f"{value:.2f}"

        return shown(self.uncertainty), shown(self.margin), shown(self.entropy), shown(self.disagreement)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {
            "uncertainty": self.uncertainty,
            "levels": self.levels,
            "entropy": self.entropy,
            "disagreement": self.disagreement,
            "margin": self.margin,
        }
        rounded = {key: None if value is None else round(value, 4) for key, value in numbers.items()}
        return {"image": str(self.path), **rounded, "sequence": self.sequence, "reason": self.reason}


def rank(
    images: Sequence[Path],
    predictor: Predictor,
    progress: Progress | None = None,
    *,
    kept: MutableMapping[str, Any] | None = None,
    watch: Callable[[Scores], None] | None = None,
) -> list[Scores]:
    """Images, the least certain first; those that cannot be segmented come last, with the reason.

    Args:
        kept: what an earlier call with the same predictor found, by checksum; these images are not segmented again.
            What this one finds is added, but for failures.
        watch: shown the scores of each image, in the order of `images`.
    """
    report = progress or (lambda fraction, message: None)
    found = []
    for number, path in enumerate(images):
        part = lambda f, m, n=number, p=path: report((n + f) / len(images), f"{p.name}: {m}")  # noqa: E731
        part(0.0, "reading")
        try:
            key = "" if kept is None else checksum(path, ImageError)
            if kept is not None and key in kept:
                found.append(Scores(path, **kept[key]))
            else:
                found.append(score(read_image(path), predictor, path=path, progress=part))
                if kept is not None:
                    kept[key] = {name: value for name, value in asdict(found[-1]).items() if name != "path"}
        except Cancelled:
            raise
        except SpineSegAIError as error:
            found.append(Scores(path, reason=error.message))
        if watch is not None:
            watch(found[-1])
    report(1.0, "Done")
    return sorted(found, key=lambda s: -math.inf if s.uncertainty is None else s.uncertainty, reverse=True)


def score(image: sitk.Image, predictor: Predictor, *, path: Path = Path(), progress: Progress | None = None) -> Scores:
    """How unsure a checkpoint is of one image: three passes of its network.

    Raises:
        SpineSegAIError: the image is not what the checkpoint takes.
    """
    report = progress or (lambda fraction, message: None)
    volume = predictor.preprocessing.apply(image)
    evidence, levels = predictor.predict_evidence(volume, progress=lambda f, m: report(f / 3, "first look"))
    kinds = _kinds(evidence)
    others = []
    if _may_be_mirrored(evidence):
        mirrored, _ = predictor.predict_evidence(
            _mirrored(volume), progress=lambda f, m: report((1 + f) / 3, "mirrored"), name=False
        )
        others.append(_kinds(mirrored)[:, ::-1])
    changed, _ = predictor.predict_evidence(
        _other_contrast(volume), progress=lambda f, m: report((2 + f) / 3, "contrast"), name=False
    )
    others.append(_kinds(changed))
    share = 1.0 - kinds[0]
    if not (share > 0.5).any():
        return Scores(path, levels=1.0, reason="nothing of the spine was found")
    counted = levels is not None and bool(levels.sequence)
    parts = {
        "levels": None if levels is None else max(0.0, 1.0 - levels.margin / SURE_MARGIN) if counted else 1.0,
        "entropy": _entropy(kinds, share > FOREGROUND),
        "disagreement": float(np.mean([_differing(kinds, other) for other in others])),
    }
    return Scores(
        path,
        **parts,
        margin=levels.margin if levels is not None and counted else None,
        sequence=levels.sequence if levels else "",
        reason=_reason(parts, levels),
    )


def write_csv(ranking: Sequence[Scores], path: str | Path) -> None:
    """Writes a ranking, a line per image.

    Raises:
        OutputError: the file cannot be written.
    """
    rows = [scores.document() for scores in ranking]
    with atomic_write(path) as (part,):
        write_csv_rows(part, [list(rows[0]) if rows else ["image"], *(list(row.values()) for row in rows)])


def _kinds(evidence: Evidence) -> np.ndarray:
    """(K, D, H, W) float32 probabilities, background first: of kinds, or of classes where those have no kind."""
    if evidence.kinds is None and not set(evidence.scheme.kinds) - {0}:
        return np.asarray(evidence.classes, np.float32)
    return evidence.kind_probabilities()


def _may_be_mirrored(evidence: Evidence) -> bool:
    """A mirrored left lung is not a right one; a spine is much like its mirror image."""
    return all(s.kind in (Kind.VERTEBRA, Kind.DISC, Kind.CANAL, Kind.SACRUM, Kind.CORD, Kind.POSTERIOR, Kind.CUSTOM)
               for s in evidence.scheme.structures)  # fmt: skip


def _mirrored(volume: CanonicalVolume) -> CanonicalVolume:
    """Left and right exchanged."""
    return replace(volume, array=np.ascontiguousarray(volume.array[::-1]))


def _other_contrast(volume: CanonicalVolume) -> CanonicalVolume:
    """Darker middle tones; black, which is air, and white stay."""
    unit = (volume.array + 2.0) / 4.0
    return replace(volume, array=(4.0 * unit**GAMMA - 2.0).astype(np.float32))


def _entropy(kinds: np.ndarray, where: np.ndarray) -> float:
    """Mean over the spine and its edges, in bits, at most 1: a coin between two kinds."""
    chosen = kinds[:, where]
    return float(np.minimum(-(chosen * np.log2(np.maximum(chosen, 1e-7))).sum(0), 1.0).mean())


def _differing(first: np.ndarray, second: np.ndarray) -> float:
    """1 − Dice of what is drawn, all kinds together."""
    a, b = first.argmax(0), second.argmax(0)
    drawn = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 - 2.0 * np.count_nonzero((a == b) & (a > 0)) / drawn if drawn else 0.0


def _reason(parts: dict[str, float | None], levels: LevelResult | None) -> str:
    worst = max(parts, key=lambda name: parts[name] or 0.0)
    if (parts[worst] or 0.0) < 0.1:
        return "certain"
    if worst == "levels" and levels is not None:
        if not levels.sequence:
            return "no vertebra was found"
        other = levels.alternatives[0].names if levels.alternatives else ""
        return f"uncertain levels: {levels.sequence}" + (f", or {other}" if other else "")
    return {"entropy": "uncertain edges", "disagreement": "a second look disagrees"}.get(worst, "uncertain levels")


__all__ = ["Scores", "rank", "score", "write_csv"]
