"""Checkpoints: one `.safetensors` file with the weights and, in its header, a JSON document that describes them.

Reading headers needs neither torch nor safetensors, so the panel can list checkpoints at once. Nothing is ever
unpickled.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .anatomy import LabelScheme, scheme, structure
from .errors import CheckpointError, ConfigError, SpineSegAIError, did_you_mean
from .files import atomic_write, parse_json
from .methods.catalog import METHODS
from .resources import resources_folder, user_folder

if TYPE_CHECKING:
    from torch import Tensor

    from .methods.base import Method
    from .methods.config import MethodConfig

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
        """The cases that it, or what it started from, has learned from (`datasets.manifest.learned_from`): checksums of
        their images, or their names where it does not tell these."""
        training = self.metadata.get("training") or {}
        told = (training.get(f"images{when}") or training.get(f"cases{when}") or () for when in ("", "_before"))
        return frozenset(key for keys in told for key in keys)

    @property
    def unvalidated(self) -> frozenset[int]:
        """Ids of experimental structures: trained on synthetic images only, or not validated on unseen cases."""
        return frozenset(structure(n).id for n in self.metadata.get("unvalidated") or ())


def read_header(path: str | Path) -> CheckpointInfo:
    """What a checkpoint file says of itself, without its weights: enough to list it.

    What is needed to use it is checked by `inference.metadata.read_metadata`.

    Raises:
        CheckpointError: missing, truncated, foreign, of a newer format, or its description is damaged.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".bin"):
        raise CheckpointError(
            f"{path.name} is a pickled file, which could run any program when it is opened; it is not loaded.",
            "Use a SpineSegAI checkpoint (.safetensors).",
        )
    header, size = safetensors_header(path)
    stored = header.get("__metadata__")
    text = stored.get(KEY) if isinstance(stored, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path.name} holds weights, but is not a SpineSegAI checkpoint.", "Use one made by `spinesegai train`."
        )
    metadata = parse_json(text, f"The description in {path.name}", CheckpointError)
    _check_listed(metadata, path)
    return CheckpointInfo(path.name.removesuffix(SUFFIX), path, metadata, size)


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file, and the file's size.

    Raises:
        CheckpointError: it is missing, no such file, damaged or truncated.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would let us wait for ever
            raise CheckpointError(f"{path} is not a file.", "Choose a checkpoint (.safetensors).")
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER, about.st_size):
                raise ValueError("header length")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if not all(type(end) is int for end in ends):
            raise ValueError("data_offsets")
    except FileNotFoundError:
        raise CheckpointError(f"The checkpoint {path} does not exist.", "Choose another, or copy it there.") from None
    except OSError as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error.strerror}.", "Check the file.") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, struct.error):
        raise CheckpointError(f"{path.name} is not a safetensors file, or is damaged.", "Copy it again.") from None
    if about.st_size < 8 + length + max(ends, default=0):
        raise CheckpointError(f"{path.name} is truncated: part of its weights is missing.", "Copy it again.")
    return header, about.st_size


_LISTED: Mapping[str, type] = {
    "title": str, "preprocessing": dict, "calibration": dict, "patch": list, "unvalidated": list, "training": dict,
    "validation": dict, "mechanisms": dict, "licence": str,
}  # fmt: skip
"""Parts of the description that lists and cards show, and what each has to be."""


def _check_listed(metadata: Any, path: Path) -> None:
    """What can be checked without the packages that a Slicer lacks until the first segmentation.

    Raises:
        CheckpointError: the description is of a newer format, lacks what every checkpoint has, or holds something else.
    """
    damaged = CheckpointError(
        f"The description in {path.name} is incomplete or damaged.", "Create the checkpoint again."
    )
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if not isinstance(version, int):
        raise damaged
    if version > FORMAT:
        raise CheckpointError(
            f"{path.name} has format {version}; this version of SpineSegAI reads up to {FORMAT}.", "Update SpineSegAI."
        )
    if any(not isinstance(metadata[key], kind) for key, kind in _LISTED.items() if metadata.get(key) is not None):
        raise damaged
    method = metadata.get("method")
    if not isinstance(method, dict) or not all(isinstance(method.get(key), str) for key in ("method", "scheme")):
        raise damaged
    training, preprocessing = metadata.get("training") or {}, metadata.get("preprocessing") or {}
    lists = (
        *(training.get(key) for key in ("cases", "cases_before", "images", "images_before")),
        *(metadata.get("unvalidated"), preprocessing.get("planes")),
    )
    variants = [found for found in (metadata.get("validation") or {}).values() if isinstance(found, dict)]
    if any(not isinstance(row, dict) for variant in variants for row in variant.values()):
        raise damaged
    if any(not isinstance(found, list) or not all(isinstance(n, str) for n in found) for found in lists if found):
        raise damaged
    try:
        scheme(method["scheme"])
        for name in metadata.get("unvalidated") or ():
            structure(name)
    except SpineSegAIError as error:
        raise CheckpointError(
            f"{path.name} cannot be used: {error.message}", "Update SpineSegAI, if the checkpoint is newer."
        ) from None
    if method["method"] not in METHODS:
        raise CheckpointError(f"{path.name} is of the unknown method “{method['method']}”.", "Update SpineSegAI.")


