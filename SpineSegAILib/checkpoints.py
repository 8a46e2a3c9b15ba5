"""Checkpoints: one `.safetensors` file with the weights and, in its header, a JSON document that describes them.

Reading headers needs neither torch nor safetensors, so the panel can list checkpoints at once. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .anatomy import LabelScheme, scheme
from .errors import CheckpointError, ConfigError, SpineSegAIError
from .files import atomic_write
from .resources import resources_folder, user_folder

if TYPE_CHECKING:
    from torch import Tensor

    from .methods.base import Method

Trained = tuple[Mapping[str, Any], Mapping[str, "Tensor"]]
"""A method's configuration, as in the header, and its weights."""

FORMAT = 1
KEY = "spinesegai"
SUFFIX = ".safetensors"
DEFAULT_CHECKPOINT = "lumbar-mr-resenc"
FOLDERS_VARIABLE = "SPINESEGAI_CHECKPOINTS"
"""Environment variable with more folders to look into, separated as in PATH."""
_MAX_HEADER = 50_000_000  # a bound on what a damaged length field can make us read


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's header says.

    Attributes:
        name: the file's name without its suffix.
        path: the file.
        metadata: the JSON document: format, method (configuration), scheme, preprocessing, training, metrics, …
        size_bytes: of the file.
    """

    name: str
    path: Path
    metadata: Mapping[str, Any]
    size_bytes: int

    @property
    def method(self) -> str:
        """Id of the method."""
        return self.metadata["method"]["method"]

    @property
    def scheme(self) -> LabelScheme:
        """The label scheme."""
        return scheme(self.metadata["method"]["scheme"])

    @property
    def title(self) -> str:
        """What users see."""
        return self.metadata.get("title") or self.name

    @property
    def trained_on(self) -> frozenset[str]:
        """Names of the cases that it, or what it started from, has learnt from."""
        training = self.metadata.get("training", {})
        return frozenset({*training.get("cases", ()), *training.get("cases_before", ())})

    @property
    def unvalidated(self) -> frozenset[int]:
        """Ids of structures learnt from phantoms alone."""
        from .anatomy import structure

        return frozenset(structure(n).id for n in self.metadata.get("unvalidated", ()))


def read_header(path: str | Path) -> CheckpointInfo:
    """What a checkpoint file says of itself, without its weights.

    Raises:
        CheckpointError: missing, truncated, foreign, or of a newer format.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin"):
        raise CheckpointError(
            f"{path.name} is a pickled file, which could run any program when it is opened; it is not loaded.",
            "Use a SpineSegAI checkpoint (.safetensors).",
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, size):
                raise ValueError("header length")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"The checkpoint {path} does not exist.", "Choose another, or copy it there.") from None
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror}.", "Check the file.") from error
    except (ValueError, struct.error):
        raise CheckpointError(f"{path.name} is not a safetensors file, or is damaged.", "Copy it again.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path.name} is damaged.", "Copy it again.")
    ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    if size < 8 + length + max(ends, default=0):
        raise CheckpointError(f"{path.name} is truncated: part of its weights is missing.", "Copy it again.")
    try:
        metadata = json.loads(header["__metadata__"][KEY])
        version = int(metadata["format"])
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(
            f"{path.name} holds weights, but is not a SpineSegAI checkpoint.", "Use one made by `spinesegai train`."
        ) from None
    if version > FORMAT:
        raise CheckpointError(
            f"{path.name} has format {version}; this version of SpineSegAI reads up to {FORMAT}.", "Update SpineSegAI."
        )
    info = CheckpointInfo(path.name.removesuffix(SUFFIX), path, metadata, size)
    try:
        _ = info.method, info.scheme
    except (KeyError, TypeError):
        raise CheckpointError(f"The description in {path.name} is incomplete.", "Make the checkpoint again.") from None
    return info


