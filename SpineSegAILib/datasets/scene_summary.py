"""What an import of scenes met, for people and for the panel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .scene_case import SceneReport


@dataclass
class SceneSummary:
    """What an import met: for the reader, and as JSON for the panel.

    Attributes:
        cases: scene, volume, patient, spacing, segments (name, target, how, voxels), notes.
        problems: sentences; annotations are lost if they are not solved.
        notes: sentences.
        replaced: names of cases that were there before.
    """

    cases: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def take(self, report: SceneReport) -> None:
        """Notes what a scene holds, without its voxels."""
        self.problems += report.problems
        self.notes += report.notes
        self.cases += [
            {
                "scene": case.scene,
                "volume": case.volume,
                "patient": case.patient,
                "spacing_mm": [round(s, 4) for s in case.image.GetSpacing()],
                "annotated": case.targets,
                "keypoints": sorted(case.keypoints),
                "extent": case.extent.value if case.extent else None,
                "segments": [
                    {"name": s.name, "target": s.placement.target, "how": s.placement.how, "voxels": s.voxels}
                    for s in case.segments
                ],
                "unlabelled": not case.is_annotated,
                "corrected": case.corrections is not None,
                "notes": case.notes,
            }
            for case in report.cases
        ]

    def segment_rows(self) -> list[tuple[str, str, str, str]]:
        """(name, target, because of, in how many cases) of every segment that has voxels; what is not known first."""
        counts: dict[tuple[str, str, str], int] = {}
        for case in self.cases:
            for s in case["segments"]:
                if s["voxels"]:
                    key = (s["name"], s["target"], s["how"])
                    counts[key] = counts.get(key, 0) + 1
        rows = sorted(counts.items(), key=lambda item: bool(item[0][1]))  # stable: else as they came
        return [(name, target or "?", how or "not understood", str(n)) for (name, target, how), n in rows]

    @property
    def unplaced(self) -> list[str]:
        """Names of segments that nothing is known of."""
        names = [s["name"] for c in self.cases for s in c["segments"] if s["voxels"] and not s["target"]]
        return list(dict.fromkeys(names))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cases": self.cases,
            "problems": self.problems,
            "notes": self.notes,
            "replaced": self.replaced,
            "unplaced": self.unplaced,
        }
