"""Scenes that Slicer itself saved are read by the library, voxel for voxel. Runs in the host and inside Slicer."""

import json
import unittest

from panel_case import PanelCase, image_centroid, linear_transform, make_volume, np, sagittal, slicer, vtk


def make_segmentation(volume, segments, name="Segmentation"):
    """A segmentation node on a volume.

    :param segments: name → (slices, rows, columns) slices of the volume's array, or None for an empty segment.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    transform = volume.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(transform.GetID() if transform else None)
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    shape = slicer.util.arrayFromVolume(volume).shape
    for label, box in segments.items():
        segmentId = node.GetSegmentation().AddEmptySegment("", label)
        if box is not None:
            mask = np.zeros(shape, np.uint8)
            mask[box] = 1
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segmentId, volume)
    return node


L4, DISC, L5 = np.s_[3:7, 8:20, 12:30], np.s_[3:7, 20:25, 12:30], np.s_[3:7, 25:38, 12:30]
LUMBAR = {"L4 vertebra": L4, "L4-L5 disc": DISC, "vertebra L5": L5}
OBLIQUE = np.array([[0.96, -0.28, 0, 12], [0.28, 0.96, 0, -5], [0, 0, 1, 7], [0, 0, 0, 1]])


class SceneCase(PanelCase):
    def save(self, name="scene.mrb"):
        path = self.folder / name
        self.assertTrue(slicer.mrmlScene.WriteToMRB(str(path)))
        return path

    def read(self, path, **more):
        from SpineSegAILib.datasets.slicer_scene import read_scene

        return read_scene(path, **more)

    def only(self, path, **more):
        report = self.read(path, **more)
        self.assertEqual(report.problems, [])
        return next(case for case in report.cases if case.is_annotated)

    def labels(self, case):
        import SimpleITK as sitk

        return sitk.GetArrayFromImage(case.label({t: n for n, t in enumerate(case.targets, start=1)}))


class ReadingTest(SceneCase):
    def test_a_saved_scene_is_read_voxel_for_voxel(self):
        import SimpleITK as sitk

        volume = make_volume("T2 sag ä")
        make_segmentation(volume, LUMBAR)
        case = self.only(self.save())
        self.assertEqual((case.volume, case.targets), ("T2 sag ä", ["L4", "L4/L5", "L5"]))
        self.assertTrue((sitk.GetArrayFromImage(case.image) == slicer.util.arrayFromVolume(volume)).all())
        expected = np.zeros(slicer.util.arrayFromVolume(volume).shape)
        for value, box in enumerate((L4, DISC, L5), start=1):
            expected[box] = value
        self.assertTrue((self.labels(case) == expected).all())

    def test_several_pairs_and_layers(self):
        first, second = make_volume("T2"), make_volume("T1", size=(8, 50, 40), seed=1)
        make_segmentation(first, {**LUMBAR, "L3 tumour": np.s_[4:6, 10:16, 15:25], "nothing": None}, "A")
        make_segmentation(second, {"L1": np.s_[2:5, 5:15, 5:20]}, "B")
        report = self.read(self.save())
        self.assertEqual(report.problems, [])
        found = {case.volume: case for case in report.cases}
        self.assertEqual(found["T1"].targets, ["L1"])
        self.assertEqual(found["T2"].unplaced, ["L3 tumour"])
        self.assertIn("“nothing” is empty and is omitted.", found["T2"].notes)

    def test_nested_transforms_are_where_the_reader_sees_them(self):
        from SpineSegAISlicer.scene import labelmaps

        from SpineSegAILib.anatomy.terminology import STRUCTURE_TAG

        volume = make_volume()
        inner, outer = linear_transform(OBLIQUE, "Inner"), linear_transform(np.diag([-1.0, -1, 1, 1]), "Outer")
        inner.SetAndObserveTransformNodeID(outer.GetID())
        volume.SetAndObserveTransformNodeID(inner.GetID())
        node = make_segmentation(volume, LUMBAR)
        for segmentId, structure in zip(node.GetSegmentation().GetSegmentIDs(), (23, 123, 24), strict=True):
            node.GetSegmentation().GetSegment(segmentId).SetTag(STRUCTURE_TAG, str(structure))
        case = self.only(self.save())
        image = case.label({"L4": 23, "L4/L5": 123, "L5": 24})
        seen = labelmaps.labelsFromSegmentation(node, volume)
        for structure in (23, 123, 24):
            distance = np.linalg.norm(image_centroid(image, structure) - image_centroid(seen, structure))
            self.assertLess(distance, 1e-3)

    def test_a_segmentation_under_a_transform_of_its_own(self):
        volume = make_volume()
        node = make_segmentation(volume, LUMBAR)
        node.SetAndObserveTransformNodeID(
            linear_transform([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -3], [0, 0, 0, 1]]).GetID()
        )
        moved = self.labels(self.only(self.save()))
        self.assertTrue((moved[3:7, 11:23, 12:30] == 1).all())  # 3 mm down are three rows

    def test_a_segmentation_of_another_geometry(self):
        fine = make_volume("fine", size=(20, 120, 100), ijkToRas=sagittal((0.625, 0.5, 2.0), (-21.0, 30.3125, 40.25)))
        volume = make_volume("T2")
        node = make_segmentation(fine, {"L4": np.s_[6:14, 16:40, 24:60]})
        node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), volume.GetID())
        slicer.mrmlScene.RemoveNode(fine)
        labels = self.labels(self.only(self.save()))
        expected = np.zeros_like(labels)
        expected[L4] = 1
        self.assertTrue((labels == expected).all())

    def test_non_linear_transforms_and_surfaces_are_refused(self):
        volume = make_volume()
        node = make_segmentation(volume, LUMBAR)
        node.CreateClosedSurfaceRepresentation()
        name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        node.GetSegmentation().SetSourceRepresentationName(name)
        self.assertIn("stored as surfaces", self.read(self.save()).problems[0])
        slicer.mrmlScene.RemoveNode(node)
        make_segmentation(volume, LUMBAR)
        grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "Warp")
        volume.SetAndObserveTransformNodeID(grid.GetID())
        self.assertIn("“Warp”, which is not a linear transform", self.read(self.save("warp.mrb")).problems[0])

    def test_what_we_made_is_known_by_its_tags_after_renaming(self):
        from SpineSegAISlicer.scene import results

        volume = make_volume()
        node = results.segmentationFromResult(a_result(volume), volume)
        for segmentId in node.GetSegmentation().GetSegmentIDs():
            node.GetSegmentation().GetSegment(segmentId).SetName(f"mine {segmentId}".replace("/", " "))
        log = [{"tool": "shift", "by": -1, "note": "a;b:c|d%"}]
        node.SetAttribute("SpineSegAI.CorrectionLog", json.dumps(log))
        case = self.only(self.save())
        self.assertEqual(case.targets, ["L4", "L4/L5", "L5"])
        self.assertEqual({s.placement.how for s in case.segments}, {"tag"})
        self.assertEqual(case.extent.value, "body")
        self.assertEqual(case.corrections, log)

    def test_points_named_after_levels(self):
        volume = make_volume()
        transform = linear_transform(OBLIQUE)
        volume.SetAndObserveTransformNodeID(transform.GetID())
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "levels")
        points.SetAndObserveTransformNodeID(transform.GetID())
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        for name, ijk in (("L4", (20, 14, 5)), ("L5 vertebra", (20, 31, 5))):
            position = matrix.MultiplyPoint((*ijk, 1.0))[:3]
            points.AddControlPoint(vtk.vtkVector3d(*position), name)
        case = self.only(self.save())
        index = case.image.TransformPhysicalPointToContinuousIndex(case.keypoints["L5"])
        self.assertTrue(np.allclose(index, (20, 31, 5), atol=1e-3))
        self.assertEqual(sorted(case.keypoints), ["L4", "L5"])

    def test_the_patient_is_the_same_in_two_scenes_and_not_named(self):
        volume = make_volume()
        make_segmentation(volume, LUMBAR)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Doe^John")
        hierarchy.SetItemAttribute(patient, "DICOM.PatientID", "4711")
        study = hierarchy.CreateStudyItem(patient, "MR")
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
        found = [self.only(self.save(name)).patient for name in ("a.mrb", "b.mrb")]
        self.assertEqual(found[0], found[1])
        self.assertNotIn("4711", found[0])
        self.assertNotIn("Doe", found[0])


class CurrentCaseTest(SceneCase):
    def test_the_open_case_is_written_without_touching_the_scene(self):
        from SpineSegAISlicer.scene import current_case, labelmaps, results

        volume = make_volume("T2 <sag> & ä")
        volume.SetAndObserveTransformNodeID(linear_transform(OBLIQUE).GetID())
        node = results.segmentationFromResult(a_result(volume), volume)
        node.SetAttribute("SpineSegAI.CorrectionLog", '[{"note": "a;b"}]')
        before = self.nodeIds()
        target = self.folder / "case"
        target.mkdir()
        path = current_case.write(volume, node, target)
        self.assertEqual(self.nodeIds(), before)
        self.assertIsNone(node.GetStorageNode())
        case = self.only(path)
        self.assertEqual((case.volume, case.targets), ("T2 <sag> & ä", ["L4", "L4/L5", "L5"]))
        self.assertEqual(case.corrections, [{"note": "a;b"}])
        image = case.label({"L4": 23, "L4/L5": 123, "L5": 24})
        seen = labelmaps.labelsFromSegmentation(node, volume)
        self.assertLess(np.linalg.norm(image_centroid(image, 23) - image_centroid(seen, 23)), 1e-3)

    def test_an_empty_segmentation_is_refused(self):
        from SpineSegAISlicer.scene import current_case

        from SpineSegAILib.errors import DatasetError, ImageError

        volume = make_volume()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "S")
        with self.assertRaises(DatasetError):
            current_case.write(volume, node, self.folder)
        with self.assertRaises(ImageError):
            current_case.write(None, node, self.folder)
        node = make_segmentation(volume, LUMBAR)
        node.CreateClosedSurfaceRepresentation()
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        node.GetSegmentation().SetSourceRepresentationName(surface)
        node.RemoveBinaryLabelmapRepresentation()
        with self.assertRaisesRegex(DatasetError, "are surfaces"):
            current_case.write(volume, node, self.folder)


def a_result(volume):
    """L4, its disc and L5 as the library would return them."""
    import SimpleITK as sitk
    from SpineSegAISlicer.scene import volumes

    from SpineSegAILib.anatomy import SCHEMES
    from SpineSegAILib.results import Segmentation

    image = volumes.imageFromVolume(volume)
    labels = np.zeros(image.GetSize()[::-1], np.int16)
    for structure, box in ((23, L4), (123, DISC), (24, L5)):
        labels[box] = structure
    made = sitk.GetImageFromArray(labels)
    made.CopyInformation(image)
    return Segmentation(labels=made, scheme=SCHEMES["lumbar-mr"])


if __name__ == "__main__":
    unittest.main()
