"""A study from the DICOM module: what is made stays in it, its other series get the segments. Runs in Slicer, too."""

import unittest

from panel_case import PanelCase, axial, np, slicer

TILT_DEGREES = 12.0


class StudyCase(PanelCase):
    """The phantom as a series of a study, and the same spine in other series, made from it."""

    def setUp(self):
        super().setUp()
        from SpineSegAISlicer.scene import samples

        self.volume = samples.load()
        self.hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        scene = self.hierarchy.GetSceneItemID()
        self.patient = self.hierarchy.CreateSubjectItem(scene, "Patient A")
        self.study = self.hierarchy.CreateStudyItem(self.patient, "Lumbar MR")
        constants = slicer.vtkMRMLSubjectHierarchyConstants
        self.hierarchy.SetItemUID(self.study, constants.GetDICOMUIDName(), "1.2.3")
        self.place(self.volume, "1.2.3.1")

    def place(self, node, uid):
        """Under the study, as the DICOM module does with what it loads."""
        item = self.hierarchy.GetItemByDataNode(node)
        self.hierarchy.SetItemParent(item, self.study)
        self.hierarchy.SetItemUID(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMUIDName(), uid)

    def parent(self, node):
        return self.hierarchy.GetItemParent(self.hierarchy.GetItemByDataNode(node))

    def uid(self, item):
        return self.hierarchy.GetItemUID(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMUIDName())

    def image(self, node=None):
        from SpineSegAISlicer.scene import volumes

        return volumes.imageFromVolume(node or self.volume)

    def addSeries(self, name, grid, uid):
        """The same spine on another grid and in another contrast: bright is dark, and noise is added."""
        import SimpleITK as sitk

        moved = sitk.Resample(sitk.Cast(self.image(), sitk.sitkFloat32), grid, sitk.Transform(), sitk.sitkLinear)
        values = sitk.GetArrayFromImage(moved)
        values = values.max() - 0.8 * values + np.random.default_rng(0).normal(0, 0.02 * values.max(), values.shape)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(node, values.astype(np.int16))
        direction = np.array(grid.GetDirection()).reshape(3, 3) * grid.GetSpacing()
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = direction, grid.GetOrigin()
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix))
        node.CreateDefaultDisplayNodes()
        self.place(node, uid)
        return node

    def tilted(self, spacing=(0.7, 4.4)):
        """A sagittal grid about the same middle, tilted about the left-right axis, with other slices and pixels."""
        import SimpleITK as sitk

        image = self.image()
        size, old = np.array(image.GetSize()), np.array(image.GetSpacing())
        directions = np.array(image.GetDirection()).reshape(3, 3)
        across = int(np.argmax(np.abs(directions[0])))
        new = np.full(3, spacing[0])
        new[across] = spacing[1]
        angle = np.radians(TILT_DEGREES)
        tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        counts = np.ceil(size * old / new).astype(int)
        middle = np.array(image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
        grid = sitk.Image(counts.tolist(), sitk.sitkFloat32)
        grid.SetSpacing(new.tolist())
        grid.SetDirection((tilt @ directions).ravel().tolist())
        grid.SetOrigin((middle - (tilt @ directions) @ (new * (counts - 1) / 2)).tolist())
        return grid

    def segment(self, **environment):
        self.openPanel(**environment)
        self.ui.inputVolumeSelector.setCurrentNode(self.volume)
        self.run_to_the_end()
        self.assertEqual(self.dialogs, [])

    def overlap(self, node, other):
        """Least Dice of the structures carried to another series with those that are there by position."""
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps

        labels = labelmaps.labelsFromSegmentation(self.output_of(self.volume), self.volume)
        expected = sitk.Resample(labels, self.image(other), sitk.Transform(), sitk.sitkNearestNeighbor)
        expected = sitk.GetArrayFromImage(expected)
        found = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(node, other))
        self.assertEqual(set(np.unique(found)), set(np.unique(expected)))
        present = [i for i in np.unique(expected) if i]
        return min(2 * ((found == i) & (expected == i)).sum() / ((found == i).sum() + (expected == i).sum())
                   for i in present)  # fmt: skip

    def output_of(self, volume):
        from SpineSegAISlicer.scene.volumes import segmentedVolume

        return next(node for node in self.segmentations() if segmentedVolume(node) is volume)


