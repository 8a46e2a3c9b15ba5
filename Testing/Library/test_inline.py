"""Image files of scenes: nothing but the file itself is read, however its header is spelled."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scene_data import SIZE, Scene, box, lumbar, volume_image

from SpineSegAILib.datasets.slicer_scene import read_scene
from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import read_file
from SpineSegAILib.imaging.headers import read_header

SECRET = 4242


@pytest.fixture
def secret(tmp_path) -> Path:
    """Somebody's voxels, outside of the scene."""
    path = tmp_path / "elsewhere" / "secret.raw"
    path.parent.mkdir()
    np.full(SIZE, SECRET, np.int16).tofile(path)
    return path


def nrrd_header(middle: str, ends: str = "\n") -> bytes:
    slices, rows, columns = SIZE
    lines = [
        "NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {columns} {rows} {slices}", "space directions: (0,1.5,0) (0,0,-1.5) (4,0,0)",
        "kinds: domain domain domain", "endian: little", "encoding: raw", "space origin: (-20,-30,40)",
    ]  # fmt: skip
    return (ends.join([*lines, middle]) + ends + ends).encode("latin-1")


NRRD = {
    "plainly": nrrd_header("data file: {secret}"),
    "in one word": nrrd_header("datafile: {secret}"),
    "in capitals": nrrd_header("Data File: {secret}"),
    "with carriage returns": nrrd_header("data file: {secret}", "\r"),
    "with Windows line ends": nrrd_header("data file: {secret}", "\r\n"),
    "behind a comment": nrrd_header("# x\rdata file: {secret}"),
    "after much": nrrd_header("# " + "x" * 70_000 + "\ndata file: {secret}"),
    "after many": nrrd_header("# x\n" * 30_000 + "data file: {secret}"),
    "without a space": nrrd_header("data file:{secret}"),
    "with a tab": nrrd_header("data file:\t{secret}"),
    "as a list": nrrd_header("data file: LIST\n{secret}"),
    "as a pattern": nrrd_header("data file: {secret}%d 1 1 1"),
    "with spaces before": nrrd_header("  data file: {secret}"),
    "with a null": nrrd_header("content: x\0\ndata file: {secret}"),
    "with bytes to skip": nrrd_header("byte skip: 12\ndata file: {secret}"),
    "after a pair": nrrd_header("data file:={secret}\ndata file: {secret}"),
}


def meta_header(last: str, first: str = "", equals: str = " = ") -> bytes:
    slices, rows, columns = SIZE
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "0 1 0 0 0 -1 1 0 0", "Offset": "-20 -30 40",
        "ElementSpacing": "1.5 1.5 4", "DimSize": f"{columns} {rows} {slices}", "ElementType": "MET_SHORT",
    }  # fmt: skip
    body = "".join(f"{key}{equals}{value}\n" for key, value in lines.items())
    return f"{first}{body}{last}\n".encode()


META = {
    "plainly": meta_header("ElementDataFile = {secret}"),
    "with a tab": meta_header("ElementDataFile\t= {secret}"),
    "with tabs": meta_header("ElementDataFile\t=\t{secret}", equals="\t=\t"),
    "with a space before": meta_header(" ElementDataFile = {secret}"),
    "after an empty line": meta_header("ElementDataFile = {secret}", first="\n"),
    "with a colon": meta_header("ElementDataFile : {secret}"),
    "without spaces": meta_header("ElementDataFile={secret}"),
    "in small letters": meta_header("elementdatafile = LOCAL\nElementDataFile = {secret}"),
    "twice": meta_header("ElementDataFile = LOCAL \nElementDataFile = {secret}"),
    "as a list": meta_header("ElementDataFile = LIST\n{secret}"),
    "behind a comment": meta_header("Comment = x\rElementDataFile = {secret}\nElementDataFile = LOCAL"),
    "after much": meta_header("Comment = " + "x" * 70_000 + "\nElementDataFile = {secret}"),
    "with a header size": meta_header("HeaderSize = 10\nElementDataFile = {secret}"),
}


