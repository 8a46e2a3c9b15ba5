"""A film's result: Cobb lines that can be dragged, and the view that it is shown in. Runs in the host and in Slicer."""

import unittest

import numpy as np
import test_result_panel
from panel_case import PanelCase, linear_transform, make_volume, slicer

TILTS = {"T2": 4.0, "T6": -18.0, "T11": 24.0, "L4": -9.0}
"""Degrees of a synthetic spine's vertebrae; those between lie between."""


class FilmCase(PanelCase):
    """A synthetic film with its true outlines as result."""

    def open(self, transform=None, tilts=TILTS, **known):
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import results, volumes

        from SpineSegAILib.anatomy import scheme
        from SpineSegAILib.imaging.geometry import like
        from SpineSegAILib.phantoms.films import FilmSpec, make_film
        from SpineSegAILib.results import Segmentation

        made = make_film(FilmSpec(tilts=tilts), np.random.default_rng(0))
        self.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Film")
        slicer.util.updateVolumeFromArray(self.volume, sitk.GetArrayFromImage(made.image))
        self.volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(to_ras(made.image)))
        if transform is not None:
            self.volume.SetAndObserveTransformNodeID(linear_transform(transform).GetID())
        values = sitk.GetArrayFromImage(made.labels).astype(np.int16)
        labels = like(volumes.imageFromVolume(self.volume), values)
        self.result = Segmentation(labels, scheme("thoracolumbar-xr"), scale_known=False, **known)
        if self.widget is None:
            self.openPanel()
        self.node = results.segmentationFromResult(self.result, self.volume)
        self.widget.parameters.write(inputVolume=self.volume, outputSegmentation=self.node)

    def curves(self):
        from SpineSegAILib.results.measurement import FilmSpine

        return {curve.name: curve for curve in FilmSpine(self.result).curves()}

    def lines(self):
        """Curve's name → its lines, upper and lower, as (2, 3) points (RAS, mm)."""
        found = {}
        for node in slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode"):
            ends = np.zeros((2, 3))
            for index in range(2):
                node.GetNthControlPointPositionWorld(index, ends[index])
            found.setdefault(node.GetAttribute("SpineSegAI.Curve"), []).append(ends)
        return found

    def names(self):
        return [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")]

    def show(self, on=True):
        box = self.ui.cobbCheckBox
        self.assertFalse(box.isHidden())
        if box.checked != on:
            self.click(box)


def to_ras(image):
    """(4, 4) matrix from indices of a SimpleITK image to RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


class CobbLinesTest(FilmCase):
    def test_each_curve_has_two_lines_along_its_endplates(self):
        self.open()
        curves = {name: curve for name, curve in self.curves().items() if curve.angle is not None}
        self.assertGreaterEqual(len(curves), 2)
        self.show()
        self.assertEqual(set(self.lines()), set(curves))
        for name, drawn in self.lines().items():
            for ends, line in zip(drawn, curves[name].lines, strict=True):
                truth = np.array(line) * [-1, -1, 1]
                np.testing.assert_allclose(ends.mean(0), truth.mean(0), atol=1e-3)
                along, wanted = (np.diff(p, axis=0)[0] for p in (ends, truth))
                np.testing.assert_allclose(along / np.linalg.norm(along), wanted / np.linalg.norm(wanted), atol=1e-4)
        said = self.ui.cobbLabel.text
        for name, curve in curves.items():
            self.assertIn(f"{name} {curve.angle:.0f}°", said)
            self.assertIn(f"{name}: {curve.angle:.0f}°", self.names())

    def test_a_dragged_end_turns_the_angle_in_view_and_panel(self):
        self.open()
        self.show()
        name, (upper, _lower) = next(iter(self.lines().items()))
        before = self.widget.resultPanel._cobb.angles(self.node)[name]
        node = next(
            n
            for n in slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")
            if n.GetAttribute("SpineSegAI.Curve") == name
        )
        turn = np.radians(10)
        normal = np.cross(*(np.diff(ends, axis=0)[0] for ends in self.lines()[name]))
        normal /= np.linalg.norm(normal)
        along = upper[1] - upper[0]
        end = upper[0] + np.cos(turn) * along - np.sin(turn) * np.cross(normal, along)  # away from the lower line
        node.SetNthControlPointPositionWorld(1, *end)
        after = self.widget.resultPanel._cobb.angles(self.node)[name]
        self.assertAlmostEqual(after, before + 10, places=3)
        self.assertIn(f"{name} {after:.0f}°", self.ui.cobbLabel.text)
        self.assertIn(f"{name}: {after:.0f}°", self.names())

    def test_lines_have_no_length(self):
        self.open()
        self.show()
        for index, node in enumerate(slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")):
            self.assertFalse(node.GetMeasurement("length").GetEnabled())
            self.assertEqual(bool(node.GetDisplayNode().GetPropertiesLabelVisibility()), index % 2 == 0)

    def test_nothing_is_drawn_where_the_angle_is_blank_and_why_is_said(self):
        from SpineSegAILib.anatomy import structure

        self.open(outline_quality={structure(name).id: 0.1 for name in ("T3", "T4", "T5")})
        blank = {name: curve.why for name, curve in self.curves().items() if curve.angle is None}
        self.assertTrue(blank)
        self.show()
        self.assertEqual(set(self.lines()) & set(blank), set())
        for name, why in blank.items():
            self.assertIn(f"{name}: the angle is not given: {why}", self.ui.statusLabel.text)

    def test_under_a_transform_they_lie_on_the_bones(self):
        turned = np.array([[0, -1, 0, 30], [1, 0, 0, -5], [0, 0, 1, 7], [0, 0, 0, 1]], float)
        self.open(transform=turned)
        self.show()
        from SpineSegAISlicer.scene import labelmaps

        from SpineSegAILib.anatomy import structure

        for name, drawn in self.lines().items():
            upper, lower = (structure(level).id for level in name.split("–"))
            for ends, structureId in zip(drawn, (upper, lower), strict=True):
                away = np.linalg.norm(ends.mean(0) - labelmaps.centreOf(self.node, structureId))
                self.assertLess(away, np.linalg.norm(np.diff(ends, axis=0)))

    def test_they_go_with_the_tick_with_the_result_and_with_the_scene(self):
        self.open()
        before = self.nodeIds()
        self.show()
        self.show(False)
        self.assertEqual(self.nodeIds(), before)
        self.assertTrue(self.ui.cobbLabel.isHidden())
        self.show()
        slicer.mrmlScene.RemoveNode(self.node)
        self.assertEqual(self.lines(), {})
        self.assertTrue(self.ui.cobbCheckBox.isHidden())
        self.open()
        self.show()
        slicer.mrmlScene.Clear(0)
        self.assertEqual(self.lines(), {})

    def test_a_line_that_is_deleted_takes_the_other_one_along(self):
        self.open()
        self.show()
        count = len(self.lines())
        slicer.mrmlScene.RemoveNode(slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")[0])
        self.assertEqual(len(self.lines()), count - 1)
        self.assertTrue(all(len(drawn) == 2 for drawn in self.lines().values()))
        self.assertEqual(self.ui.cobbLabel.text.count("°"), count - 1)

    def test_lines_of_the_users_own_stay(self):
        self.open()
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", "Mine")
        self.show()
        self.show(False)
        slicer.mrmlScene.RemoveNode(self.node)
        self.assertEqual(self.names(), ["Mine"])

    def test_corrected_levels_are_drawn_anew(self):
        self.open()
        self.show()
        before = set(self.lines())
        self.widget.tabs.show("correctTab")
        from SpineSegAILib.anatomy import structure
        from SpineSegAILib.correction import delete

        self.widget.correctionPanel.do(lambda known: delete(known, structure("L5").id))
        self.widget.correctionPanel.refresh()
        self.assertTrue(self.ui.cobbCheckBox.checked)
        self.assertNotEqual(set(self.lines()), before)  # the end beyond the lowest curve is not known any more

    def test_lines_of_a_saved_scene_can_be_dragged(self):
        self.open()
        self.show()
        path = str(self.folder / "film.mrb")
        self.assertTrue(slicer.mrmlScene.WriteToMRB(path))
        names = sorted(self.names())
        slicer.mrmlScene.Clear(0)
        slicer.mrmlScene.ReadFromMRB(path)
        self.assertEqual(sorted(self.names()), names)
        self.assertTrue(self.ui.cobbCheckBox.checked)
        node = slicer.util.getNodesByClass("vtkMRMLMarkupsLineNode")[0]
        text = self.ui.cobbLabel.text
        end = [0.0] * 3
        node.GetNthControlPointPositionWorld(1, end)
        node.SetNthControlPointPositionWorld(1, end[0], end[1] + 9.0, end[2] + 9.0)
        self.assertNotEqual(self.ui.cobbLabel.text, text)

    def test_without_the_packages_lines_of_a_saved_scene_stay_as_they_are(self):
        from SpineSegAISlicer.processes import dependencies

        self.open()
        self.show()
        before = self.lines()
        self.patch(dependencies, "areInstalled", lambda: False)
        self.patch(self.widget.resultPanel._cobb, "show", lambda *nodes: self.fail("a spine was measured"))
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            np.zeros_like(slicer.util.arrayFromVolume(self.volume)),
            self.node,
            self.node.GetSegmentation().GetNthSegmentID(0),
            self.volume,
        )
        self.widget.resultPanel.update()
        self.assertEqual(str(self.lines()), str(before))
        self.assertTrue(self.ui.cobbCheckBox.checked)

    def test_other_results_have_no_tick(self):
        from SpineSegAISlicer.scene import cobb_lines

        self.volume = make_volume()
        self.openPanel()
        self.run_to_the_end()
        self.assertTrue(self.ui.cobbCheckBox.isHidden())
        self.assertFalse(cobb_lines.isFilm(None, None) or cobb_lines.isFilm(self.output(), None))

    def test_a_straight_spine_says_that_it_is_straight(self):
        self.open(tilts={"T2": 0.0, "L4": 0.0})
        self.show()
        self.assertIn("no curve of 10° or more", self.ui.statusLabel.text)
        self.assertFalse(self.ui.cobbCheckBox.checked)


class FilmViewTest(PanelCase):
    """A film is shown alone, in the view along it."""

    def test_a_film_is_shown_in_the_view_of_its_orientation(self):
        from SpineSegAISlicer.scene import views

        nodes = slicer.vtkMRMLLayoutNode
        coronal = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
        sagittal = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
        for matrix, layout in (
            (coronal, nodes.SlicerLayoutOneUpGreenSliceView),
            (sagittal, nodes.SlicerLayoutOneUpYellowSliceView),
            (np.diag([-1.0, -1.0, 1.0, 1.0]), nodes.SlicerLayoutOneUpRedSliceView),
        ):
            manager = test_result_panel.ViewsTest.views(self, nodes.SlicerLayoutFourUpView)
            shown = []
            self.patch(slicer.util, "setSliceViewerLayers", lambda shown=shown, **about: shown.append(about))
            film = make_volume("Film", size=(1, 120, 60), ijkToRas=matrix)
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
            views.showResult(film, node, views.arrangement())
            self.assertEqual(manager.layout, layout)
            self.assertEqual(shown, [{"background": film, "fit": True, "rotateToVolumePlane": True}])


if __name__ == "__main__":
    unittest.main()
