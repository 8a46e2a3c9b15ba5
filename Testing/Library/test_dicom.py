"""DICOM files: where each frame lies is read from where it is told, and what is no regular stack is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from SpineSegAILib.errors import ImageError
from SpineSegAILib.imaging import Geometry, plausibility_warnings, read_image, scale_is_known
from SpineSegAILib.imaging import decoding as decoding_module

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
N, ROWS, COLUMNS = 6, 40, 50
VOXELS = np.random.default_rng(0).integers(0, 500, (N, ROWS, COLUMNS)).astype("<u2")
PLACES = [(30.0 - 4.0 * k, -20.0, 80.0) for k in range(N)]  # sagittal slices from left to right


def group(**values) -> list[Dataset]:
    """A functional group: a sequence with one item."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def base(path: Path, kind: str, modality: str = "MR", series: str = "1.2.3") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, "1.2"
    dataset.Modality, dataset.SeriesDescription = modality, "T2 sag"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    return dataset


def save(dataset: FileDataset, path: Path, voxels: np.ndarray) -> Path:
    *_, dataset.Rows, dataset.Columns = voxels.shape
    dataset.PixelData = np.ascontiguousarray(voxels).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def enhanced(
    path: Path, voxels=VOXELS, places=PLACES, axes=SAGITTAL, spacing=(0.9, 0.8), scales=(2.0, -5.0), **differing
) -> Path:
    """A multi-frame file; `axes`, `scales` and `differing` hold for all frames, or are lists with one for each."""
    dataset = base(path, EnhancedMRImageStorage)
    dataset.NumberOfFrames = len(voxels)
    shared = Dataset()
    if spacing:
        shared.PixelMeasuresSequence = group(PixelSpacing=list(spacing), SliceThickness=4.0)
    if not isinstance(axes, list):
        shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(axes))
    if not isinstance(scales, list):
        shared.PixelValueTransformationSequence = group(RescaleSlope=str(scales[0]), RescaleIntercept=str(scales[1]))
    frames = []
    for k in range(len(voxels)):
        frame = Dataset()
        if places:
            frame.PlanePositionSequence = group(ImagePositionPatient=list(places[k]))
        if isinstance(axes, list):
            frame.PlaneOrientationSequence = group(ImageOrientationPatient=list(axes[k]))
        if isinstance(scales, list):
            frame.PixelValueTransformationSequence = group(RescaleSlope=str(scales[k]), RescaleIntercept="0")
        if "EffectiveEchoTime" in differing:
            frame.MREchoSequence = group(EffectiveEchoTime=differing["EffectiveEchoTime"][k])
        if "TemporalPositionIndex" in differing:
            frame.FrameContentSequence = group(TemporalPositionIndex=differing["TemporalPositionIndex"][k])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    return save(dataset, path, voxels)


def classic(folder: Path, voxels=VOXELS, places=PLACES, axes=SAGITTAL, spacing=(0.9, 0.8), scales=(2.0, -5.0), **told):
    """The same as a series of files, in shuffled order of names; what is None is not written."""
    folder.mkdir(exist_ok=True)
    for k, (slice_, place) in enumerate(zip(voxels, places, strict=True)):
        path = folder / f"{(k * 5) % 7}_{k}.dcm"
        dataset = base(path, MRImageStorage)
        dataset.RescaleSlope, dataset.RescaleIntercept = map(str, scales)
        for keyword, value in {
            "ImagePositionPatient": place, "ImageOrientationPatient": axes, "PixelSpacing": spacing, **told
        }.items():  # fmt: skip
            if value is not None:
                setattr(dataset, keyword, list(value) if isinstance(value, tuple) else value)
        save(dataset, path, slice_)
    return folder


@pytest.fixture
def reference(tmp_path) -> sitk.Image:
    return read_image(classic(tmp_path / "classic"))


def assert_same(one: sitk.Image, other: sitk.Image) -> None:
    assert Geometry.of(one).matches(Geometry.of(other))
    assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))


def test_a_classic_series_lies_where_its_headers_say(reference):
    assert reference.GetSpacing() == pytest.approx((0.8, 0.9, 4.0)) and reference.GetSize() == (COLUMNS, ROWS, N)
    assert reference.GetOrigin() == PLACES[0] and reference.GetDirection() == (0, 0, -1, 1, 0, 0, 0, -1, 0)
    assert np.array_equal(sitk.GetArrayFromImage(reference), VOXELS.astype(float) * 2 - 5)