def scene_with(folder: Path, suffix: str, data: bytes, *, of: str, mrb: bool) -> Path:
    """A scene whose volume or segmentation is a file of these bytes."""
    scene = lumbar()
    name = next(name for name in scene.files if name.endswith(".seg.nrrd") is (of == "segmentation"))
    other = name.replace(".nrrd", suffix) if of == "volume" else name
    scene.files = {other if key == name else key: data if key == name else value for key, value in scene.files.items()}
    scene.nodes = [re.sub(re.escape(name.rpartition("/")[2]), other.rpartition("/")[2], node) for node in scene.nodes]
    return scene.write(folder / ("a.mrb" if mrb else "a.mrml"))


@pytest.mark.parametrize("mrb", [True, False])
@pytest.mark.parametrize(
    ("suffix", "header"),
    [*((".nrrd", header) for header in NRRD.values()), *((".mha", header) for header in META.values())],
    ids=[*(f"nrrd {name}" for name in NRRD), *(f"mha {name}" for name in META)],
)
def test_a_scene_reads_no_file_outside_of_itself(tmp_path, secret, suffix, header, mrb):
    data = header.replace(b"{secret}", str(secret).encode())
    folder = tmp_path / "scene"
    folder.mkdir()
    report = read_scene(scene_with(folder, suffix, data, of="volume", mrb=mrb))
    assert report.problems and not report.cases
    if suffix == ".nrrd":
        report = read_scene(scene_with(folder, suffix, data, of="segmentation", mrb=mrb))
        assert report.problems and not report.cases


def test_a_pair_of_nifti_files_is_no_volume_of_a_scene(tmp_path):
    image = volume_image()
    sitk.WriteImage(image, str(tmp_path / "T2.img"))  # and T2.hdr
    header = bytearray((tmp_path / "T2.hdr").read_bytes())
    assert header[344:347] == b"ni1"
    for name, data in (("T2.nii", bytes(header)), ("T2.nii.gz", gzip.compress(bytes(header)))):
        scene = lumbar()
        scene.files = {f"Data/{name}" if k == "Data/T2.nrrd" else k: data if k == "Data/T2.nrrd" else v
                       for k, v in scene.files.items()}  # fmt: skip
        scene.files["Data/T2.img"] = (tmp_path / "T2.img").read_bytes()
        scene.nodes = [node.replace("T2.nrrd", name) for node in scene.nodes]
        report = read_scene(scene.write(tmp_path / f"{name}.mrml"))
        assert "keeps its voxels in another file" in report.problems[0] and not report.cases


def test_files_of_other_formats_are_no_dicom(tmp_path):
    scene = lumbar()
    picture = tmp_path / "p.png"
    sitk.WriteImage(sitk.Cast(volume_image()[:, :, 0], sitk.sitkUInt8), str(picture))
    scene.files = {"Data/T2" if k == "Data/T2.nrrd" else k: picture.read_bytes() if k == "Data/T2.nrrd" else v
                   for k, v in scene.files.items()}  # fmt: skip
    scene.nodes = [node.replace("T2.nrrd", "T2") for node in scene.nodes]
    assert "is not a DICOM file" in read_scene(scene.write(tmp_path / "a.mrb")).problems[0]


# --- what programs write is read as before ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    kind=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]),
    layers=st.integers(1, 3),
    suffix=st.sampled_from([".nrrd", ".mha"]),
    compressed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_plain_file_is_the_image_that_itk_reads(tmp_path, size, kind, layers, suffix, compressed, seed):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, (*size, layers) if layers > 1 else size).astype(kind)
    image = sitk.GetImageFromArray(array, isVector=layers > 1)
    image.SetSpacing(rng.uniform(0.1, 9, 3).tolist())
    image.SetOrigin(rng.uniform(-900, 900, 3).tolist())
    image.SetDirection(np.linalg.qr(rng.normal(size=(3, 3)))[0].ravel().tolist())
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    copy, original = read_file(path, inline=True), sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(copy), array)
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        assert getattr(copy, what)() == pytest.approx(getattr(original, what)(), abs=1e-5), what


