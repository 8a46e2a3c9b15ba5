"""DICOM segmentation objects: read back by another reader they have the same voxels, codes and geometry."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from test_dicom import PLACES, VOXELS, N, classic, enhanced

from SpineSegAILib.anatomy import scheme, structure, terminology
from SpineSegAILib.errors import OutputError
from SpineSegAILib.imaging import read_image
from SpineSegAILib.results import Segmentation
from SpineSegAILib.results.dicom_seg import write_dicom_seg

WANTED = (structure("L3").id, structure("L4").id, structure("S1").id, structure("L3/L4").id)


def segmented(path: Path) -> Segmentation:
    """Blocks on the image's grid; the last slice is empty."""
    image = read_image(path)
    values = np.zeros(sitk.GetArrayViewFromImage(image).shape, np.int16)
    for n, sid in enumerate(WANTED):
        values[n : n + 2, 5 * n : 5 * n + 9, 3 + n : 20] = sid
    labels = sitk.GetImageFromArray(values)
    labels.CopyInformation(image)
    return Segmentation(labels, scheme("lumbar-mr"), provenance={"checkpoint": "tiny"})


def series(folder: Path, **told) -> Path:
    return classic(folder, FrameOfReferenceUID="1.2.9", StudyID="5", SeriesNumber=3, **told)


def by_gdcm(folder: Path, **left_out) -> Path:
    """39 oblique sagittal slices, as SimpleITK writes them through GDCM, from the patient's right to the left."""
    folder.mkdir()
    turned = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.05, 0.1, -0.08)
    matrix = np.reshape(turned.GetMatrix(), (3, 3)) @ np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    volume = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 500, (39, 24, 20)).astype(np.int16))
    volume.SetDirection(matrix.ravel().tolist())
    volume.SetSpacing((1.25, 1.5, 2.2))
    volume.SetOrigin((41.0, -83.25, 512.125))
    d = volume.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    for k in range(39):
        place = volume.TransformIndexToPhysicalPoint((0, 0, k))
        told = {
            "0008|0060": "MR", "0008|0018": f"1.2.4.{k + 1}", "0020|000d": "1.2", "0020|000e": "1.2.3",
            "0020|0052": "1.2.9", "0020|0013": str(39 - k), "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{d[at]:.6f}" for at in (0, 3, 6, 1, 4, 7)),
        }  # fmt: skip
        one = volume[:, :, k]
        for tag in one.GetMetaDataKeys():
            one.EraseMetaData(tag)
        for tag, value in told.items():
            one.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(7 * k) % 39:02d}.dcm"))  # names in no order
        writer.Execute(one)
    return folder


@pytest.mark.parametrize("kind", ["classic", "one of its files", "enhanced", "by GDCM"])
def test_another_reader_finds_the_same_voxels(tmp_path, kind):
    if kind == "by GDCM":
        source = by_gdcm(tmp_path / "series")
        assert read_image(source).GetSize() == (20, 24, 39)
    elif kind == "enhanced":
        source = enhanced(tmp_path / "a.dcm", VOXELS[::-1], PLACES[::-1])
        header = pydicom.dcmread(source)
        header.FrameOfReferenceUID = "1.2.9"
        for frame in header.PerFrameFunctionalGroupsSequence:
            content = pydicom.Dataset()
            content.FrameAcquisitionNumber = 1
            frame.FrameContentSequence = [content]
        header.save_as(source)
    else:
        source = series(tmp_path / "series")
        source = source if kind == "classic" else sorted(source.iterdir())[2]
    result = segmented(source)
    path = write_dicom_seg(result, source, tmp_path / "out.dcm")
    found = highdicom.seg.segread(path)
    assert found.number_of_segments == len(WANTED) and found.NumberOfFrames == 2 * len(WANTED), "no empty frames"
    volume = found.get_volume(combine_segments=True, rescale_fractional=False)
    reader = sitk.GetImageFromArray(np.asarray(volume.array))
    matrix = volume.affine  # LPS, of indices (slice, row, column)
    reader.SetOrigin(matrix[:3, 3].tolist())
    reader.SetSpacing([float(np.linalg.norm(matrix[:3, axis])) for axis in (2, 1, 0)])
    axes = matrix[:3, [2, 1, 0]]
    reader.SetDirection((axes / np.linalg.norm(axes, axis=0)).ravel().tolist())
    on_grid = sitk.GetArrayFromImage(sitk.Resample(reader, result.labels, sitk.Transform(), sitk.sitkNearestNeighbor))
    labels = sitk.GetArrayFromImage(result.labels)
    for number, sid in enumerate(result.present, start=1):
        assert np.array_equal(on_grid == number, labels == sid) and (labels == sid).any()