@pytest.mark.parametrize("order", [list(range(N)), list(range(N))[::-1], [0, 2, 4, 1, 3, 5], [3, 0, 5, 1, 4, 2]])
def test_frames_in_any_order_are_the_classic_series(tmp_path, reference, order):
    path = enhanced(tmp_path / "a.dcm", VOXELS[order], [PLACES[k] for k in order])
    assert_same(read_image(path), reference)


def test_orientations_may_be_told_frame_by_frame(tmp_path, reference):
    assert_same(read_image(enhanced(tmp_path / "a.dcm", axes=[SAGITTAL] * N)), reference)


def test_each_frame_has_its_own_scale(tmp_path):
    got = read_image(enhanced(tmp_path / "a.dcm", scales=[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]))
    wanted = VOXELS * np.array([1, 2, 3, 4, 5, 6.5])[:, None, None]
    assert np.array_equal(sitk.GetArrayFromImage(got), wanted)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"EffectiveEchoTime": [10.0, 80.0] * N}, r"several images at one place .*echo time.*10.0 and 80.0"),
        ({"TemporalPositionIndex": [1, 2] * N}, r"several images at one place .*time point: 1 and 2"),
        ({}, "several images at one place"),
    ],
)
@pytest.mark.parametrize("after", [False, True], ids=["interleaved", "one volume after the other"])
def test_several_images_at_one_place_are_named(tmp_path, told, words, after):
    order = [k % N for k in range(2 * N)] if after else [k // 2 for k in range(2 * N)]
    told = {key: sorted(values) if after else values for key, values in told.items()}
    path = enhanced(tmp_path / "a.dcm", VOXELS[order], [PLACES[k] for k in order], **told)
    with pytest.raises(ImageError, match=words) as error:
        read_image(path)
    assert "separately" in error.value.remedy


def test_a_localizer_of_three_planes_in_one_file_is_noticed(tmp_path):
    path = enhanced(tmp_path / "a.dcm", axes=[SAGITTAL] * 2 + [CORONAL] * 2 + [AXIAL] * 2)
    with pytest.raises(ImageError, match="several orientations"):
        read_image(path)


@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_gaps_tilt_and_missing_positions_are_noticed_in_both_kinds(tmp_path, kind):
    def read(voxels, places, axes=SAGITTAL):
        if kind == "enhanced":
            return read_image(enhanced(tmp_path / "a.dcm", voxels, places, axes))
        return read_image(classic(tmp_path / "series", voxels, places or [None] * N, axes))

    kept = [0, 1, 2, 4, 5]
    with pytest.raises(ImageError, match=r"gaps: its slices lie 4.00 to 8.00 mm apart"):
        read(VOXELS[kept], [PLACES[k] for k in kept])
    for path in (tmp_path / "series").glob("*"):
        path.unlink()
    with pytest.raises(ImageError, match="tilted gantry"):
        read(VOXELS, [(x, y + 1.5 * k, z) for k, (x, y, z) in enumerate(PLACES)])
    with pytest.raises(ImageError, match="ImagePositionPatient"):
        read(VOXELS, None)


def test_a_multi_frame_file_without_functional_groups_does_not_tell_where_its_frames_lie(tmp_path):
    dataset = base(tmp_path / "a.dcm", MRImageStorage)
    dataset.NumberOfFrames = N
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(PLACES[0]), list(SAGITTAL)
    with pytest.raises(ImageError, match="does not give the positions of its slices"):
        read_image(save(dataset, tmp_path / "a.dcm", VOXELS))


@pytest.mark.parametrize("count", [N - 2, N + 2])
def test_frames_that_are_counted_otherwise_than_described_are_refused(tmp_path, count):
    """Half of a volume would be segmented as if it were all."""
    path = enhanced(tmp_path / "a.dcm")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = count
    dataset.PixelData = np.resize(VOXELS, (max(N, count), ROWS, COLUMNS)).tobytes()
    dataset.save_as(path)
    with pytest.raises(ImageError, match=f"it has {count} frames by its header, and describes {N}"):
        read_image(path)


def test_copies_of_a_file_are_called_copies(tmp_path):
    folder = classic(tmp_path / "series")
    first = sorted(folder.iterdir())[0]
    (folder / "copy of it.dcm").write_bytes(first.read_bytes())
    with pytest.raises(ImageError, match=r"the same image twice: .*copy of it\.dcm.*are copies") as error:
        read_image(folder)
    assert "Remove" in error.value.remedy


@pytest.mark.parametrize("made", [classic, lambda path, **told: enhanced(path.with_suffix(".dcm"), **told)])
def test_no_pixel_size_is_known_and_said(tmp_path, made):
    image = read_image(made(tmp_path / "a", spacing=None))
    assert not scale_is_known(image) and image.GetSpacing() == (1.0, 1.0, 4.0)
    assert any("The file does not give its scale" in note for note in plausibility_warnings(image, "MR"))
    assert scale_is_known(read_image(made(tmp_path / "b")))


def test_a_radiograph_tells_its_pixel_size_in_one_of_three_ways(tmp_path):
    for number, told in enumerate(({"PixelSpacing": (0.2, 0.3)}, {"ImagerPixelSpacing": (0.2, 0.3)}, {})):
        folder = tmp_path / str(number)
        spacing = told.get("PixelSpacing")
        classic(folder, VOXELS[:1], [None], None, spacing, Modality="DX", **told)
        image = read_image(next(folder.iterdir()))
        assert scale_is_known(image) == bool(told)
        assert image.GetSpacing()[:2] == ((0.3, 0.2) if told else (1.0, 1.0))


def test_what_is_no_image_is_named(tmp_path):
    report = base(tmp_path / "report.dcm", "1.2.840.10008.5.1.4.1.1.88.11", "SR")
    report.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match=r"without an image \(SR\)"):
        read_image(tmp_path / "report.dcm")
    segmentation = base(tmp_path / "seg.dcm", "1.2.840.10008.5.1.4.1.1.66.4", "SEG")
    with pytest.raises(ImageError, match="is a segmentation"):
        read_image(save(segmentation, tmp_path / "seg.dcm", VOXELS[0]))
    listing = base(tmp_path / "DICOMDIR", "1.2.840.10008.1.3.10", "")
    listing.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    with pytest.raises(ImageError, match="DICOMDIR") as error:
        read_image(tmp_path / "DICOMDIR")
    assert "folder" in error.value.remedy
    classic(tmp_path / "IMAGES")
    assert read_image(tmp_path).GetSize()[2] == N, "what is no image of the series does not count"


