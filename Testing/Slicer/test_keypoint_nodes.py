"""Keypoints of a result as a markups list, and back as a hint. Runs in the host and inside Slicer."""

import unittest

from panel_case import PanelCase, centroid, linear_transform, make_checkpoint, make_volume, np, slicer


class KeypointsTest(PanelCase):
    def setUp(self):
        super().setUp()
        make_checkpoint(self.folder, "steered", method="scar-net")
        make_checkpoint(self.folder, "plain", method="dgmsnet")

    def openSteered(self):
        self.openPanel()
        self.choose("scar-net")

    def choose(self, method):
        self.chooseModelOf(method)

    def shown(self):
        """The list after a click on “Keypoints”."""
        self.click(self.ui.keypointsButton)
        return self.widget._parameterNode.keypoints

    def hints(self):
        """What the worker was told."""
        from SpineSegAISlicer.scene import result_attribute

        return result_attribute.read(self.output())["provenance"]["hints"]

    @staticmethod
    def position(node, label):
        found = [0.0, 0.0, 0.0]
        node.GetNthControlPointPositionWorld(node.GetControlPointIndexByLabel(label), found)
        return np.array(found)

    def test_points_are_shown_where_the_structures_are_and_named_after_them(self):
        volume = make_volume()
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        labels = [node.GetNthControlPointLabel(i) for i in range(node.GetNumberOfControlPoints())]
        self.assertEqual(labels[:4], ["L1", "L1/L2", "L2", "L2/L3"])
        for name, structureId in (("L1", 20), ("L3/L4", 122), ("S1", 26)):
            expected = centroid(self.output(), structureId, volume)
            np.testing.assert_allclose(self.position(node, name), expected, atol=1e-4)
        self.assertIs(self.ui.keypointsSelector.currentNode(), node)

    def test_nothing_is_a_hint_until_asked_for(self):
        make_volume()
        self.openSteered()
        self.run_to_the_end()
        self.assertIn("keypoints={}", self.hints())

    def test_a_dragged_point_is_a_hint_for_the_next_result(self):
        make_volume()
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        index = node.GetControlPointIndexByLabel("L3")
        node.SetNthControlPointPositionWorld(index, -1.5, 12.0, 7.25)
        self.run_to_the_end()
        self.assertIn("22: (1.5, -12.0, 7.25)", self.hints())
        self.assertIs(self.shown(), node)  # filled again, not another one
        np.testing.assert_allclose(self.position(node, "L3"), (-1.5, 12.0, 7.25), atol=1e-4)

    def test_points_move_with_their_volume(self):
        volume = make_volume()
        matrix = np.eye(4)
        matrix[:3, 3] = (5.0, -3.0, 11.0)
        volume.SetAndObserveTransformNodeID(linear_transform(matrix).GetID())
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        np.testing.assert_allclose(self.position(node, "L4"), centroid(self.output(), 23, volume), atol=1e-4)
        before = self.position(node, "L4")
        matrix[0, 3] += 20
        volume.GetParentTransformNode().SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        np.testing.assert_allclose(self.position(node, "L4") - before, (20, 0, 0), atol=1e-4)

    def test_points_that_are_shown_after_the_volume_was_moved_lie_on_it(self):
        from SpineSegAISlicer.scene import results

        volume = make_volume()
        transform = linear_transform(np.eye(4))
        volume.SetAndObserveTransformNodeID(transform.GetID())
        self.openSteered()
        self.run_to_the_end()
        matrix = np.eye(4)
        matrix[:3] = [[0, -1, 0, 5], [1, 0, 0, -3], [0, 0, 1, 11]]
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        expected = centroid(self.output(), 23, volume)
        np.testing.assert_allclose(self.position(self.shown(), "L4"), expected, atol=1e-2)
        found = results.resultFromSegmentation(self.output(), volume).keypoints[23]
        np.testing.assert_allclose(np.array(found) * (-1, -1, 1), expected, atol=1e-2)

    def test_other_methods_neither_ask_for_them_nor_get_them(self):
        make_volume()
        self.openSteered()
        self.run_to_the_end()
        self.shown()
        self.assertFalse(self.ui.keypointsSelector.isHidden())
        self.choose("dgmsnet")
        self.assertTrue(self.ui.keypointsSelector.isHidden())
        self.run_to_the_end()
        self.assertIn("keypoints={}", self.hints())

    def test_a_point_of_no_structure_is_named_and_nothing_changes(self):
        make_volume()
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        node.SetNthControlPointLabel(0, "F-1")
        before = self.nodeIds()
        self.click(self.ui.applyButton)
        self.waitUntilDone()
        self.assertIn("“F-1”", self.dialogs[-1])
        self.assertEqual(self.nodeIds(), before)

    def test_two_points_of_one_structure_are_refused(self):
        make_volume()
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        node.SetNthControlPointLabel(0, "L2")
        self.click(self.ui.applyButton)
        self.waitUntilDone()
        self.assertIn("two keypoints called “L2”", self.dialogs[-1])

    def test_a_point_not_placed_yet_is_left_out(self):
        from SpineSegAISlicer.scene.keypoints import keypointsFromNode

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "List")
        node.AddControlPointWorld([1.0, 2.0, 3.0], "L4")
        node.AddControlPointWorld([0.0, 0.0, 0.0], "L5")
        node.UnsetNthControlPointPosition(1)
        self.assertEqual(keypointsFromNode(node), {23: (-1.0, -2.0, 3.0)})

    def test_another_volume_has_other_points(self):
        make_volume()
        other = make_volume("Other", seed=1)
        self.openSteered()
        self.run_to_the_end()
        self.assertIsNotNone(self.shown())
        self.ui.inputVolumeSelector.setCurrentNode(other)
        self.assertIsNone(self.widget._parameterNode.keypoints)

    def test_volumes_that_wait_get_no_points_of_another(self):
        first = make_volume()
        second = make_volume("Second", seed=1)
        self.openSteered()
        self.run_to_the_end()
        self.shown()
        self.widget.segmenting.start([first, second])
        self.waitUntilDone()
        self.assertIn("keypoints={}", self.hints())

    def test_a_volume_that_waits_keeps_its_own_points(self):
        chosen = make_volume()
        other = make_volume("Other", seed=1)
        self.openSteered()
        self.run_to_the_end()
        node = self.shown()
        node.SetNthControlPointPositionWorld(node.GetControlPointIndexByLabel("L3"), -1.5, 12.0, 7.25)
        self.widget.segmenting.start([other, chosen])
        self.waitUntilDone()
        self.assertIn("22: (1.5, -12.0, 7.25)", self.hints())


if __name__ == "__main__":
    unittest.main()
