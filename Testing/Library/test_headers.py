"""Files from elsewhere: what is read is what ITK reads, and what is damaged, foreign or hostile is refused by name."""

from __future__ import annotations

import gzip
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from SpineSegAILib.errors import ImageError, OutputError, SpineSegAIError
from SpineSegAILib.files import atomic_write
from SpineSegAILib.imaging import (
    ORIENTATION_UNKNOWN_TAG,
    SCALE_UNKNOWN_TAG,
    Geometry,
    check_inline,
    plausibility_warnings,
    read_file,
    read_geometry,
    read_image,
    whole_numbers,
)
from SpineSegAILib.imaging.headers import read_header
from SpineSegAILib.imaging.nifti import Forms
from SpineSegAILib.resources import user_folder
from SpineSegAILib.results.files import write_image

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".nhdr", ".mhd", ".hdr")
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


def image(size=(6, 7, 5), dtype="i2", seed=0, angles=(0.3, -0.2, 0.1)) -> sitk.Image:
    rng = np.random.default_rng(seed)
    made = sitk.GetImageFromArray(rng.integers(0, 100, size[::-1]).astype(dtype))
    made.SetSpacing((0.5, 0.75, 3.0))
    made.SetOrigin((-10.0, 20.0, 33.0))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*angles)
    made.SetDirection(turn.GetMatrix())
    return made


def same(one: sitk.Image, other: sitk.Image) -> bool:
    return (
        np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
        and one.GetPixelID() == other.GetPixelID()
        and np.allclose(one.GetSpacing(), other.GetSpacing(), atol=1e-6)
        and np.allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-4)
        and np.allclose(one.GetDirection(), other.GetDirection(), atol=1e-5)
    )


# --- as ITK reads them ------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(SUFFIXES),
    dtype=st.sampled_from(DTYPES),
    compressed=st.booleans(),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    angles=st.tuples(*[st.floats(-3, 3).map(lambda a: round(a, 4))] * 3),
)
def test_what_itk_writes_is_read_as_itk_reads_it(tmp_path, suffix, dtype, compressed, size, angles):
    for file in tmp_path.iterdir():  # ITK takes a.nii for a.nii.gz
        file.unlink()
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image(size, dtype, angles=angles), str(path), compressed)
    got = read_file(path)
    assert same(got, sitk.ReadImage(str(path)))
    assert read_geometry(path) == Geometry.of(got)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_values_of_a_vector_and_keys_of_the_file_are_kept(tmp_path, suffix):
    layers = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, (4, 5, 6, 3)).astype(np.uint8), True)
    layers.SetMetaData("Segment0_Name", "L1")
    sitk.WriteImage(layers, str(tmp_path / f"a{suffix}"))
    got = read_file(tmp_path / f"a{suffix}")
    assert np.array_equal(sitk.GetArrayFromImage(got), sitk.GetArrayFromImage(layers))
    assert got.GetMetaData("Segment0_Name") == "L1"


NRRD = {
    "dimension": "3", "type": "short", "sizes": "2 3 4", "encoding": "raw", "endian": "little",
    "space": "left-posterior-superior", "space directions": "(1,0,0) (0,2,0) (0,0,4)", "space origin": "(5,6,7)",
    "kinds": "domain domain domain",
}  # fmt: skip
VOXELS = np.arange(24, dtype="<i2")


def nrrd(path: Path, data: bytes = VOXELS.tobytes(), lines: str = "", end: str = "\n", **fields: str) -> Path:
    told = {**NRRD, **{key.replace("_", " "): value for key, value in fields.items()}}
    head = "".join(f"{key}: {value}{end}" for key, value in told.items() if value)
    path.write_bytes(f"NRRD0005{end}{head}{lines}{end}".encode() + data)
    return path


