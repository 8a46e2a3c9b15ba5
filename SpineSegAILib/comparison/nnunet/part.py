"""nnU-Net's part of a comparison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...anatomy import LabelScheme, scheme
from ...errors import ConfigError, problems
from ...evaluation.worst import WorstCases
from ...inference import choose_device
from ...methods.config import MethodConfig
from ...training.config import flatten
from ..config import ComparisonConfig, Entry
from ..folds import Fold
from ..parts import REHEARSED_CASES, Part, Work, cases_digest, digest, slug
from .dataset import Prepared, StoredPredictions, prepare, write_scored
from .program import OWN_STEPS, Nnunet, NnunetSettings, require_nnunet


@dataclass(frozen=True, kw_only=True)
class NnunetPart(Part):
    """nnU-Net with one seed, which names its folder alone, since it takes none.

    Attributes:
        settings: of the entry.
        manifest: what it is trained on.
        scheme: what it tells apart: the scheme of the other rows.
        split: whose cases are scored.
        seconds: of the training; None for no limit.
        steps: likewise.
    """

    settings: NnunetSettings
    manifest: Path
    scheme: LabelScheme
    split: str
    seconds: float | None
    steps: int | None

    @property
    def is_trained(self) -> bool:
        return self._program("cpu").checkpoint.exists()

    def check(self) -> None:
        require_nnunet(self.entry.name)

    def train(self, work: Work) -> None:
        prepared = self._prepared()
        work.say(f"{self.label}: {prepared.ignored:.1%} of the training voxels are ignored")
        self._program(_device(work), work).train()

    def segment_and_score(self, config: ComparisonConfig, work: Work, worst: WorstCases) -> dict[str, Any]:
        prepared = self._prepared()
        program = self._program(_device(work), work)
        limit = REHEARSED_CASES if work.rehearse else None
        split = self.scored_split(config)
        reports = []
        for variant in config.variants:
            images, target = (self.folder / kind / split / variant for kind in ("scored", "predictions"))
            names = write_scored(self.scored_manifest(config), split, variant, images, limit)
            seconds, peak = program.predict(images, target)
            stored = StoredPredictions(self.scheme, prepared.numbers, names, target)
            report = self.evaluated(
                stored,
                config.model_copy(update={"variants": (variant,)}),
                work,
                worst,
                about={"checkpoint": self.entry.name, "method": "nnU-Net v2", "device": program.device},
                trained_on=set(prepared.training.values()),
            )
            # What reading a prediction took says nothing of making it.
            took = {"seconds": seconds / max(len(names), 1), "peak_mb": peak, "device_peak_mb": None}
            summary = report["variants"][variant]
            summary.update(took)
            for case in summary["cases"]:
                case.update(took)
            reports.append(report)
        variants = {name: summary for report in reports for name, summary in report["variants"].items()}
        parameters = int((program.results / "parameters.txt").read_text(encoding="utf-8"))
        return {**reports[0], "variants": variants, "weights": "last", "parameters": parameters}

    def document(self, config: ComparisonConfig) -> dict[str, Any]:
        program = self._program("cpu")
        clock = json.loads((program.results / "clock.json").read_text(encoding="utf-8"))
        prepared = self._prepared()
        return {
            "checkpoint": str(program.checkpoint),
            "method": "nnU-Net v2",
            "preset": f"{self.settings.configuration}, {self.settings.plans_name}",
            "steps": clock["steps"],
            "hours": clock["seconds"] / 3600,
            "trained_on": frozenset(prepared.training.values()),
        }

    def _prepared(self) -> Prepared:
        return prepare(self.manifest, self.scheme, self.folder, "" if self.fold else self.split)

    def _program(self, device: str, work: Work | None = None) -> Nnunet:
        say = work.say if work else lambda sentence: None
        return Nnunet(self.folder, self.settings, device, self.seconds, self.steps, say)


def nnunet_part(
    entry: Entry, seed: int, fold: Fold | None, config: ComparisonConfig, work: Work, manifest: Path, name: str
) -> NnunetPart:
    """The part of an entry that runs nnU-Net, with its share of the budget; without one, as long as nnU-Net's own.

    Args:
        manifest: what it is trained on.
        name: of the folder.

    Raises:
        ConfigError: a setting does not exist, or its value is not valid.
    """
    try:
        settings = NnunetSettings.model_validate(entry.set)
    except ValidationError as error:
        known = ", ".join(NnunetSettings.model_fields)
        raise ConfigError(f"{entry.name}: {problems(error)}.", f"nnU-Net takes {known}.") from None
    usual = MethodConfig.model_fields["scheme"].default
    told = scheme(dict(flatten(config.set)).get("method.scheme", usual))
    budget = config.budget
    seconds = 3600 * budget.hours * entry.share if budget.hours else None
    steps = max(round(budget.steps * entry.share), 1) if budget.steps else None if seconds else OWN_STEPS
    if work.rehearse:
        settings, seconds, steps = settings.model_copy(update={"memory_gb": 0.5, "iterations": 1}), None, 2
    key = digest(
        settings.model_dump(), told.to_document(), seconds, steps, cases_digest(manifest, ("training", "validation"))
    )
    folder = work.output / f"{slug(entry.name)}-{key}" / name
    return NnunetPart(
        entry, seed, folder, fold,
        settings=settings, manifest=manifest, scheme=told, split=config.split, seconds=seconds, steps=steps,
    )  # fmt: skip


def _device(work: Work) -> str:
    return choose_device(work.device).type