def test_names_that_are_not_utf8_in_a_series(tmp_path):
    folder = classic(tmp_path / "series")
    name = os.fsdecode(b"slice\xe9.dcm")
    sorted(folder.iterdir())[0].rename(folder / name)
    with pytest.raises(ImageError, match="not UTF-8"):
        read_image(folder)
    (folder / name).write_text("not DICOM, and so of no concern")
    assert read_image(folder).GetSize()[2] == N - 1


def compressed(tmp_path: Path, codec: str) -> Path:
    image = sitk.GetImageFromArray(VOXELS[:1].astype(np.int16))
    image.SetMetaData("0008|0060", "DX")
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.Execute(image)
    assert "Lossless" in pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.name
    return tmp_path / "a.dcm"


@pytest.mark.parametrize("codec", ["JPEG", "JPEG2000"])
def test_compressed_pixels_are_those_that_were_compressed(tmp_path, codec):
    assert np.array_equal(sitk.GetArrayFromImage(read_image(compressed(tmp_path, codec)))[0], VOXELS[0])


def test_a_decoder_that_crashes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding_module, "_CHILD", "import os; os.abort()")
    with pytest.raises(ImageError, match="ends the decoder"):
        read_image(compressed(tmp_path, "JPEG"))
    monkeypatch.setattr(decoding_module, "_CHILD", "import time; time.sleep(60)")
    monkeypatch.setattr(decoding_module, "_SECONDS", 0.5)
    with pytest.raises(ImageError, match="too long"):
        read_image(compressed(tmp_path, "JPEG"))


def test_pixels_that_are_not_all_there(tmp_path):
    path = enhanced(tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[: -ROWS * COLUMNS])
    with pytest.raises(ImageError, match="incomplete"):
        read_image(path)
    dataset = pydicom.dcmread(enhanced(path))
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(path)
    with pytest.raises(ImageError, match="60000 × 60000 × 6 voxels"):
        read_image(path)


def test_any_damage_to_a_header_is_read_or_refused(tmp_path):
    whole = enhanced(tmp_path / "a.dcm").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        for at in rng.integers(128, len(whole) - VOXELS.nbytes, rng.integers(1, 8)):
            data[at] = rng.integers(0, 256)
        (tmp_path / "a.dcm").write_bytes(data)
        try:
            read_image(tmp_path / "a.dcm")
        except ImageError as error:
            assert error.remedy