@pytest.mark.parametrize(
    ("space", "origin", "first"),
    [
        ("left-posterior-superior", (5, 6, 7), 1),
        ("right-anterior-superior", (-5, -6, 7), -1),
        ("LAS", (5, -6, 7), 1),
        ("scanner-xyz", (5, 6, 7), 1),
    ],
)
def test_the_space_of_an_nrrd_file_is_taken_to_lps(tmp_path, space, origin, first):
    got = read_file(nrrd(tmp_path / "a.nrrd", space=space))
    assert got.GetOrigin() == origin and got.GetDirection()[0] == first and got.GetSpacing() == (1, 2, 4)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_nrrd_with_layers_last_or_first_with_bytes_before_and_from_the_other_endian(tmp_path, end):
    first = nrrd(
        tmp_path / "a.nrrd", VOXELS.byteswap().tobytes(), end=end, dimension="4", sizes="2 1 3 4", endian="big",
        space_directions="none (1,0,0) (0,2,0) (0,0,4)", kinds="list domain domain domain",
    )  # fmt: skip
    last = nrrd(
        tmp_path / "b.nrrd", b"12345" + VOXELS.tobytes(), end=end, dimension="4", sizes="1 3 4 2", byte_skip="5",
        space_directions="(1,0,0) (0,2,0) (0,0,4) none", kinds="domain domain domain list",
    )  # fmt: skip
    a, b = (sitk.GetArrayFromImage(read_file(path)) for path in (first, last))
    assert a.shape == b.shape == (4, 3, 1, 2)
    assert np.array_equal(a.ravel(), VOXELS) and np.array_equal(b[..., 1].ravel(), VOXELS[12:])


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def nifti(
    path: Path, values=None, *, dim=(3, 4, 5, 6, 1, 1, 1, 1), codes=(1, 0), quaternion=(0, 0, 0), offset=(5, 6, 7),
    rows=None, pixdim=(1, 1, 1, 4), units=2, kind=4, slope=(1, 0), order="<", voxel_offset=352,
    magic=b"n+1\0", size=348,
) -> Path:  # fmt: skip
    h = bytearray(352)
    struct.pack_into(order + "i", h, 0, size)
    struct.pack_into(order + "8h", h, 40, *dim)
    struct.pack_into(order + "2h", h, 70, kind, 16)
    struct.pack_into(order + "8f", h, 76, *pixdim, 1, 1, 1, 1)
    struct.pack_into(order + "3f", h, 108, voxel_offset, *slope)
    h[123] = units
    struct.pack_into(order + "2h", h, 252, *codes)
    struct.pack_into(order + "6f", h, 256, *quaternion, *offset)
    struct.pack_into(order + "12f", h, 280, *np.ravel(np.diag([1, 1, 4, 0])[:3] if rows is None else rows))
    h[344:348] = magic
    values = np.arange(120) if values is None else values
    data = bytes(h) + np.asarray(values).astype(np.dtype(order + {4: "i2", 16: "f4", 64: "f8"}[kind])).tobytes()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


TURNED = np.array([[0, 0, 4, 10], [1, 0, 0, 20], [0, 1, 0, 30.0]])
"""An sform of a sagittal stack; the qform beside it is axial."""


@pytest.mark.parametrize("codes", [(q, s) for q in range(5) for s in range(5) if q or s])
def test_the_form_that_itk_and_slicer_take_decides(tmp_path, codes):
    path = nifti(tmp_path / "a.nii", codes=codes, rows=TURNED)
    assert same(read_file(path), sitk.ReadImage(str(path)))


@pytest.mark.parametrize(
    "told",
    [
        {"order": ">"}, {"units": 3, "pixdim": (1, 900, 900, 4000)}, {"units": 1, "pixdim": (1, 0.001, 0.001, 0.004)},
        {"pixdim": (-1, 1, 1, 4), "quaternion": (0.5, 0.5, 0.5)}, {"pixdim": (0, 1, 1, 4), "quaternion": (0.7, 0.7, 0)},
        {"slope": (2.5, -3)}, {"slope": (0, 0)}, {"slope": (float("nan"), 0)}, {"kind": 64, "slope": (0.1, 0.2)},
        {"kind": 16}, {"dim": (5, 4, 5, 6, 1, 1, 1, 1)}, {"voxel_offset": 356, "values": np.arange(122)},
    ],
    ids=str,
)  # fmt: skip
def test_odd_nifti_headers_mean_what_itk_takes_them_for(tmp_path, told):
    path = nifti(tmp_path / "a.nii", **told)
    assert same(read_file(path), sitk.ReadImage(str(path)))