def test_segments_are_coded_and_refer_to_the_study(tmp_path):
    wrong = {"SliceThickness": 1.0, "SpacingBetweenSlices": 1.0}  # as ITK's writer leaves them
    source = series(tmp_path / "series", PatientName="Doe^Jane", PatientID="7", **wrong)
    result = segmented(source)
    found = highdicom.seg.segread(write_dicom_seg(result, source, tmp_path / "out.dcm"))
    assert (found.StudyInstanceUID, found.PatientID, found.Modality) == ("1.2", "7", "SEG")
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == result.labels.GetSpacing()[2] == 4.0 and list(measures.PixelSpacing) == [
        0.9,
        0.8,
    ]
    assert found.FrameOfReferenceUID == "1.2.9" and found.SeriesInstanceUID != "1.2.3"
    instances = {str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID) for p in source.iterdir()}
    referred = {
        str(item.ReferencedSOPInstanceUID) for item in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == instances and len(instances) == N
    for number, sid in enumerate(result.present, start=1):
        segment = found.get_segment_description(number)
        concept, modifier = terminology.codes(sid, result.present, result.scheme.extent)
        coded = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (coded.CodeValue, coded.CodingSchemeDesignator) == (concept.value, concept.scheme)
        assert ("SegmentedPropertyTypeModifierCodeSequence" in coded) is (modifier is not None)
        assert segment.segment_label == result.name_of(sid) and segment.tracking_id == structure(sid).name
        assert segment.anatomic_regions[0].value == "421060004"
        algorithm = segment.algorithm_identification[0]
        assert algorithm.AlgorithmName == "SpineSegAI tiny" and algorithm.AlgorithmVersion


def test_what_it_cannot_refer_to_is_refused(tmp_path):
    source = series(tmp_path / "series")
    result = segmented(source)
    out = tmp_path / "out.dcm"
    nifti = tmp_path / "a.nii.gz"
    sitk.WriteImage(result.labels, str(nifti))
    with pytest.raises(OutputError, match="is not DICOM: a DICOM segmentation refers"):
        write_dicom_seg(result, nifti, out)
    with pytest.raises(OutputError, match="lacks FrameOfReferenceUID"):
        write_dicom_seg(result, classic(tmp_path / "bare"), out)
    moved = classic(tmp_path / "moved", places=[(x + 1.0, y, z) for x, y, z in PLACES], FrameOfReferenceUID="1.2.9")
    with pytest.raises(OutputError, match="is not of the series"):
        write_dicom_seg(result, moved, out)
    assert not out.exists()


def test_what_is_optional_and_missing_is_blank(tmp_path):
    source = series(tmp_path / "series", PatientName="Doe", SliceThickness=4.0)
    optional = ("PatientName", "PatientID", "PatientSex", "StudyDate", "StudyID", "SeriesNumber", "SliceThickness")
    for path in source.iterdir():
        header = pydicom.dcmread(path)
        for keyword in optional:
            if keyword in header:
                delattr(header, keyword)
        header.save_as(path)
    found = highdicom.seg.segread(write_dicom_seg(segmented(source), source, tmp_path / "out.dcm"))
    assert not found.PatientID and not found.StudyDate and found.SeriesNumber == 1000
    assert found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 4.0


@pytest.mark.parametrize("kind", ["nifti", "no identifiers"])
def test_it_is_refused_at_the_shell_before_it_takes_time(tmp_path, tiny_checkpoint, capsys, kind):
    from SpineSegAILib import cli

    if kind == "nifti":
        image = tmp_path / "a.nii.gz"
        sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkInt16), str(image))
    else:
        image = classic(tmp_path / "bare")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["segment", str(image), "-m", str(tiny_checkpoint), "--dicom-seg"]) == 2
    said = {"nifti": "a.nii.gz is not DICOM", "no identifiers": "lacks FrameOfReferenceUID"}[kind]
    assert said in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before
