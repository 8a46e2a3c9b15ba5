import json
import os
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch

from SpineSegAILib import cli
from SpineSegAILib.checkpoints import (
    FOLDERS_VARIABLE,
    FORMAT,
    KEY,
    SUFFIX,
    find_checkpoint,
    list_checkpoints,
    load_method,
    load_tensors,
    read_header,
    save_checkpoint,
    search_checkpoints,
)
from SpineSegAILib.errors import CheckpointError, OutputError
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.base import Context, coordinate_channels
from SpineSegAILib.methods.catalog import build_method, make_config


def metadata_for(method) -> dict:
    return {"title": "T", "method": method.config.model_dump(mode="json"), "preprocessing": {}}


@pytest.fixture
def method():
    torch.manual_seed(3)
    return build_method(make_config("resenc-unet", "tiny")).eval()


@pytest.fixture
def file(method, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_checkpoint(path, method.state_dict(), metadata_for(method))
    return path


def rewrite_header(path, change):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_a_method_comes_back_from_its_file_alone(file, method):
    loaded = load_method(read_header(file))
    image = torch.randn(1, 1, 32, 32)
    context = Context(coordinate_channels((32, 32), (1.0, 1.0))[None])
    with torch.inference_mode():
        a, b = method.evidence(image, context), loaded.evidence(image, context)
    assert torch.allclose(a["kinds"], b["kinds"], atol=0.02)  # weights are stored as float16
    assert file.stat().st_size < 2.2 * sum(p.numel() for p in method.parameters()) + 20_000


def test_header_without_torch(file):
    info = read_header(file)
    assert info.method == "resenc-unet"
    assert info.scheme.name == "lumbar-mr"
    assert info.metadata["format"] == FORMAT


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.98])
def test_truncated_files_are_named(file, share):
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CheckpointError, match=r"damaged|truncated"):
        read_header(file)