@pytest.mark.parametrize("shear", [1e-4, 3e-4, 6e-4, 9e-4])
@pytest.mark.parametrize("permissive", [None, "1"])
def test_a_nearly_orthonormal_sform_is_taken_to_the_nearest_rotation(tmp_path, monkeypatch, shear, permissive):
    if permissive:
        monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", permissive)
    rows = TURNED.copy()
    rows[2, 0] = shear
    got = read_image(nifti(tmp_path / "a.nii", codes=(0, 1), rows=rows))
    right = read_image(nifti(tmp_path / "b.nii", codes=(0, 1), rows=TURNED))
    matrix = np.reshape(got.GetDirection(), (3, 3))
    assert np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-9)
    assert np.allclose(matrix, np.reshape(right.GetDirection(), (3, 3)), atol=shear)
    rows[2, 0] = 3e-3
    with pytest.raises(ImageError, match="not perpendicular"):
        read_image(nifti(tmp_path / "a.nii", codes=(0, 1), rows=rows))


def forms_notes(image: sitk.Image) -> list[str]:
    return [note for note in plausibility_warnings(image, "MR") if "qform and sform" in note]


def test_forms_that_disagree_are_noted_and_come_back_as_they_were(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", codes=(1, 2), rows=TURNED, offset=(5, 6, 7))
    got = read_image(path)
    (note,) = forms_notes(got)
    # The corner (3, 0, 5) lies at (8, 6, 27) by the qform, which counts here, and at (30, 23, 30) by the sform;
    # the corner (0, 0, 0) at (5, 6, 7) and at (10, 20, 30), and so on: at most 30.03 mm apart.
    assert "qform and sform), which differ by up to 30 mm" in note
    for suffix in (".nii", ".nii.gz"):
        written = tmp_path / f"result{suffix}"
        write_image(got, written)
        before, after = (
            (gzip.decompress(p.read_bytes()) if p.name.endswith(".gz") else p.read_bytes())[252:328]
            for p in (path, written)
        )
        assert before == after
        assert same(read_file(written), got) and sorted(p.name for p in tmp_path.iterdir() if "plain" in p.name) == []
    got.SetOrigin((0, 0, 0))  # moved: what the file said is no longer true
    write_image(got, tmp_path / "moved.nii")
    assert np.allclose(read_file(tmp_path / "moved.nii").GetOrigin(), 0)


def test_a_spacing_that_contradicts_the_sform_is_noted(tmp_path):
    got = read_image(nifti(tmp_path / "a.nii", codes=(0, 1), pixdim=(1, 2, 1, 4)))
    assert got.GetSpacing() == (2, 1, 4)
    assert "pixdim and sform), which differ by up to 3 mm" in plausibility_warnings(got, "MR")[0]


def test_forms_that_agree_are_not_noted(tmp_path):
    sitk.WriteImage(image(), str(tmp_path / "a.nii"))
    assert forms_notes(read_image(tmp_path / "a.nii")) == []


def test_forms_survive_their_text():
    forms = Forms(1, 2, -1.0, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), tuple(map(float, range(12))))
    assert Forms.parse(str(forms)) == forms


@pytest.mark.parametrize(
    ("write", "tag"),
    [
        (lambda p: nifti(p / "a.nii", codes=(0, 0)), ORIENTATION_UNKNOWN_TAG),
        (lambda p: nrrd(p / "a.nrrd", space="", space_directions="", space_origin="", spacings="1 1 4"),
         ORIENTATION_UNKNOWN_TAG),
        (lambda p: nifti(p / "a.nii", pixdim=(1, 0, 0, 0)), SCALE_UNKNOWN_TAG),
        (lambda p: nrrd(p / "a.nrrd", space="", space_directions="", space_origin=""), SCALE_UNKNOWN_TAG),
    ],
)  # fmt: skip
def test_what_a_file_does_not_tell_is_known(tmp_path, write, tag):
    assert read_image(write(tmp_path)).HasMetaDataKey(tag)
    other = nifti(tmp_path / "told.nii")
    assert not read_image(other).HasMetaDataKey(tag)