def checkpoint_folders() -> list[Path]:
    """Where checkpoints are looked for: those that ship with SpineSegAI, then the user's."""
    folders = [Path(f) for f in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if f]
    return [resources_folder() / "Checkpoints", user_checkpoints_folder(), *folders]


def user_checkpoints_folder() -> Path:
    """Where the user's own checkpoints are; may not exist yet."""
    return user_folder() / "Checkpoints"


def list_checkpoints() -> list[CheckpointInfo]:
    """Every readable checkpoint, the default one first. Damaged files are left out."""
    found: list[CheckpointInfo] = []
    for folder in checkpoint_folders():
        if not folder.is_dir():
            continue
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                found.append(read_header(path))
            except SpineSegAIError:
                continue
    return sorted(found, key=lambda info: info.name != DEFAULT_CHECKPOINT)


def find_checkpoint(name: str | Path | None = None, method: str | None = None) -> CheckpointInfo:
    """The checkpoint of this name or path; without one, the first that fits the method, or the default.

    Raises:
        CheckpointError: there is none.
    """
    if name is not None:
        for info in list_checkpoints():
            if info.name == str(name):
                return info
        if Path(name).suffix or os.sep in str(name):
            return read_header(name)
    else:
        for info in list_checkpoints():
            if method in (None, info.method):
                return info
    what = f"named “{name}”" if name is not None else f"for the method {method}" if method else ""
    known = ", ".join(i.name for i in list_checkpoints()) or "none"
    where = ", ".join(str(f) for f in checkpoint_folders())
    raise CheckpointError(f"There is no checkpoint {what}.".replace(" .", "."), f"Known: {known}. Looked in {where}.")


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, half: bool = True
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: ends in ``.safetensors``.
        tensors: the method's state.
        metadata: JSON-able; `format` is added.
        half: store floating-point tensors as float16.
    """
    import torch
    from safetensors.torch import save_file

    stored = {
        name: (t.detach().to("cpu", torch.float16) if half and t.is_floating_point() else t.detach().cpu()).contiguous()
        for name, t in tensors.items()
    }
    document = json.dumps({**metadata, "format": FORMAT}, ensure_ascii=False)
    with atomic_write(path) as (part,):
        save_file(stored, part, {KEY: document})


def load_tensors(info: CheckpointInfo) -> dict[str, Tensor]:
    """The weights, as float32 where they are floating-point.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(info.path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{info.path.name} is damaged: {error}.", "Copy it again.") from None
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def load_method(info: CheckpointInfo) -> Method:
    """The trained method, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit the description.
    """
    from .methods.catalog import build_method, stored_config

    method = build_method(stored_config(info.metadata["method"]))
    try:
        method.load_state_dict(load_tensors(info))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"The weights in {info.path.name} do not fit its description: {reason}") from None
    return method.eval()


def join_checkpoints(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    join: Callable[[Mapping[str, Trained]], Trained],
    title: str = "",
) -> Path:
    """One checkpoint of an ensemble, out of one for each of its members.

    Args:
        checkpoints: names or paths.
        output: file to write.
        join: makes one configuration and state of theirs, as `scar_net.label_fusion.join_networks` does.
        title: what users see; default: the first one's.

    Raises:
        ConfigError: they do not go together.
        CheckpointError: one cannot be read.
    """
    found = {str(c): find_checkpoint(c) for c in checkpoints}
    method, tensors = join({name: (info.metadata["method"], load_tensors(info)) for name, info in found.items()})
    first, *others = found.values()
    for info in others:
        if info.metadata["preprocessing"] != first.metadata["preprocessing"]:
            raise ConfigError(
                f"{first.name} and {info.name} are not of one kind.", "Fuse checkpoints of the same preprocessing."
            )
    names = [info.name for info in found.values()]
    metadata = {**first.metadata, "title": title or f"{first.title} (fused)", "method": method, "fused": names}
    save_checkpoint(output, tensors, metadata)
    return Path(output)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of the packages that matter, for provenance."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    found = {"spinesegai": __version__}
    for package in ("torch", "monai", "SimpleITK", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