def test_a_scene_with_windows_line_ends_comments_and_pairs_is_read(tmp_path):
    header = nrrd_header("# a comment of somebody\nAcquisitionDate:=2020\nSegment0_Note:=data file: x", "\r\n")
    data = header + volume_image().GetBufferAsBuffer().tobytes() if hasattr(sitk.Image, "GetBufferAsBuffer") else (
        header + sitk.GetArrayFromImage(volume_image()).tobytes()
    )  # fmt: skip
    scene = Scene()
    scene.volume(image=volume_image())
    scene.segmentation({"L4": box(slice(5, 14))})
    scene.files["Data/T2.nrrd"] = data
    report = read_scene(scene.write(tmp_path / "a.mrb"))
    assert not report.problems
    assert np.array_equal(sitk.GetArrayFromImage(report.cases[0].image), sitk.GetArrayFromImage(volume_image()))


def test_pairs_come_as_slicer_and_others_write_them(tmp_path):
    image = sitk.Image([2, 2, 2], sitk.sitkUInt8)
    image.SetMetaData("Segment0_Name", "a\\b: := c")
    image.SetMetaData("Long", "x" * 5000)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    keys = read_header(tmp_path / "a.nrrd").metadata
    assert keys["Segment0_Name"] == "a\\b: := c" and keys["Long"] == "x" * 5000


# --- what is not whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [True, False])
def test_incomplete_files_are_refused(tmp_path, suffix, compressed):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(volume_image(), str(path), useCompression=compressed)
    data = path.read_bytes()
    for part in (len(data) // 2, len(data) - 200, 300, 5, 0):
        path.write_bytes(data[:part])
        with pytest.raises(ImageError):
            read_file(path, inline=True)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (nrrd_header("").replace(b"30 40 10", b"30000 40000 10000"), "more than can be read at once"),
        (nrrd_header("").replace(b"30 40 10", b"30 40 -10"), "is empty"),
        (nrrd_header("").replace(b"30 40 10", b"30 40 1e3"), "damaged"),
        (nrrd_header("").replace(b"dimension: 3", b"dimension: 30000"), "damaged"),
        (nrrd_header("").replace(b"space origin: (-20", b"space origin: (nan"), "damaged"),
        (nrrd_header("space origin: (1,2,3)"), "damaged"),
        (nrrd_header("").replace(b"kinds: domain", b"kinds: x " + b"d" * 5000), "damaged"),
        (meta_header("ElementDataFile = LOCAL").replace(b"NDims = 3", b"NDims = 30000"), "damaged"),
        (meta_header("ElementDataFile = LOCAL").replace(b"NDims = 3", b"NDims = -1"), "damaged"),
        (meta_header("ElementDataFile = LOCAL").replace(b"MET_SHORT", b"MET_OTHER"), "not supported"),
        (b"", "damaged"),
        (b"\xff" * 1000, "damaged"),
        (b"x" * (17 * 2**20), "damaged"),
    ],
)
def test_headers_that_no_program_writes_are_refused(tmp_path, header, said):
    path = tmp_path / ("a.mha" if header.startswith(b"ObjectType") else "a.nrrd")
    path.write_bytes(header + bytes(1000))
    with pytest.raises(ImageError, match=said):
        read_file(path, inline=True)


@pytest.mark.parametrize(
    ("suffix", "header"), [(".nrrd", nrrd_header("content: x")), (".mha", meta_header("ElementDataFile = LOCAL"))]
)
@pytest.mark.parametrize("mrb", [True, False])
def test_the_same_headers_with_voxels_of_their_own_are_read(tmp_path, suffix, header, mrb):
    data = header + sitk.GetArrayFromImage(volume_image()).tobytes()
    (case,) = read_scene(scene_with(tmp_path, suffix, data, of="volume", mrb=mrb)).cases
    assert sitk.Hash(case.image) == sitk.Hash(volume_image())