def test_no_pixel_size_is_said(tmp_path):
    notes = plausibility_warnings(read_image(nifti(tmp_path / "a.nii", pixdim=(1, 0, 0, 0))), "MR")
    assert any("The file does not give its scale" in note for note in notes)


# --- refusals that name the cause -------------------------------------------------------------------------------------


def double(path: Path) -> Path:
    nifti(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def renamed(path: Path, to: str) -> Path:
    return path.rename(path.with_name(to))


def half(path: Path) -> Path:
    """Half of a .nii, then compressed whole: nothing is wrong with the compression."""
    whole = nifti(path.with_name("whole.nii")).read_bytes()
    path.write_bytes(gzip.compress(whole[: 352 + 120]))
    return path


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda p: renamed(nifti(p / "a.nii"), "b.nii.gz"), r"b\.nii\.gz.* is not compressed.*Rename it to b\.nii\."),
        (lambda p: renamed(nifti(p / "a.nii.gz"), "b.nii"), r"b\.nii.* is compressed.*Rename it to b\.nii\.gz"),
        (lambda p: double(p / "a.nii.gz"), "compressed twice"),
        (lambda p: nifti(p / "a.nii", size=540), "NIfTI-2.*Convert"),
        (lambda p: nifti(p / "a.nii", magic=b"\0\0\0\0"), "Analyze"),
        (lambda p: half(p / "a.nii.gz"), r"incomplete.* holds 3 of 6 slices"),
        (lambda p: nifti(p / "a.nii", dim=(3, 4, 5, 12, 1, 1, 1, 1)), r"incomplete.* holds 6 of 12 slices"),
        (lambda p: nifti(p / "a.nii.gz", dim=(3, 400, 500, 30000, 1, 1, 1, 1)), "400 × 500 × 30000 voxels"),
        (lambda p: nifti(p / "a.nii", dim=(3, 4, -5, 6, 1, 1, 1, 1)), "4 × -5 × 6 voxels"),
        (lambda p: nifti(p / "a.nii", dim=(9, 4, 5, 6, 1, 1, 1, 1)), "9 dimensions"),
        (lambda p: nifti(p / "a.nii", dim=(4, 4, 5, 3, 2, 1, 1, 1)), "4 dimensions"),
        (lambda p: nifti(p / "a.nii", np.full(120, np.nan), kind=16), "not finite"),
        (lambda p: nifti(p / "a.nii.gz", np.append(np.inf, np.arange(119)), kind=16), "not finite"),
        (lambda p: nifti(p / "a.nii", voxel_offset=0), "damaged"),
        (lambda p: nifti(p / "a.nii", voxel_offset=float("inf")), "damaged"),
        (lambda p: nifti(p / "a.nii", offset=(float("nan"), 0, 0)), "origin"),
        (lambda p: nrrd(p / "a.nrrd", VOXELS.tobytes()[:24]), "holds 2 of 4 slices"),
        (lambda p: nrrd(p / "a.nrrd", encoding="ascii"), "ascii"),
        (lambda p: nrrd(p / "a.nrrd", space="here"), "space"),
        (lambda p: nrrd(p / "a.nrrd", sizes="2 3"), "sizes"),
        (lambda p: nrrd(p / "a.nrrd", sizes="2000 3000 4000"), "2000 × 3000 × 4000 voxels"),
        (lambda p: nrrd(p / "a.nrrd", type="block"), "block"),
        (lambda p: nrrd(p / "a.nrrd", lines="Segment0_ID:=L1\n"), "is a segmentation"),
        (lambda p: nrrd(p / "a.seg.nrrd"), "is a segmentation"),
    ],
)  # fmt: skip
def test_a_refusal_names_its_cause(tmp_path, write, words):
    path = write(tmp_path)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert re.search(words, str(error.value)), str(error.value)
    assert error.value.remedy and path.name in error.value.message