class KeptTest(StudyCase):
    def test_what_is_made_of_a_series_lies_in_its_study(self):
        name, uid = self.volume.GetName(), self.uid(self.hierarchy.GetItemByDataNode(self.volume))
        self.segment()
        self.assertEqual(self.parent(self.output()), self.study)
        self.assertEqual(self.parent(self.volume), self.study)
        self.assertEqual(self.hierarchy.GetItemParent(self.study), self.patient)
        self.assertEqual((self.volume.GetName(), self.uid(self.hierarchy.GetItemByDataNode(self.volume))), (name, uid))
        self.assertEqual((self.hierarchy.GetItemName(self.study), self.uid(self.study)), ("Lumbar MR", "1.2.3"))
        first = self.output()
        self.run_to_the_end()
        self.assertIs(self.output(), first)
        self.assertEqual(self.parent(first), self.study)

    def test_it_is_still_there_after_saving_and_loading(self):
        self.segment()
        path = str(self.folder / "scene.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.mrmlScene.ReadFromMRB(path))
        self.hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        study = self.parent(self.output())
        self.assertEqual((self.hierarchy.GetItemName(study), self.uid(study)), ("Lumbar MR", "1.2.3"))
        self.assertIsNotNone(self.widget._parameterNode.inputVolume)
        self.assertEqual(self.parent(self.widget._parameterNode.inputVolume), study)


class OtherSeriesTest(StudyCase):
    def test_a_tilted_series_of_another_contrast_gets_the_segments(self):
        other = self.addSeries("T1 tilted", self.tilted(), "1.2.3.2")
        self.segment()
        self.click(self.ui.seriesButton)
        self.assertEqual(self.dialogs, [])
        carried = self.output_of(other)
        self.assertEqual(self.parent(carried), self.study)
        overlap = self.overlap(carried, other)
        print(f"carried to a series tilted by {TILT_DEGREES:g} degrees: least Dice with its position {overlap:.3f}")
        self.assertGreater(overlap, 0.9)

    def test_an_axial_series_is_left_out_with_the_reason(self):
        other = self.addSeries("Axial", self.tilted(), "1.2.3.3")
        other.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(axial()))
        self.segment()
        self.click(self.ui.seriesButton)
        self.assertEqual(len(self.segmentations()), 1)
        self.assertIn("axial", self.ui.logText.plainText + self.ui.statusLabel.text + " ".join(self.states()))

    def states(self):
        table = self.ui.queueTable
        return [table.item(i, 1).text() for i in range(table.rowCount)]

    def test_the_open_case_is_carried_over_and_refined_there(self):
        other = self.addSeries("T1 tilted", self.tilted(), "1.2.3.2")
        self.segment()
        self.widget.tabs.show("correctTab")
        correct = self.widget.correctionPanel
        self.assertEqual(correct.ui.otherVolumeComboBox.currentText, "T1 tilted")  # without “not of this study”
        self.click(correct.ui.carryButton)
        carried = correct.segmentationNode
        self.assertIs(self.widget._parameterNode.inputVolume, other)
        self.assertGreater(self.overlap(carried, other), 0.9)
        self.ui.inputVolumeSelector.setCurrentNode(self.volume)
        correct.ui.correctSegmentationSelector.setCurrentNode(self.output_of(self.volume))
        self.click(correct.ui.refineButton)
        self.waitUntilDone()
        self.assertEqual(self.dialogs, [])
        self.assertIs(correct.segmentationNode, carried)
        self.assertEqual(self.parent(carried), self.study)
        self.assertEqual(len(self.segmentations()), 2)


if __name__ == "__main__":
    unittest.main()
