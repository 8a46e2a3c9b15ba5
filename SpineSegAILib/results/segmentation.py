"""Segmentation: labels in the input's geometry with their names, confidence and provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import STRUCTURES, LabelScheme, display_name, sorted_ids
from ..errors import ImageError
from ..files import jsonable
from ..imaging.geometry import like
from ..imaging.tags import DIRECTION_TAG, SCALE_UNKNOWN_TAG

if TYPE_CHECKING:
    from .correction_log import CorrectionLog

FORMAT = "SpineSegAI segmentation"
FORMAT_VERSION = 1


@dataclass
class Segmentation:
    """What `Predictor` returns.

    Attributes:
        labels: int16 image in the input's geometry; values are structure ids, 0 is background.
        scheme: the checkpoint's label scheme.
        confidence: structure id → 0…1 (absent for structures without one).
        warnings: sentences for the reader, e.g. that the sacrum is not visible and levels are a guess.
        unvalidated: ids of structures that the checkpoint learnt from phantoms alone.
        provenance: JSON-able: method, checkpoint, versions, device, seconds per stage, hints …
        uncertainty: float image in the input's geometry (standard deviation of a sampled mask), or None.
        keypoints: structure id → physical point (LPS, mm) predicted by the method.
        corrections: what a reader changed; None where nothing was.
    """

    labels: sitk.Image
    scheme: LabelScheme
    confidence: dict[int, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unvalidated: frozenset[int] = frozenset()
    provenance: dict[str, Any] = field(default_factory=dict)
    uncertainty: sitk.Image | None = None
    keypoints: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    corrections: CorrectionLog | None = None

    @property
    def present(self) -> list[int]:
        """Ids of the structures that have voxels, in anatomical order."""
        values = np.unique(sitk.GetArrayViewFromImage(self.labels))
        return sorted_ids(int(v) for v in values if v)

    def name_of(self, structure_id: int, present: Iterable[int] | None = None) -> str:
        """What a reader should see: ``"L4 vertebra (body)"``, ``"spinal canal (unvalidated)"``.

        Args:
            present: `present`, where the caller has it already; finding it takes a look at every voxel.
        """
        present = self.present if present is None else present
        name = display_name(structure_id, present, self.scheme.extent)
        return f"{name} (unvalidated)" if structure_id in self.unvalidated else name

    def restricted_to(self, ids: Iterable[int]) -> Segmentation:
        """A copy that has no other structures than these."""
        wanted = set(ids)
        values = sitk.GetArrayFromImage(self.labels)
        values[~np.isin(values, list(wanted))] = 0
        labels = like(self.labels, values)
        return replace(
            self,
            labels=labels,
            confidence={i: c for i, c in self.confidence.items() if i in wanted},
            keypoints={i: p for i, p in self.keypoints.items() if i in wanted},
            warnings=list(self.warnings),
            provenance=dict(self.provenance),
        )

    def without(self, ids: Iterable[int]) -> Segmentation:
        """A copy that lacks these structures."""
        known = {*self.present, *self.confidence, *self.keypoints}
        return self.restricted_to(known - set(ids))

    def to_document(self) -> dict[str, Any]:
        """All but the voxels, ready for JSON: structures with names and confidence, warnings, scheme, provenance."""
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
                        "confidence": self.confidence.get(sid),
                        "unvalidated": sid in self.unvalidated,
                    }
                    for sid in present
                ],
                "warnings": self.warnings,
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
        if document and document.get("version", 0) > FORMAT_VERSION:
            raise ImageError("The result was written by a newer SpineSegAI.", "Update SpineSegAI.")
        _set_tags(labels, document)
        try:
            described = document.get("scheme")
            found = LabelScheme.from_document(described) if described is not None else scheme
            if found is None:
                raise KeyError("scheme")
            return cls(
                labels=labels,
                scheme=found,
                confidence={
                    s["id"]: s["confidence"] for s in document.get("structures", ()) if s["confidence"] is not None
                },
                warnings=list(document.get("warnings", ())),
                unvalidated=frozenset(document.get("unvalidated", ())),
                provenance=dict(document.get("provenance", {})),
                uncertainty=uncertainty,
                keypoints={int(sid): tuple(point) for sid, point in document.get("keypoints_lps_mm", {}).items()},
                corrections=_corrections(document.get("corrections")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ImageError("The result is damaged: it lacks what SpineSegAI writes.", "Create it again.") from error

    def write(self, path: str | Path, *, overwrite: bool = True) -> list[Path]:
        """Write to a file, see `files.write_segmentation`."""
        from .files import write_segmentation

        return write_segmentation(self, path, overwrite=overwrite)


_NOTHING_FOUND = "Look whether the image shows a spine, and whether the checkpoint is for such images."


def require_structures(result: Segmentation, message: str) -> None:
    """Raises:
    ImageError: the result has no structures; with this message, and what the result warns of.
    """
    if not result.present:
        raise ImageError(message, " ".join(result.warnings) or _NOTHING_FOUND)


def drop_unvalidated(result: Segmentation, locked: sitk.Image | None, remedy: str) -> Segmentation:
    """The result without what its checkpoint learnt from phantoms alone.

    Args:
        locked: structures that the reader drew or accepted; they stay, since they are not the checkpoint's.
        remedy: how to see the others.

    Raises:
        ImageError: nothing is left.
    """
    kept = set() if locked is None else set(np.unique(sitk.GetArrayViewFromImage(locked)).tolist())
    doubtful = [sid for sid in result.present if sid in result.unvalidated and sid not in kept]
    if not doubtful:
        return result
    rest = result.without(doubtful)
    if not rest.present:
        names = ", ".join(STRUCTURES[sid].name for sid in doubtful)
        raise ImageError(
            f"All that was found is what the checkpoint learnt from phantoms alone: {names}.",
            f"{remedy}, or use another checkpoint.",
        )
    return rest


def _set_tags(labels: sitk.Image, document: Mapping[str, Any]) -> None:
    """What the image's file did not tell (`imaging.tags`), onto labels that were read again."""
    provenance = document.get("provenance")
    if not isinstance(provenance, Mapping):
        return
    if provenance.get("pixel_size") == "unknown":
        labels.SetMetaData(SCALE_UNKNOWN_TAG, "1")
    direction = str(provenance.get("orientation", "")).split()
    if len(direction) == 9 and all(word.lstrip("-") in ("0", "1") for word in direction):
        labels.SetMetaData(DIRECTION_TAG, " ".join(direction))


def _corrections(document: Any) -> CorrectionLog | None:
    if document is None:
        return None
    from .correction_log import CorrectionLog  # pydantic, which a Slicer may lack until the first segmentation

    return CorrectionLog.from_document(document)
