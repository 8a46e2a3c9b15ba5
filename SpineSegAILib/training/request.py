"""What a training is asked for, and what of it can be known to be wrong before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..anatomy import SCHEMES, Extent
from ..datasets.manifest import Manifest
from ..errors import ConfigError, DatasetError
from ..methods.base import Method
from ..methods.catalog import build_method, stored_config
from .averaging import load_matching
from .config import TrainingConfig
from .snapshot import refuse_shared

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainingRequest:
    """What `spinesegai train` asks for.

    Attributes:
        config: of a new run; ignored when resuming.
        output: run directory.
        resume: go on with the run that is there.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        cache: folder for preprocessed cases; inside the run directory where not given.
        report: called with each event of the main process.
    """

    config: TrainingConfig | None
    output: Path
    resume: bool = False
    device: str = "auto"
    cache: Path | None = None
    report: Report | None = None


def method_config(config: TrainingConfig, resources: Mapping[str, str]) -> Any:
    return stored_config(config.method).with_resources(resources)


def check_request(config: TrainingConfig, manifests: Sequence[Manifest]) -> None:
    """What can be known to be wrong before anything is written.

    Raises:
        ConfigError, DatasetError, CheckpointError: says what.
    """
    wanted = method_config(config, config.resources)
    for manifest in manifests:
        _check_extent(manifest, wanted.label_scheme.extent)
    manifests[0].cases("training")
    _check_taught(config, manifests)
    refuse_shared(manifests)
    method = checked_method(config)
    if config.start_from:
        load_matching(method, config.start_from, config.start_parts)


def checked_method(config: TrainingConfig) -> Method:
    """The method that the run trains, with random weights.

    Raises:
        ConfigError: it does not take the patches of the run.
    """
    method = build_method(method_config(config, config.resources))
    _check_patch(config.data.patch, method)
    return method


def _check_taught(config: TrainingConfig, manifests: Sequence[Manifest]) -> None:
    cases = [case for manifest in manifests for case in manifest.splits.get("training", ())]
    if not config.data.phantoms and not any(case.label or case.keypoints for case in cases):
        raise DatasetError(
            f"No training case of {manifests[0].path} has a label or keypoints: there is nothing to learn from.",
            "Name the cases' labels in the dataset, or train on synthetic images (--phantoms).",
        )


def _check_extent(manifest: Manifest, wanted: Extent | None) -> None:
    for case in (*manifest.splits.get("training", ()), *manifest.splits.get("validation", ())):
        extent = case.extent or manifest.extent
        if wanted is not None and extent is not None and extent is not wanted:
            fitting = ", ".join(f"method.scheme={name}" for name, s in SCHEMES.items() if s.extent is extent)
            raise ConfigError(
                f"{case.name} has masks of vertebral extent “{extent.value}”, the scheme wants “{wanted.value}”.",
                "Train with a scheme of the same extent, and from no checkpoint of the other; the two are never mixed. "
                f"There are: {fitting}.",
            )


def _check_patch(patch: Sequence[int], method: Method) -> None:
    if len(patch) != method.config.dims:
        raise ConfigError(
            f"The patch {tuple(patch)} is not {method.config.dims}D like the method.", "Correct data.patch."
        )
    window, divisor = method.tiling.window, method.tiling.divisor
    if window and tuple(patch) != window:
        raise ConfigError(f"This method takes inputs of {window}, not {tuple(patch)}.", "Correct data.patch.")
    if any(n % d for n, d in zip(patch, method.tiling.divisors(len(patch)), strict=True)):
        raise ConfigError(
            f"The sides of the patch {tuple(patch)} must be multiples of {divisor}.", "Correct data.patch."
        )
