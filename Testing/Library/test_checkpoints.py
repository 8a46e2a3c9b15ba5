import json
import os
import pickle
import struct

import pytest
import torch

from SpineSegAILib.checkpoints import (
    FOLDERS_VARIABLE,
    FORMAT,
    KEY,
    find_checkpoint,
    list_checkpoints,
    load_method,
    load_tensors,
    read_header,
    save_checkpoint,
)
from SpineSegAILib.errors import CheckpointError, OutputError
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


def test_listing_leaves_damaged_files_out(file, tmp_path, monkeypatch):
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    monkeypatch.setenv(FOLDERS_VARIABLE, str(tmp_path))
    names = [i.name for i in list_checkpoints()]
    assert "mine" in names
    assert "broken" not in names
    assert find_checkpoint("mine").path == file
    assert find_checkpoint(file).name == "mine"
    with pytest.raises(CheckpointError, match="“nobody”"):
        find_checkpoint("nobody")


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
