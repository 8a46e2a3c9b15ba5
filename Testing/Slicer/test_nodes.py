"""Volumes to images, results to segments and back: geometry, identity, locks, transforms. Also runs inside Slicer."""

import unittest
from types import SimpleNamespace
from unittest.mock import patch

from panel_case import (
    axial,
    image_centroid,
    linear_transform,
    make_volume,
    np,
    sagittal,
    slicer,
    vtk,
)
from SpineSegAISlicer.scene import labelmaps, results, views, volumes
from SpineSegAISlicer.scene.segments import isLocked, setLocked

from SpineSegAILib.anatomy import SCHEMES, STRUCTURES
from SpineSegAILib.errors import CorrectionError, HintError, ImageError
from SpineSegAILib.results import Segmentation


def rotation(degrees, axis=0):
    """(4, 4) rotation about a world axis, with a shift."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [a for a in range(3) if a != axis]
    matrix = np.eye(4)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    matrix[:3, 3] = (7.0, -11.0, 13.0)
    return matrix


def result_of(volume, blocks=None, **named):
    """A result on a volume: boxes of structures, given as id → (slices, rows, columns)."""
    import SimpleITK as sitk

    image = volumes.imageFromVolume(volume)
    labels = np.zeros(image.GetSize()[::-1], np.int16)
    blocks = blocks or {
        22: (slice(2, 9), slice(5, 16), slice(10, 31)),
        122: (slice(2, 9), slice(16, 19), slice(10, 31)),
        23: (slice(2, 9), slice(19, 30), slice(10, 31)),
    }
    for structure, box in blocks.items():
        labels[box] = structure
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(image)
    return Segmentation(labels=result, scheme=SCHEMES["lumbar-mr"], **named)


class VolumeTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def assertSamePlaces(self, volume):
        """Voxel centers of the node (RAS) and of the image (LPS) are the same points."""
        image = volumes.imageFromVolume(volume)
        toWorld = volumes.ijkToWorldMatrix(volume)
        for index in ((0, 0, 0), (3, 5, 7), (9, 2, 4)):
            ras = toWorld @ [*index, 1]
            left, posterior, superior = image.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose([-left, -posterior, superior], ras[:3], atol=1e-6)
        import SimpleITK as sitk

        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), slicer.util.arrayFromVolume(volume))

    def test_sagittal_axial_oblique_and_flipped_volumes(self):
        flipped = sagittal() @ np.diag([-1.0, 1.0, 1.0, 1.0])
        for matrix in (sagittal(), axial(), rotation(20, 1) @ sagittal(), flipped):
            self.assertSamePlaces(make_volume(ijkToRas=matrix))

    def test_a_linear_transform_is_part_of_the_geometry(self):
        volume = make_volume()
        volume.SetAndObserveTransformNodeID(linear_transform(rotation(15)).GetID())
        self.assertSamePlaces(volume)

    def test_every_scalar_type_is_taken(self):
        for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"):
            volume = make_volume()
            slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume).astype(kind))
            self.assertSamePlaces(volume)

    def test_a_shearing_transform_is_refused(self):
        volume = make_volume()
        shear = np.eye(4)
        shear[0, 1] = 0.3
        volume.SetAndObserveTransformNodeID(linear_transform(shear).GetID())
        with self.assertRaisesRegex(ImageError, "not perpendicular"):
            volumes.imageFromVolume(volume)

    def test_a_non_linear_transform_is_refused_with_the_way_out(self):
        volume = make_volume("T2")
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
        node.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
        volume.SetAndObserveTransformNodeID(node.GetID())
        with self.assertRaisesRegex(ImageError, "T2.*non-linear transform.*Warp") as caught:
            volumes.imageFromVolume(volume)
        self.assertIn("Harden", caught.exception.remedy)

    def test_colour_label_map_and_empty_volumes_are_refused(self):
        with self.assertRaisesRegex(ImageError, "No volume"):
            volumes.checkVolume(None)
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        with self.assertRaisesRegex(ImageError, "Empty.*no voxels"):
            volumes.checkVolume(empty)
        colour = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Photo")
        slicer.util.updateVolumeFromArray(colour, np.zeros((2, 5, 5, 3), np.uint8))
        with self.assertRaisesRegex(ImageError, "Photo.*3 values per voxel"):
            volumes.checkVolume(colour)
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
        slicer.util.updateVolumeFromArray(labels, np.ones((2, 5, 5), np.uint8))
        with self.assertRaisesRegex(ImageError, "label map"):
            volumes.checkVolume(labels)

    def test_planes_are_told_apart(self):
        accepted = ("sagittal", "isotropic")
        self.assertIsNone(volumes.refusedPlane(make_volume(), accepted))
        self.assertEqual(volumes.refusedPlane(make_volume(ijkToRas=axial()), accepted), "axial")
        coronal = np.array([[-1, 0, 0, 0], [0, 0, 5, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
        self.assertEqual(volumes.refusedPlane(make_volume(ijkToRas=coronal), accepted), "coronal")
        self.assertEqual(volumes.refusedPlane(make_volume(size=(1, 60, 50)), accepted), "single-slice")

    def test_a_film_was_acquired_across_its_slice_whatever_its_spacing(self):
        self.assertEqual(volumes.acquisitionAxis(make_volume()), 0)
        for thickness in (0.2, 1.0):
            film = make_volume(size=(1, 60, 50), ijkToRas=sagittal((1.0, 1.0, thickness)))
            self.assertEqual(volumes.acquisitionAxis(film), 0)


class SegmentationTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def assertOverlays(self, volume, result):
        """Segments lie where the result has them, in the world, and come back voxel for voxel."""
        import SimpleITK as sitk

        node = results.segmentationFromResult(result, volume)
        back = labelmaps.labelsFromSegmentation(node, volume)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(result.labels))
        for structure in result.present:
            expected = image_centroid(result.labels, structure)
            name = STRUCTURES[structure].name
            # The node's own answer, which knows nothing of our code: the voxel in the middle of the segment's box.
            np.testing.assert_allclose(node.GetSegmentCenterRAS(name), expected, atol=1e-3)
        return node

    def test_oblique_flipped_and_transformed_volumes_are_overlaid_exactly(self):
        flipped = sagittal() @ np.diag([-1.0, 1.0, 1.0, 1.0])
        for matrix in (sagittal(), axial(), rotation(20, 1) @ sagittal(), flipped):
            volume = make_volume(ijkToRas=matrix)
            self.assertOverlays(volume, result_of(volume))
        volume = make_volume()
        volume.SetAndObserveTransformNodeID(linear_transform(rotation(25, 2)).GetID())
        node = self.assertOverlays(volume, result_of(volume))
        self.assertIs(node.GetParentTransformNode(), volume.GetParentTransformNode())

    def test_sparse_ids_do_not_become_empty_segments(self):
        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        self.assertEqual(list(node.GetSegmentation().GetSegmentIDs()), ["L3", "L3/L4", "L4"])
        for name in ("L3", "L3/L4", "L4"):
            array = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, volume)
            self.assertGreater(array.sum(), 0)

    def test_identity_is_a_tag_and_survives_collapse_and_renaming(self):
        import SimpleITK as sitk

        volume = make_volume()
        result = result_of(volume)
        node = results.segmentationFromResult(result, volume)
        node.GetSegmentation().GetSegment("L4").SetName("broken one")
        node.GetSegmentation().SeparateSegmentLabelmap("L3")
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
        back = labelmaps.labelsFromSegmentation(node, volume)
        np.testing.assert_array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(result.labels))

    def test_names_that_a_reader_typed_count_wherever_voxels_are_used(self):
        import SimpleITK as sitk

        volume = make_volume()
        result = result_of(volume)
        node = results.segmentationFromResult(result, volume)
        segmentation = node.GetSegmentation()
        for segment_id, name in (("L3", "L2"), ("L3/L4", "Bandscheibe L2/L3"), ("L4", "L3 corrected")):
            segmentation.GetSegment(segment_id).SetName(name)
        setLocked(segmentation.GetSegment("L4"), True)
        made = sitk.GetArrayViewFromImage(result.labels)
        locked = sitk.GetArrayFromImage(labelmaps.lockedLabels(node, volume))
        np.testing.assert_array_equal(locked, np.where(made == 23, 22, 0))
        every = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(node, volume))
        np.testing.assert_array_equal(every, np.select([made == 22, made == 122, made == 23], [21, 121, 22]))

    def test_two_segments_of_one_name_are_refused(self):
        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        segmentation = node.GetSegmentation()
        segmentation.GetSegment("L4").SetName("L3")
        setLocked(segmentation.GetSegment("L4"), True)
        for read in (labelmaps.lockedLabels, labelmaps.labelsFromSegmentation):
            with self.assertRaisesRegex(CorrectionError, "L3 is there twice"):
                read(node, volume)
        segmentation.GetSegment("L4").SetName("L4")
        labelmaps.labelsFromSegmentation(node, volume)

    def test_names_colours_terminology_quality(self):
        volume = make_volume()
        result = result_of(volume, level_confidence=0.75, outline_quality={22: 0.875}, unvalidated=frozenset({122}))
        node = results.segmentationFromResult(result, volume)
        segmentation = node.GetSegmentation()
        self.assertEqual(segmentation.GetSegment("L3").GetName(), "L3 vertebra (body)")
        self.assertEqual(segmentation.GetSegment("L3/L4").GetName(), "L3/L4 disc (experimental)")
        np.testing.assert_allclose(segmentation.GetSegment("L4").GetColor(), STRUCTURES[23].color)
        text = vtk.mutable("")
        segmentation.GetSegment("L4").GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
        self.assertIn("SCT^71996003", text.get())
        again = results.resultFromSegmentation(node, volume)
        self.assertEqual((again.level_confidence, again.outline_quality), (0.75, {22: 0.875}))
        self.assertEqual(again.unvalidated, frozenset({122}))
        self.assertEqual(again.scheme, SCHEMES["lumbar-mr"])

    def test_discs_are_named_from_the_neighbours_that_are_there(self):
        volume = make_volume()
        box = (slice(2, 8), slice(None), slice(10, 30))
        blocks = {s: (box[0], slice(5 + 8 * n, 12 + 8 * n), box[2]) for n, s in enumerate((24, 124, 25, 125, 26))}
        node = results.segmentationFromResult(result_of(volume, blocks), volume)
        self.assertEqual(node.GetSegmentation().GetSegment("L5/S1").GetName(), "L5/L6 disc")

    def test_an_update_replaces_only_unlocked_structures(self):
        import SimpleITK as sitk

        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        segmentation = node.GetSegmentation()
        setLocked(segmentation.GetSegment("L3"), True)
        own = segmentation.AddEmptySegment("tumour", "Tumour")
        before = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L3", volume).copy()
        # The new result has L3 elsewhere, L4 over part of the locked L3, and no disc.
        new = {22: (slice(2, 8), slice(40, 50), slice(10, 30)), 23: (slice(2, 8), slice(10, 28), slice(10, 30))}
        results.segmentationFromResult(result_of(volume, new), volume, node)
        self.assertEqual(set(segmentation.GetSegmentIDs()), {"L3", "L4", own})
        after = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L3", volume)
        np.testing.assert_array_equal(before, after)
        fourth = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L4", volume)
        self.assertFalse((fourth.astype(bool) & before.astype(bool)).any())
        self.assertGreater(fourth.sum(), 0)
        locked = labelmaps.lockedLabels(node, volume)
        self.assertEqual(set(np.unique(sitk.GetArrayViewFromImage(locked))), {0, 22})

    def test_an_update_is_one_undo_step(self):
        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        history = results.UndoHistory(node)
        before = slicer.util.arrayFromSegmentBinaryLabelmap(node, "L3", volume).copy()
        blocks = {22: (slice(1, 3), slice(0, 4), slice(0, 4)), 20: (slice(1, 3), slice(5, 9), slice(0, 4))}
        results.segmentationFromResult(result_of(volume, blocks), volume, node, saveState=history.saveState)
        self.assertEqual(list(node.GetSegmentation().GetSegmentIDs()), ["L1", "L3"])
        history.undo()
        self.assertEqual(list(node.GetSegmentation().GetSegmentIDs()), ["L3", "L3/L4", "L4"])
        np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, "L3", volume), before)

    def test_a_segmentation_of_another_transform_is_read_at_the_right_place(self):
        import SimpleITK as sitk

        volume = make_volume()
        result = result_of(volume)
        node = results.segmentationFromResult(result, volume)
        shift = np.eye(4)
        shift[:3, 3] = (0.0, 0.0, 3.0)  # three rows up
        node.SetAndObserveTransformNodeID(linear_transform(shift).GetID())
        back = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(node, volume))
        np.testing.assert_array_equal(back[:, :-3], sitk.GetArrayViewFromImage(result.labels)[:, 3:])

    def moved(self):
        """A volume and its segmentation, of which one alone was moved since, in each way in which that happens."""
        for harden in (False, True):
            volume = make_volume()
            transform = linear_transform(rotation(20, 2))
            if harden:  # the volume alone; the segmentation still lies under the transform
                volume.SetAndObserveTransformNodeID(transform.GetID())
                node = results.segmentationFromResult(result_of(volume), volume)
                volume.HardenTransform()
            else:  # the volume was registered to something
                node = results.segmentationFromResult(result_of(volume), volume)
                volume.SetAndObserveTransformNodeID(transform.GetID())
            yield harden, volume, node

    def places(self, node):
        """Name → position (RAS, mm), as Slicer knows it."""
        return {i: np.array(node.GetSegmentCenterRAS(i)) for i in node.GetSegmentation().GetSegmentIDs()}

    def test_corrections_move_nothing_where_the_volume_was_moved_alone(self):
        from SpineSegAISlicer.scene import corrections

        from SpineSegAILib.correction import voxels

        for harden, volume, node in self.moved():
            before = self.places(node)
            if not harden:  # else it lies outside of the picture
                shift = np.eye(4)
                shift[:3, 3] = (0.0, 0.0, 2.5)
                volume.GetParentTransformNode().SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
            step = voxels.smooth(labelmaps.checkedLabels(node, volume), 23, 3.0, locked=frozenset())
            corrections.applyCorrection(node, volume, step)
            after = self.places(node)
            for name in ("L3", "L3/L4"):
                np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=f"{name}, {harden}")
            np.testing.assert_allclose(after["L4"], before["L4"], atol=1.0, err_msg=str(harden))  # at most a voxel
            self.assertLess(abs(len(labelmaps.voxelsOf(node, 23)[0]) / (7 * 11 * 21) - 1), 0.2)

    def test_a_new_result_moves_nothing_that_is_locked_and_lies_on_the_volume(self):
        import SimpleITK as sitk

        for harden, volume, node in self.moved():
            segmentation = node.GetSegmentation()
            setLocked(segmentation.GetSegment("L3"), True)
            before, transform = self.places(node), node.GetParentTransformNode()
            result = result_of(volume, {23: (slice(2, 9), slice(50, 55), slice(10, 31))})
            history = results.UndoHistory(node)
            results.segmentationFromResult(result, volume, node, saveState=history.saveState)
            self.assertIs(node.GetParentTransformNode(), transform)
            after = self.places(node)
            np.testing.assert_allclose(after["L3"], before["L3"], atol=1e-6, err_msg=str(harden))
            np.testing.assert_allclose(after["L4"], image_centroid(result.labels, 23), atol=1e-3, err_msg=str(harden))
            back = sitk.GetArrayViewFromImage(labelmaps.labelsFromSegmentation(node, volume))
            np.testing.assert_array_equal(back == 23, sitk.GetArrayViewFromImage(result.labels) == 23)
            history.undo()
            after = self.places(node)
            for name, place in before.items():
                np.testing.assert_allclose(after[name], place, atol=1e-6, err_msg=f"{name}, {harden}")

    def test_different_transforms_of_which_one_is_not_linear_are_refused_and_nothing_is_changed(self):
        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
        warp.SetAndObserveTransformFromParent(vtk.vtkThinPlateSplineTransform())
        node.SetAndObserveTransformNodeID(warp.GetID())
        saved = []
        with self.assertRaisesRegex(ImageError, f"{node.GetName()}.*non-linear transform.*Warp"):
            labelmaps.checkedLabels(node, volume)
        with self.assertRaisesRegex(ImageError, f"{node.GetName()}.*non-linear transform.*Warp"):
            new = result_of(volume, {23: (slice(2, 9), slice(50, 55), slice(10, 31))})
            results.segmentationFromResult(new, volume, node, saveState=lambda: saved.append(True))
        self.assertEqual(saved, [])
        self.assertEqual(list(node.GetSegmentation().GetSegmentIDs()), ["L3", "L3/L4", "L4"])

    def test_it_joins_the_study_of_its_volume(self):
        volume = make_volume()
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
        node = results.segmentationFromResult(result_of(volume), volume)
        self.assertEqual(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)), study)

    def test_a_result_of_another_grid_is_refused(self):
        result = result_of(make_volume())
        with self.assertRaisesRegex(ImageError, "segment it again|voxels"):
            results.segmentationFromResult(result, make_volume(size=(8, 40, 30)))

    def test_an_empty_result_makes_an_empty_segmentation(self):
        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume, {22: (slice(0, 0),) * 3}), volume)
        self.assertEqual(node.GetSegmentation().GetNumberOfSegments(), 0)
        with self.assertRaisesRegex(HintError, "No segment"):
            labelmaps.labelsFromSegmentation(node, volume)

    def test_a_segmentation_of_somebody_else_is_not_taken_for_ours(self):
        volume = make_volume()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.GetSegmentation().AddEmptySegment("L4", "L4")
        with self.assertRaisesRegex(HintError, "No segment"):
            labelmaps.labelsFromSegmentation(node, volume)

    def test_a_scene_bundle_keeps_everything(self):
        import tempfile

        import SimpleITK as sitk

        volume = make_volume()
        result = result_of(volume, level_confidence=0.5, warnings=["Levels are a guess."])
        node = results.segmentationFromResult(result, volume)
        setLocked(node.GetSegmentation().GetSegment("L4"), True)
        with tempfile.TemporaryDirectory() as folder:
            self.assertTrue(slicer.mrmlScene.WriteToMRB(f"{folder}/case.mrb"))
            slicer.mrmlScene.Clear(0)
            self.assertTrue(slicer.mrmlScene.ReadFromMRB(f"{folder}/case.mrb"))
        node = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[0]
        volume = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[0]
        segment = node.GetSegmentation().GetSegment("L4")
        self.assertTrue(isLocked(segment))
        self.assertEqual(segment.GetName(), "L4 vertebra (body)")
        again = results.resultFromSegmentation(node, volume)
        self.assertEqual(again.warnings, ["Levels are a guess."])
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(again.labels), sitk.GetArrayViewFromImage(result.labels)
        )

    def test_a_saved_file_is_read_as_the_library_reads_it(self):
        import tempfile

        from SpineSegAISlicer.scene import corrections

        from SpineSegAILib import correction
        from SpineSegAILib.results.reading import read_segmentation

        volume = make_volume()
        blocks = {22: (slice(2, 9), slice(5, 16), slice(10, 31)), 23: (slice(2, 9), slice(19, 30), slice(10, 31))}
        result = result_of(volume, blocks, scale_known=False, unvalidated=frozenset({23}))
        result.scheme = SCHEMES["thoracolumbar-xr"]
        node = results.segmentationFromResult(result, volume)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/case.seg.nrrd"
            self.assertTrue(slicer.util.saveNode(node, path))
            slicer.mrmlScene.RemoveNode(node)
            node = slicer.util.loadSegmentation(path)
            read = read_segmentation(path)
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        again = results.resultFromSegmentation(node, volume)
        for name in ("scheme", "scale_known", "unvalidated"):
            self.assertEqual(getattr(again, name), getattr(result, name), name)
            self.assertEqual(getattr(again, name), getattr(read, name), name)
        corrections.applyCorrection(node, None, correction.shift(corrections.labellingOf(node), "up"))
        again = results.resultFromSegmentation(node, volume)
        self.assertEqual((again.scheme, again.scale_known), (result.scheme, False))
        self.assertEqual(node.GetSegmentation().GetSegment("L4").GetName(), "L3 vertebra (body) (experimental)")

    def test_a_scheme_that_is_not_known_here_is_the_usual_one(self):
        from SpineSegAILib.anatomy.terminology import SCHEME_TAG

        volume = make_volume()
        node = results.segmentationFromResult(result_of(volume), volume)
        node.RemoveAttribute("SpineSegAI.Result")
        for name in ("L3", "L3/L4", "L4"):
            node.GetSegmentation().GetSegment(name).SetTag(SCHEME_TAG, "of-tomorrow")
        self.assertEqual(results.schemeOf(node).name, "lumbar-mr")
        node.GetSegmentation().GetSegment("L4").SetTag(SCHEME_TAG, "vertebra")  # two of them
        self.assertEqual(results.schemeOf(node).name, "lumbar-mr")


class TableTest(unittest.TestCase):
    def test_a_table_is_shown_in_a_layout_that_has_one(self):
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
        chosen = []
        manager = SimpleNamespace(layout=3, setLayout=chosen.append)
        logic = SimpleNamespace(GetLayoutWithTable=lambda layout: 10 * layout)
        modules = SimpleNamespace(tables=SimpleNamespace(logic=lambda: logic))
        app = SimpleNamespace(layoutManager=lambda: manager, applicationLogic=slicer.app.applicationLogic)
        with patch.object(views, "slicer", SimpleNamespace(app=app, modules=modules)):
            views.showTable(table)
        self.assertEqual(chosen, [30])
        self.assertEqual(slicer.app.applicationLogic().GetSelectionNode().GetActiveTableID(), table.GetID())


if __name__ == "__main__":
    unittest.main()