def checkpoint_folders() -> list[Path]:
    """Where checkpoints are looked for: those that ship with SpineSegAI, then the user's."""
    folders = [Path(f) for f in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if f]
    return [resources_folder() / "Checkpoints", user_checkpoints_folder(), *folders]


def user_checkpoints_folder() -> Path:
    """Where the user's own checkpoints are; may not exist yet."""
    return user_folder() / "Checkpoints"


def search_checkpoints() -> tuple[list[CheckpointInfo], list[CheckpointError]]:
    """Every checkpoint that can be listed, the default one first; and why files that are called so cannot."""
    found: list[CheckpointInfo] = []
    unusable: list[CheckpointError] = []
    for folder in checkpoint_folders():
        try:
            paths = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
        except OSError as error:
            unusable.append(CheckpointError(f"{folder} cannot be read: {error.strerror}.", "Check its permissions."))
            continue
        for path in paths:
            if path.name.startswith("."):  # what macOS leaves beside files on other disks
                continue
            try:
                found.append(read_header(path))
            except CheckpointError as error:
                unusable.append(error)
    return sorted(found, key=lambda info: info.name != DEFAULT_CHECKPOINT), unusable


def list_checkpoints() -> list[CheckpointInfo]:
    """Every checkpoint that can be listed, the default one first."""
    return search_checkpoints()[0]


def find_checkpoint(name: str | Path | None = None, method: str | None = None) -> CheckpointInfo:
    """The checkpoint of this name or path; without one, the first that fits the method, or the default.

    The end of a name is enough where no other name ends so: ``resenc`` for ``lumbar-mr-resenc``.

    Raises:
        CheckpointError: there is none.
    """
    found, unusable = search_checkpoints()
    for info in found:
        if (name is None and method in (None, info.method)) or (name is not None and info.name == str(name)):
            return info
    if name is not None and (Path(name).suffix or os.sep in str(name)):
        return read_header(name)
    ending = [info for info in found if name and info.name.endswith(f"-{name}")]
    if len(ending) == 1:
        return ending[0]
    what = f"named “{name}”" if name is not None else f"for the method {method}" if method else ""
    known = ", ".join(info.name for info in found) or "none"
    where = ", ".join(str(f) for f in checkpoint_folders())
    left = "".join(f" {error.message}" for error in unusable)
    raise CheckpointError(
        f"There is no checkpoint {what}.".replace(" .", ".")
        + did_you_mean(str(name or ""), (info.name for info in found)),
        f"Available: {known}. Looked in {where}.{left}",
    )


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
        CheckpointError: the file is damaged, or its weights are not finite numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(info.path)
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        wrong = next((name for name, t in tensors.items() if not t.isfinite().all()), None)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{info.path.name} is damaged: {error}.", "Copy it again.") from None
    if wrong is not None:
        raise CheckpointError(
            f"The weights “{wrong}” in {info.path.name} are not finite numbers.",
            "Train the model again, or use another one.",
        )
    return tensors


def method_config(info: CheckpointInfo) -> MethodConfig:
    """The configuration of a checkpoint's network.

    Raises:
        CheckpointError: it is not valid.
    """
    from .methods.catalog import stored_config

    try:
        return stored_config(info.metadata["method"])
    except SpineSegAIError as error:
        raise not_valid(info, error.message) from None


def not_valid(info: CheckpointInfo, why: str) -> CheckpointError:
    """A description that something is wrong with."""
    return CheckpointError(
        f"The description in {info.path.name} is not valid: {why.rstrip('.')}.", "Create the checkpoint again."
    )


def load_method(info: CheckpointInfo) -> Method:
    """The trained method, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the description is not valid, or the weights do not fit it.
    """
    from .methods.catalog import build_method

    config = method_config(info)
    tensors = load_tensors(info)
    try:
        with _no_larger_than(sum(t.numel() for t in tensors.values())):
            method = build_method(config)
        method.load_state_dict(tensors)
    except ConfigError as error:
        raise not_valid(info, error.message) from None
    except (RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"The weights in {info.path.name} do not fit its description: {reason}", "Copy it again."
        ) from None
    return method.eval()


@contextmanager
def _no_larger_than(stored: int) -> Iterator[None]:
    """Networks that are built inside end in an error once they have far more weights than are stored: what a damaged
    description asks for may need more memory than there is.

    Raises:
        ValueError: see above.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    left = 2 * stored + 1_000_000  # some are built twice, and some have weights that are not saved

    def count(_: Any, name: str, weights: Any) -> None:
        nonlocal left
        left -= 0 if weights is None else weights.numel()
        if left < 0:
            raise ValueError("it describes a far larger network")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


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