def test_foreign_and_newer_files(file, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a SpineSegAI checkpoint"):
        read_header(tmp_path / "foreign.safetensors")

    def newer(header):
        document = json.loads(header["__metadata__"][KEY])
        header["__metadata__"][KEY] = json.dumps({**document, "format": FORMAT + 1})

    rewrite_header(file, newer)
    with pytest.raises(CheckpointError, match="Update"):
        read_header(file)
    (tmp_path / "text.safetensors").write_text("hello, this is no checkpoint at all")
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(tmp_path / "text.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "missing.safetensors")


class _Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_pickle_is_refused_and_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pt", "weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
        with pytest.raises(CheckpointError):
            read_header(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_weights_that_do_not_fit_their_description(file):
    def other_widths(header):
        document = json.loads(header["__metadata__"][KEY])
        document["method"]["widths"] = [8, 8, 8]
        header["__metadata__"][KEY] = json.dumps(document)

    rewrite_header(file, other_widths)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_method(read_header(file))


def test_a_description_that_lacks_the_method(file):
    rewrite_header(file, lambda h: h["__metadata__"].update({KEY: json.dumps({"format": FORMAT})}))
    with pytest.raises(CheckpointError, match="incomplete"):
        read_header(file)


DEEP = "[" * 100_000


def described(**changes):
    """Writes other values into a checkpoint's description."""

    def change(header):
        document = json.loads(header["__metadata__"][KEY])
        for key, value in changes.items():
            document[key] = {**document["method"], **value} if key == "method" and isinstance(value, dict) else value
        header["__metadata__"][KEY] = json.dumps(document)

    return change


HEADERS = {
    "nothing": lambda h: h.clear(),
    "an entry that is a number": lambda h: h.update(x=5),
    "an entry without offsets": lambda h: h.update(x={}),
    "an offset that is text": lambda h: h.update(x={"data_offsets": [0, "9"]}),
    "an offset that is one number": lambda h: h.update(x={"data_offsets": 9}),
    "offsets too few": lambda h: h.update(x={"data_offsets": []}),
    "metadata that is a list": lambda h: h.update(__metadata__=[1]),
    "a description that is a number": lambda h: h["__metadata__"].update({KEY: 5}),
    "a description that is a list": lambda h: h["__metadata__"].update({KEY: "[]"}),
    "a deep description": lambda h: h["__metadata__"].update({KEY: DEEP}),
    "an infinite format": described(format=float("inf")),
    "a format of text": described(format="one"),
    "a method that is text": described(method="resenc-unet"),
    "a method that is a list": described(method={"method": ["x"]}),
    "a method that nobody knows": described(method={"method": "magic"}),
    "a scheme that is a number": described(method={"scheme": 5}),
    "a scheme that nobody knows": described(method={"scheme": "magic"}),
    "a title that is a list": described(title=["x"]),
    "structures that are numbers": described(unvalidated=[5]),
    "structures that nobody knows": described(unvalidated=["L9"]),
    "structures that are text": described(unvalidated="canal"),
    "a training that is text": described(training="x"),
    "cases that are numbers": described(training={"cases": [1]}),
    "planes that are numbers": described(preprocessing={"planes": [1]}),
    "results that are numbers": described(validation={"full": {"vertebrae": 5}}),
}


def odd_files(folder, file):
    """Everything in a folder that is called like a checkpoint and is none."""
    for number, change in enumerate(HEADERS.values()):
        copy = folder / f"header{number}{SUFFIX}"
        copy.write_bytes(file.read_bytes())
        rewrite_header(copy, change)
    raw = {"short": b"123", "empty": b"", "long": struct.pack("<Q", 10 * 2**30) + b"{}",
           "deep": struct.pack("<Q", len(DEEP)) + DEEP.encode(), "list": struct.pack("<Q", 2) + b"[]",
           "infinite": struct.pack("<Q", 2**64 - 1), "text": b"hello, this is no checkpoint at all"}  # fmt: skip
    for name, data in raw.items():
        (folder / f"{name}{SUFFIX}").write_bytes(data)
    (folder / f"folder{SUFFIX}").mkdir()
    (folder / f"loop{SUFFIX}").symlink_to(folder / f"loop{SUFFIX}")
    (folder / f"gone{SUFFIX}").symlink_to(folder / "nothing")
    os.mkfifo(folder / f"pipe{SUFFIX}")


def test_malformed_files_are_a_line_each_and_stop_nothing(file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    odd_files(folder, file)
    (folder / f"mine{SUFFIX}").write_bytes(file.read_bytes())
    monkeypatch.setenv(FOLDERS_VARIABLE, str(folder))
    found, unusable = search_checkpoints()
    names = {p.name.removesuffix(SUFFIX) for p in folder.iterdir()}
    assert [info.name for info in found if info.path.parent == folder] == ["mine"]
    assert len(unusable) == len(names) - 1
    for name in names - {"mine"}:
        assert sum(f"{name}{SUFFIX}" in str(error) for error in unusable) == 1, name
        with pytest.raises(CheckpointError):
            read_header(folder / f"{name}{SUFFIX}")
    assert list_checkpoints() == found and find_checkpoint("mine").path == folder / f"mine{SUFFIX}"
    assert cli.main(["checkpoints"]) == 0
    out, err = capsys.readouterr()
    assert "mine" in out and len(err.splitlines()) == len(unusable)


def test_a_folder_that_may_not_be_read_is_a_line(file, tmp_path, monkeypatch):
    real = Path.is_dir

    def is_dir(self):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    monkeypatch.setenv(FOLDERS_VARIABLE, os.pathsep.join([str(tmp_path / "locked"), str(tmp_path)]))
    found, unusable = search_checkpoints()
    assert "mine" in [info.name for info in found]
    assert ["locked cannot be read: Permission denied" in str(error) for error in unusable] == [True]


def test_finding_by_name_and_by_path(file, tmp_path, monkeypatch):
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path))
    assert find_checkpoint("mine").path == file
    assert find_checkpoint(file).name == "mine"
    with pytest.raises(CheckpointError, match=r"“nobody”.* broken\.safetensors is not a safetensors file"):
        find_checkpoint("nobody")
    for name in ("x" * 5000 + SUFFIX, "nul\0" + SUFFIX, str(tmp_path / "a" / "b" / f"c{SUFFIX}")):
        with pytest.raises(CheckpointError):
            find_checkpoint(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preprocessing": None}, "preprocessing"),
        ({"preprocessing": {"pixel_mm": "wide"}}, "preprocessing.pixel_mm"),
        ({"preprocessing": {"pixel_mm": 1e-6}}, "preprocessing"),
        ({"preprocessing": {"planes": []}}, "planes is empty"),
        ({"preprocessing": {"planes": ["oblique"]}}, "preprocessing.planes"),
        ({"preprocessing": {"intensity": "hu", "low": float("-inf")}}, "not finite"),
        ({"preprocessing": {"more": 1}}, "preprocessing.more"),
        ({"calibration": {"offsets": {"vertebra": "much"}}}, "calibration.offsets.vertebra"),
        ({"calibration": {"offsets": {"vertebra": float("nan")}}}, "not a log-odds"),
        ({"calibration": {"offsets": {"vertebra": 1e9}}}, "not a log-odds"),
        ({"calibration": {"neighbour": 7}}, "calibration.neighbour"),
        ({"patch": ["a", "b"]}, "patch"),
        ({"patch": [0, 0]}, "patch"),
        ({"patch": [64, 64, 64]}, "does not go with 2D"),
        ({"patch": [99_999, 99_999]}, "does not go with 2D"),
        ({"method": {"widths": "many"}}, "widths"),
        ({"method": {"dims": 7}}, "dims"),
        ({"method": {"preset": "paper"}}, "preset"),
        ({"method": {"method_id": "unet"}}, "method_id"),
        ({"training": {"steps": "many"}}, "training.steps"),
        ({"format": float("nan")}, "damaged"),
    ],
)
def test_a_description_is_checked_as_a_whole_before_the_network_is_built(file, changes, said):
    rewrite_header(file, described(**changes))
    with pytest.raises(CheckpointError, match=r"is not valid|damaged") as caught:
        Predictor(file, device="cpu")
    assert said in str(caught.value) and "mine.safetensors" in str(caught.value)


@pytest.mark.parametrize("widths", [[4096, 8192], [4] * 30, [], [0, 0], [-1, 8]])
def test_networks_that_do_not_go_with_the_weights_are_not_built(file, widths):
    rewrite_header(file, described(method={"widths": widths}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load_method(read_header(file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_weights_that_are_no_numbers(method, tmp_path):
    state = {name: t.clone() for name, t in method.state_dict().items()}
    next(t for t in state.values() if t.is_floating_point()).view(-1)[0] = float("nan")
    save_checkpoint(tmp_path / "n.safetensors", state, metadata_for(method))
    with pytest.raises(CheckpointError, match="not finite numbers"):
        load_method(read_header(tmp_path / "n.safetensors"))


def test_damaged_weights(file):
    raw = file.read_bytes()
    for change in (
        lambda e: e.update(dtype="F17"),
        lambda e: e.update(shape=[-1]),
        lambda e: e.update(shape=[2**40, 2**40]),
        lambda e: e.update(data_offsets=[5, 1]),
    ):
        file.write_bytes(raw)
        rewrite_header(file, lambda h, change=change: change(next(v for k, v in h.items() if k != "__metadata__")))
        with pytest.raises(CheckpointError):
            load_tensors(read_header(file))


def test_saving_is_all_or_nothing(method, tmp_path, monkeypatch):
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    save_checkpoint(path, method.state_dict(), metadata_for(method))
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OutputError):
        save_checkpoint(path, method.state_dict(), metadata_for(method))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_full_precision_on_request(method, tmp_path):
    save_checkpoint(tmp_path / "f.safetensors", method.state_dict(), metadata_for(method), half=False)
    loaded = load_tensors(read_header(tmp_path / "f.safetensors"))
    assert all(torch.equal(loaded[k], v) for k, v in method.state_dict().items())
