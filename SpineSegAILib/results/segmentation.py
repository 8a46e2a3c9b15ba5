"""Segmentation: labels in the input's geometry with their names, how far they can be trusted, and provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, LabelScheme, display_name, sorted_ids
from ..errors import ImageError, SchemeError
from ..files import jsonable
from ..imaging.geometry import ids_in, like
from ..imaging.tags import DIRECTION_TAG
from .alternatives import Alternative

if TYPE_CHECKING:
    from .correction_log import CorrectionLog

FORMAT = "SpineSegAI segmentation"
FORMAT_VERSION = 2
"""Raised whenever an older version would misread a document.

1 had a confidence of its level per structure, and no outline quality."""


@dataclass
class Segmentation:
    """What `Predictor` returns.

    Attributes:
        labels: int16 image in the input's geometry; values are structure ids, 0 is background.
        scheme: the checkpoint's label scheme.
        level_confidence: 0…1, of the names of all levels together; None where there are none, or a reader gave them.
        outline_quality: structure id → 0…1, how far its outline can be trusted (`results.quality`).
        alternatives: other namings, best first.
        warnings: sentences for the reader, e.g. that no sacrum was recognized.
        unvalidated: ids of experimental structures: not validated on real cases.
        provenance: JSON-able: method, checkpoint, versions, device, seconds per stage, hints …
        uncertainty: float image in the input's geometry (standard deviation of a sampled mask), or None.
        keypoints: structure id → physical point (LPS, mm) predicted by the method.
        corrections: what a reader changed; None where nothing was.
        scale_known: False where the image does not tell the size of its pixels: then lengths and volumes mean nothing.
        notes: what was omitted or is questionable when the file was read (`reading.read_segmentation`); not written.
    """

    labels: sitk.Image
    scheme: LabelScheme
    level_confidence: float | None = None
    outline_quality: dict[int, float] = field(default_factory=dict)
    alternatives: list[Alternative] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unvalidated: frozenset[int] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    uncertainty: sitk.Image | None = None
    keypoints: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    corrections: CorrectionLog | None = None
    scale_known: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def present(self) -> list[int]:
        """Ids of the structures that have voxels, in anatomical order."""
        return sorted_ids(ids_in(self.labels))

    @property
    def tells_volumes(self) -> bool:
        """Whether voxels have a size that is known, and do not show a slice or a projection of each structure."""
        return self.scale_known and 1 not in self.labels.GetSize()

    def name_of(self, structure_id: int, present: Iterable[int] | None = None) -> str:
        """What a reader should see: ``"L4 vertebra (body)"``, ``"spinal canal (experimental)"``.

        Args:
            present: `present`, where the caller has it already; finding it takes a look at every voxel.
        """
        present = self.present if present is None else present
        name = display_name(structure_id, present, self.scheme.extent)
        return f"{name} (experimental)" if structure_id in self.unvalidated else name

    def restricted_to(self, ids: Iterable[int]) -> Segmentation:
        """A copy that has no other structures than these."""
        wanted = set(ids)
        values = sitk.GetArrayFromImage(self.labels)
        values[~np.isin(values, list(wanted))] = 0
        labels = like(self.labels, values)
        return replace(
            self,
            labels=labels,
            outline_quality={i: q for i, q in self.outline_quality.items() if i in wanted},
            keypoints={i: p for i, p in self.keypoints.items() if i in wanted},
            alternatives=[a for x in self.alternatives if (a := x.restricted_to(wanted)).mapping],
            warnings=list(self.warnings),
            provenance=dict(self.provenance),
        )

    def without(self, ids: Iterable[int]) -> Segmentation:
        """A copy that lacks these structures."""
        known = {*self.present, *self.outline_quality, *self.keypoints}
        return self.restricted_to(known - set(ids))

    def to_document(self) -> dict[str, Any]:
        """All but the voxels, ready for JSON: structures with names and quality, warnings, scheme, provenance."""
        present = self.present
        return jsonable(
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "scheme": self.scheme.to_document(),
                "structures": [
                    {
                        "id": sid,
                        "structure": STRUCTURES[sid].name,
                        "name": self.name_of(sid, present),
                        "outline_quality": self.outline_quality.get(sid),
                        "unvalidated": sid in self.unvalidated,
                    }
                    for sid in present
                ],
                "level_confidence": self.level_confidence,
                "alternatives": [a.to_document() for a in self.alternatives],
                "warnings": self.warnings,
                "scale_known": self.scale_known,
                "unvalidated": sorted(self.unvalidated),
                "keypoints_lps_mm": {str(sid): point for sid, point in self.keypoints.items()},
                "provenance": self.provenance,
                **({"corrections": self.corrections.model_dump(mode="json")} if self.corrections else {}),
            }
        )

    @classmethod
    def from_document(
        cls,
        labels: sitk.Image,
        document: Mapping[str, Any],
        *,
        scheme: LabelScheme | None = None,
        uncertainty: sitk.Image | None = None,
    ) -> Segmentation:
        """Voxels with what `to_document` said of them; parts that the document lacks stay empty.

        Args:
            scheme: for a document without one.

        Raises:
            ImageError: the document is of a newer version, or damaged.
        """
        set_direction(labels, document)
        try:
            if document.get("version", 0) > FORMAT_VERSION:
                raise ImageError("The result was written by a newer SpineSegAI.", "Update SpineSegAI.")
            described = document.get("scheme")
            found = LabelScheme.from_document(described) if described is not None else scheme
            if found is None:
                raise KeyError("scheme")
            rows = document.get("structures", ())
            return cls(
                labels=labels,
                scheme=found,
                level_confidence=_level_confidence(document),
                outline_quality={
                    _known(s["id"]): _finite(s["outline_quality"]) for s in rows if s.get("outline_quality") is not None
                },
                alternatives=[Alternative.from_document(a) for a in document.get("alternatives", ())],
                warnings=[str(warning) for warning in document.get("warnings", ())],
                unvalidated=frozenset(map(_known, document.get("unvalidated", ()))),
                provenance=dict(document.get("provenance", {})),
                uncertainty=uncertainty,
                keypoints={
                    _known(int(sid)): (_finite(x), _finite(y), _finite(z))
                    for sid, (x, y, z) in document.get("keypoints_lps_mm", {}).items()
                },
                corrections=_corrections(document.get("corrections")),
                scale_known=bool(document.get("scale_known", True)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, SchemeError) as error:
            raise ImageError("The result is damaged: it lacks what SpineSegAI writes.", "Create it again.") from error

    def write(self, path: str | Path, *, overwrite: bool = True) -> list[Path]:
        """Write to a file, see `files.write_segmentation`."""
        from .files import write_segmentation

        return write_segmentation(self, path, overwrite=overwrite)


_NOTHING_FOUND = "Check that the image shows a spine and that the model is for such images."


def require_structures(result: Segmentation, message: str) -> None:
    """Raises:
    ImageError: the result has no structures; with this message, and what the result warns of.
    """
    if not result.present:
        raise ImageError(message, " ".join(result.warnings) or _NOTHING_FOUND)


_EXPERIMENTAL_MODEL = (
    "This model is experimental: on cases that it was not trained on it is often wrong. Check everything."
)


def drop_unvalidated(result: Segmentation, locked: sitk.Image | None, remedy: str) -> Segmentation:
    """The result without experimental structures; whole, with a warning, where the model has no others.

    Args:
        locked: structures that the reader drew or accepted; they stay, since they are not the checkpoint's.
        remedy: how to see the others.

    Raises:
        ImageError: nothing is left.
    """
    kept = set() if locked is None else set(ids_in(locked))
    doubtful = [sid for sid in result.present if sid in result.unvalidated and sid not in kept]
    if not doubtful:
        return result
    if all(s.id in result.unvalidated for s in result.scheme.structures):
        result.warnings.insert(0, _EXPERIMENTAL_MODEL)
        return result
    rest = result.without(doubtful)
    if not rest.present:
        names = ", ".join(STRUCTURES[sid].name for sid in doubtful)
        raise ImageError(
            f"All that was found is experimental, not validated on real cases: {names}.",
            f"{remedy}, or use another model.",
        )
    return rest


def set_direction(labels: sitk.Image, document: Mapping[str, Any]) -> None:
    """How the labels lie, where the image's file did not tell it (`imaging.tags`), onto labels that were read again."""
    provenance = document.get("provenance")
    direction = str(provenance.get("orientation", "")).split() if isinstance(provenance, Mapping) else []
    if len(direction) == 9 and all(word.lstrip("-") in ("0", "1") for word in direction):
        labels.SetMetaData(DIRECTION_TAG, " ".join(direction))


def _level_confidence(document: Mapping[str, Any]) -> float | None:
    """The document's; of one of the first version, which has it per structure, the least certain level's."""
    if "level_confidence" in document:
        value = document["level_confidence"]
        return None if value is None else _finite(value)
    each = {s["id"]: s.get("confidence") for s in document.get("structures", ())}
    counted = [sid for sid, c in each.items() if c is not None and sid in STRUCTURES and STRUCTURES[sid].is_counted]
    return min((_finite(each[sid]) for sid in counted), default=None)


def _known(structure_id: Any) -> int:
    """A structure id of a document.

    Raises:
        KeyError: it is none.
    """
    return STRUCTURES[structure_id].id


def _finite(value: Any) -> float:
    """A number of a document.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(value, (str, bool)) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _corrections(document: Any) -> CorrectionLog | None:
    if document is None:
        return None
    from .correction_log import CorrectionLog  # pydantic, which a Slicer may lack until the first segmentation

    return CorrectionLog.from_document(document)