def test_a_byte_order_mark_before_a_text_header_is_named(tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd"), mha(tmp_path / "a.mha")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        with pytest.raises(ImageError, match="byte-order mark"):
            read_image(path)


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path):
    """Some kilobytes claim 2 GB; the process may take less than that."""
    pytest.importorskip("resource", reason="the limits of a process are Unix's")
    path = nifti(tmp_path / "a.nii.gz", np.zeros(50_000), dim=(3, 400, 500, 5000, 1, 1, 1, 1))
    code = (
        "import resource, sys\n"
        "from SpineSegAILib.imaging import read_image\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))\n"
        "read_image(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code, str(path)], capture_output=True, encoding="utf-8")
    assert "ImageError" in done.stderr and "holds 0 of 5000 slices" in done.stderr


def test_label_values_may_be_off_by_rounding():
    values = np.full((3, 4, 5), 17.000003, np.float32)
    assert set(np.unique(sitk.GetArrayFromImage(whole_numbers(sitk.GetImageFromArray(values), "label")))) == {17}
    for wrong, words in ((17.01, "whole"), (np.nan, "not finite"), (np.inf, "not finite")):
        values[0, 0, 0] = wrong
        with pytest.raises(ImageError, match=words):
            whole_numbers(sitk.GetImageFromArray(values), "label")


# --- hostile headers --------------------------------------------------------------------------------------------------

META = {
    "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "5 6 7", "ElementSpacing": "1 2 4",
    "DimSize": "2 3 4", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
}  # fmt: skip


def mha(path: Path, data: bytes = VOXELS.tobytes(), *, text: str | None = None, **fields: str) -> Path:
    told = {**META, **fields}
    head = "".join(f"{key} = {value}\n" for key, value in told.items()) if text is None else text
    path.write_bytes(head.encode() + data)
    return path


PLAIN = "".join(f"{key} = {value}\n" for key, value in META.items() if key != "ElementDataFile")


@pytest.mark.parametrize(
    "write",
    [
        lambda p: nrrd(p, lines="data file: secret.raw\n"),
        lambda p: nrrd(p, lines="datafile: secret.raw\n"),
        lambda p: nrrd(p, lines="# x\rdata file: secret.raw\n"),
        lambda p: nrrd(p, lines="#" + "x" * 70_000 + "\ndata file: secret.raw\n"),
        lambda p: nrrd(p, lines="data file: secret.raw\n", end="\r"),
        lambda p: nrrd(p, lines="data file: secret.raw:=x\n"),
        lambda p: nrrd(p, lines="data file: LIST\nsecret.raw\n"),
        lambda p: nrrd(p, lines="Data File: secret.raw\n"),
        lambda p: nrrd(p, lines=" data file: secret.raw\n"),
        lambda p: nrrd(p, lines="data file: /etc/passwd\n"),
        lambda p: mha(p, ElementDataFile="secret.raw"),
        lambda p: mha(p, text=PLAIN + "ElementDataFile\t= secret.raw\n"),
        lambda p: mha(p, text=PLAIN + " ElementDataFile = secret.raw\n"),
        lambda p: mha(p, text="\n" + PLAIN + "ElementDataFile = secret.raw\n"),
        lambda p: mha(p, text=PLAIN + "ElementDataFile : secret.raw\n"),
        lambda p: mha(p, text=PLAIN + "elementdatafile = LOCAL\nElementDataFile = secret.raw\n"),
        lambda p: mha(p, text=PLAIN + "ElementDataFile = LOCAL \nElementDataFile = secret.raw\n").rename(p),
        lambda p: mha(p, text=PLAIN.replace("\n", "\r") + "ElementDataFile = secret.raw\n"),
    ],
)
def test_only_a_header_that_is_plainly_inline_passes(tmp_path, write):
    (tmp_path / "secret.raw").write_bytes(b"s" * 48)
    for name in ("a.nrrd", "a.mha"):
        path = write(tmp_path / name)
        try:
            check_inline(path)
            values = sitk.GetArrayFromImage(read_file(path, inline=True))
        except ImageError:
            continue
        assert 0x7373 not in values  # it was read, and holds nothing of the other file


def test_a_plain_header_is_inline(tmp_path):
    for path in (nrrd(tmp_path / "a.nrrd"), mha(tmp_path / "a.mha"), nrrd(tmp_path / "b.nrrd", end="\r\n")):
        check_inline(path)
        assert np.array_equal(sitk.GetArrayFromImage(read_file(path, inline=True)).ravel(), VOXELS)


@pytest.mark.parametrize(
    "write",
    [
        lambda p: nrrd(p / "a.nrrd", content="x" * 2000),
        lambda p: nrrd(p / "a.nrrd", sizes="2 3 " + "4" * 2000),
        lambda p: nrrd(p / "a.nrrd", dimension="17", sizes=" ".join(["1"] * 17)),
        lambda p: mha(p / "a.mha", NDims="30000"),
        lambda p: mha(p / "a.mha", NDims="-1"),
        lambda p: mha(p / "a.mha", DimSize="-2 3 4"),
        lambda p: mha(p / "a.mha", ElementType="MET_STRING"),
        lambda p: mha(p / "a.mha", ElementNumberOfChannels="-1"),
        lambda p: mha(p / "a.mha", CompressedData="True"),
        lambda p: mha(p / "a.mha", HeaderSize="-5"),
        lambda p: mha(p / "a.mha", zlib.compress(VOXELS.tobytes())[:20], CompressedData="True"),
    ],
)
def test_a_bad_header_is_an_error_and_not_the_end_of_the_process(tmp_path, write):
    path = write(tmp_path)
    code = "import sys; from SpineSegAILib.imaging import read_image; read_image(sys.argv[1])"
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", code, str(path)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 or (done.returncode == 1 and "ImageError" in done.stderr), done.stderr


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["nii", "nii.gz", "nrrd", "mha"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 600),
)
def test_any_damage_is_read_or_refused(tmp_path, kind, changes, cut):
    """Bytes of the header changed at random: an image or an `ImageError`, nothing else."""
    path = tmp_path / f"a.{kind}"
    base = path.with_name(f"whole.{kind}")
    if not base.exists():
        sitk.WriteImage(image(), str(base))
    data = bytearray(gzip.decompress(base.read_bytes()) if kind.endswith("gz") else base.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    if cut < 300:
        del data[len(data) - cut :]
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    try:
        read_image(path)
    except ImageError as error:
        assert error.remedy


def test_the_limit_is_the_same_for_every_format(tmp_path):
    for path in (
        nifti(tmp_path / "a.nii", dim=(3, 2000, 2000, 2000, 1, 1, 1, 1)),
        nrrd(tmp_path / "a.nrrd", sizes="2000 2000 2000"),
        mha(tmp_path / "a.mha", DimSize="2000 2000 2000"),
    ):
        with pytest.raises(ImageError, match="2000 × 2000 × 2000 voxels"):
            read_header(path)
        assert read_geometry(path) is None


# --- names and folders ------------------------------------------------------------------------------------------------

UNREADABLE_NAME = os.fsdecode(b"scan_\xe9\xff.nii.gz")


def test_names_that_are_not_utf8_are_named(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xfcr")
    folder.mkdir()
    for path in (nifti(tmp_path / UNREADABLE_NAME), nifti(folder / "a.nii.gz"), folder):
        for read in (read_image, read_file):
            with pytest.raises(ImageError, match="not UTF-8") as error:
                read(path)
            str(error.value).encode("utf-8")
    with pytest.raises(OutputError, match="not UTF-8"), atomic_write(folder / "a.nii.gz"):
        pass


def test_a_name_as_long_as_file_systems_allow_can_be_written(tmp_path):
    path = tmp_path / ("x" * 246 + ".nii")
    with atomic_write(path) as (place,):
        place.write_text("whole")
    assert path.read_text(encoding="utf-8") == "whole" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OutputError, match="too long"), atomic_write(tmp_path / ("x" * 300)):
        pass
    with pytest.raises(ImageError, match="too long"):
        read_image(tmp_path / ("x" * 300))


def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.nii")
    with pytest.raises(SpineSegAIError), atomic_write(tmp_path / "a.nii" / "c.nii"):
        pass


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path / "a.nii")


def test_there_may_be_no_home(monkeypatch):
    def nobody(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    assert user_folder().name == "SpineSegAI"
    from SpineSegAILib.checkpoints import list_checkpoints

    assert list_checkpoints()
