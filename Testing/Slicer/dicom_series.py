"""Volume nodes as DICOM files, for tests of what belongs to a study."""

import numpy as np
import slicer

PATIENT = "Muster^Erika"


def write_series(volumeNode, folder):
    """A volume as files of an MR series, such as a scanner sends them; returns them in the order of its slices."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    from SpineSegAISlicer.scene import volumes

    folder.mkdir()
    image = volumes.imageFromVolume(volumeNode)
    array = slicer.util.arrayFromVolume(volumeNode)
    axes = np.reshape(image.GetDirection(), (3, 3))
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    paths = []
    for k, pixels in enumerate(array):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{k:04d}"
        header = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.PatientName, header.PatientID = PATIENT, "47"
        header.PatientBirthDate, header.PatientSex = "19600102", "F"
        header.StudyDescription, header.SeriesDescription, header.StudyDate = "Spine", "T2 sag", "20260102"
        header.Modality, header.SeriesNumber, header.InstanceNumber = "MR", 3, k + 1
        header.ImagePositionPatient = [float(x) for x in image.TransformIndexToPhysicalPoint((0, 0, k))]
        header.ImageOrientationPatient = [float(x) for x in (*axes[:, 0], *axes[:, 1])]
        header.PixelSpacing = [image.GetSpacing()[1], image.GetSpacing()[0]]
        header.SliceThickness = image.GetSpacing()[2]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = 16
        header.HighBit, header.PixelRepresentation = 15, 1
        header.Rows, header.Columns = pixels.shape
        header.PixelData = np.ascontiguousarray(pixels, "<i2").tobytes()
        header.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
