"""Files that are made of a result: the report, and the DICOM segmentation in the study. Runs in Slicer, too."""

import unittest
from pathlib import Path
from unittest import mock

from dicom_series import write_series
from panel_case import PanelCase, linear_transform, make_volume, np, qt, slicer


class OutputsCase(PanelCase):
    def setUp(self):
        super().setUp()
        self.asked = []  # what was asked for in file dialogs
        self.chosen = ""  # what the user chooses there
        self.patch(qt.QFileDialog, "getSaveFileName", self.dialog)
        database = slicer.dicomDatabase
        before = database.databaseFilename if database.isOpen else ""
        database.closeDatabase()
        self.addCleanup(lambda: database.openDatabase(before) if before else database.closeDatabase())

    def dialog(self, _parent, title, name, kinds):
        self.asked.append((title, name, kinds))
        return self.chosen

    def openDatabase(self):
        (self.folder / "database").mkdir()
        slicer.dicomDatabase.openDatabase(str(self.folder / "database" / "ctkDICOM.sql"))

    def refusePackages(self, which):
        """The user does not want these packages."""
        from SpineSegAISlicer.processes import dependencies

        def ensure(more=()):
            if more == which:
                raise dependencies.NotInstalled("The packages were not installed, so nothing was done.")

        self.patch(dependencies, "ensure", ensure)

    def dicomVolume(self):
        """A volume as the module DICOM loads it from the database, or as a file that was dropped into the window."""
        self.volume = make_volume("3: T2 sag")
        paths = write_series(self.volume, self.folder / "series")
        if slicer.dicomDatabase.isOpen:
            import pydicom

            for path in paths:
                slicer.dicomDatabase.insert(str(path))
            uids = [pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in paths]
            self.volume.SetAttribute("DICOM.instanceUIDs", " ".join(uids))
        else:
            self.volume.AddDefaultStorageNode()
            self.volume.GetStorageNode().SetFileName(str(paths[0]))
        return self.volume

    def segment(self, volume=None):
        self.volume = volume or make_volume("T2")
        self.openPanel()
        self.run_to_the_end()
        self.assertEqual(self.dialogs, [])

    def unwritable(self, name):
        """A file in a folder that is none: of a protected one, an administrator would not notice anything."""
        (self.folder / "file").write_text("", encoding="utf-8")
        return str(self.folder / "file" / name)

    def save(self, button):
        """Click, and wait for what comes of it."""
        said = self.ui.statusLabel.text
        self.click(button)
        self.waitUntil(lambda: not self.widget.measuring.isBusy, 180)
        self.assertTrue(button.enabled)
        return self.ui.statusLabel.text if self.ui.statusLabel.text != said else ""


class ReportTest(OutputsCase):
    def test_two_clicks_from_a_result_to_a_report_on_disk(self):
        self.segment()
        self.assertTrue(self.ui.patientCheckBox.isHidden())
        for name, begins in (("report.pdf", b"%PDF"), ("report.html", b"<!")):
            self.chosen = str(self.folder / name)
            self.assertIn(name, self.save(self.ui.reportButton))
            self.assertTrue((self.folder / name).read_bytes().startswith(begins))
        self.assertEqual(self.dialogs, [])
        (title, name, kinds), _again = self.asked
        self.assertEqual((title, name), ("Report", "T2 spine.pdf"))
        self.assertIn("(*.html)", kinds)
        page = (self.folder / "report.html").read_text(encoding="utf-8")
        for part in ("<title>T2", "L4/L5", "levels are a guess", "For research use only"):
            self.assertIn(part, page)
        self.assertNotIn("Study", page)

    def test_it_shows_what_the_segments_are_now(self):
        self.segment()
        self.widget.tabs.show("correctTab")
        self.click(self.widget.correctionPanel.ui.shiftUpButton)
        self.chosen = str(self.folder / "report.html")
        self.save(self.ui.reportButton)
        page = Path(self.chosen).read_text(encoding="utf-8")
        self.assertIn("T12/L1", page)
        self.assertIn("Corrected by the user", page)

    def test_the_study_is_named_and_the_patient_only_on_request(self):
        self.openDatabase()
        self.segment(self.dicomVolume())
        self.chosen = str(self.folder / "report.html")
        self.assertFalse(self.ui.patientCheckBox.isHidden())
        self.save(self.ui.reportButton)
        page = Path(self.chosen).read_text(encoding="utf-8")
        for part in ("<title>3: T2 sag", "Spine", "2026-01-02"):
            self.assertIn(part, page)
        for part in ("Muster", "Erika", "1960"):
            self.assertNotIn(part, page)
        self.click(self.ui.patientCheckBox)
        self.save(self.ui.reportButton)
        page = Path(self.chosen).read_text(encoding="utf-8")
        for part in ("Muster Erika", "1960-01-02"):
            self.assertIn(part, page)
        self.ui.inputVolumeSelector.setCurrentNode(make_volume("Another"))
        self.assertFalse(self.ui.patientCheckBox.checked)
        self.run_to_the_end()
        self.assertTrue(self.ui.patientCheckBox.isHidden())
        self.assertEqual(self.dialogs, [])

    def test_a_film_has_a_report(self):
        from SpineSegAISlicer.scene import results, volumes

        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.results import Segmentation

        film = make_volume("Film", size=(1, 120, 60), ijkToRas=np.diag([-1.0, -1.0, 1.0, 1.0]))
        self.openPanel()
        import SimpleITK as sitk

        (structure,) = SCHEMES["vertebra"].ids
        values = np.zeros((1, 120, 60), np.int16)
        for top in (10, 40, 70):
            values[0, top : top + 20, 15:45] = structure
        labels = sitk.GetImageFromArray(values)
        labels.CopyInformation(volumes.imageFromVolume(film))
        node = results.segmentationFromResult(
            Segmentation(labels=labels, scheme=SCHEMES["vertebra"], scale_known=False), film
        )
        self.widget.parameters.write(inputVolume=film, outputSegmentation=node)
        for name in ("film.html", "film.pdf"):
            self.chosen = str(self.folder / name)
            self.assertIn(name, self.save(self.ui.reportButton))
        self.assertEqual(self.dialogs, [])
        self.assertIn("Film", (self.folder / "film.html").read_text(encoding="utf-8"))

    def test_a_cancelled_dialog_writes_nothing(self):
        self.segment()
        before = set(self.folder.iterdir())
        self.assertEqual(self.save(self.ui.reportButton), "")
        self.assertEqual(len(self.asked), 1)
        self.assertEqual((set(self.folder.iterdir()), self.dialogs), (before, []))

    def test_a_folder_that_cannot_be_written_to_is_named(self):
        self.segment()
        self.chosen = self.unwritable("report.pdf")
        self.save(self.ui.reportButton)
        self.assertIn("file is not a folder", self.dialogs[0])

    def test_refused_packages_ask_for_no_file(self):
        from SpineSegAISlicer.processes import dependencies

        self.segment()
        self.refusePackages(dependencies.REPORT_PACKAGES)
        self.save(self.ui.reportButton)
        self.assertIn("so nothing was done", self.dialogs[0])
        self.assertEqual(self.asked, [])

    def test_the_scene_closed_meanwhile_the_report_is_still_written(self):
        self.segment()
        self.chosen = str(self.folder / "report.html")
        self.click(self.ui.reportButton)
        self.assertFalse(self.ui.reportButton.enabled)
        slicer.mrmlScene.Clear(0)
        self.waitUntil(lambda: not self.widget.measuring.isBusy, 180)
        self.assertIn("L4/L5", Path(self.chosen).read_text(encoding="utf-8"))
        self.assertIn("report.html", self.ui.statusLabel.text)
        self.assertEqual(self.dialogs, [])
        self.ui.inputVolumeSelector.setCurrentNode(make_volume("Next"))
        self.run_to_the_end()
        self.assertTrue(self.ui.reportButton.enabled)

    def test_the_volume_removed_while_a_file_was_chosen(self):
        self.segment()

        def dialog(*_asked):
            slicer.mrmlScene.RemoveNode(self.volume)
            return str(self.folder / "report.pdf")

        self.patch(qt.QFileDialog, "getSaveFileName", dialog)
        self.click(self.ui.reportButton)
        self.assertIn("removed from the scene", self.ui.statusLabel.text)
        self.assertFalse((self.folder / "report.pdf").exists())


class DicomSegTest(OutputsCase):
    def found(self):
        """DICOM segmentations in the database's folder."""
        import pydicom

        files = [path for path in (self.folder / "database").rglob("*") if path.is_file()]
        files = [path for path in files if pydicom.misc.is_dicom(path)]
        return [path for path in files if pydicom.dcmread(path, specific_tags=["Modality"]).Modality == "SEG"]

    def assertSameVoxels(self, path):
        """A reader of DICOM finds the segments where they are in the scene."""
        import highdicom
        import SimpleITK as sitk
        from SpineSegAISlicer.scene import labelmaps
        from SpineSegAISlicer.scene.segments import structuresOfSegmentation

        found = highdicom.seg.segread(path)
        series = [p for p in (self.folder / "series").iterdir()]
        self.assertEqual(found.StudyInstanceUID, highdicom.imread(series[0]).StudyInstanceUID)
        array = sitk.GetArrayFromImage(labelmaps.labelsFromSegmentation(self.output(), self.volume))
        uids = [highdicom.imread(self.folder / "series" / f"{k:04d}").SOPInstanceUID for k in range(len(array))]
        names = {found.get_segment_description(n).tracking_id: n for n in range(1, found.number_of_segments + 1)}
        structures = structuresOfSegmentation(self.output())
        self.assertEqual(set(names), set(structures.values()))
        for structureId, name in structures.items():
            masks = found.get_pixels_by_source_instance(uids, segment_numbers=[names[name]])[..., 0]
            np.testing.assert_array_equal(masks > 0, array == structureId)

    def test_it_is_added_to_the_study_in_the_database(self):
        self.openDatabase()
        self.segment(self.dicomVolume())
        self.assertIn("in the study", self.save(self.ui.dicomSegButton))
        self.assertEqual((self.dialogs, self.asked), ([], []))
        (path,) = self.found()
        self.assertSameVoxels(path)
        left = [p for p in Path(self.widget.client._folder).rglob("*") if p.is_file()]
        self.assertEqual(left, [])

    def test_a_volume_that_was_moved_in_the_scene_lies_where_its_series_does(self):
        self.openDatabase()
        volume = self.dicomVolume()
        moved = [[0.8, -0.6, 0, 30], [0.6, 0.8, 0, 5], [0, 0, 1, 9], [0, 0, 0, 1]]
        volume.SetAndObserveTransformNodeID(linear_transform(moved).GetID())
        self.segment(volume)
        self.save(self.ui.dicomSegButton)
        self.assertEqual(self.dialogs, [])
        (path,) = self.found()
        self.assertSameVoxels(path)

    def test_without_a_database_a_file_is_asked_for(self):
        self.segment(self.dicomVolume())
        self.save(self.ui.dicomSegButton)  # canceled
        self.assertEqual((self.asked[0][1], self.dialogs), ("3_ T2 sag spine.dcm", []))
        self.chosen = str(self.folder / "out.dcm")
        self.assertIn("out.dcm", self.save(self.ui.dicomSegButton))
        self.assertSameVoxels(self.chosen)
        self.chosen = self.unwritable("out.dcm")
        self.save(self.ui.dicomSegButton)
        self.assertIn("file is not a folder", self.dialogs[0])

    def test_what_is_not_from_dicom_is_refused_before_anything_is_asked(self):
        import SimpleITK as sitk
        from SpineSegAISlicer.processes import dependencies
        from SpineSegAISlicer.scene import volumes

        self.openDatabase()
        volume = make_volume("T2")
        path = self.folder / "T2.nii.gz"
        sitk.WriteImage(volumes.imageFromVolume(volume), str(path))
        volume.AddDefaultStorageNode()
        volume.GetStorageNode().SetFileName(str(path))
        self.segment(volume)
        self.refusePackages(dependencies.DICOM_SEG_PACKAGES)
        self.assertTrue(self.ui.patientCheckBox.isHidden())
        self.save(self.ui.dicomSegButton)
        self.assertIn("was not loaded from DICOM", self.dialogs[0])
        self.assertIn("module “DICOM”", self.dialogs[0])
        self.assertEqual(len(self.dialogs), 1)
        self.assertEqual((self.asked, self.found()), ([], []))

    def test_files_that_are_gone_are_missed(self):
        self.openDatabase()
        self.segment(self.dicomVolume())
        slicer.dicomDatabase.closeDatabase()
        self.save(self.ui.dicomSegButton)
        self.assertIn("are not found", self.dialogs[0])
        self.assertIn("Import the series", self.dialogs[0])
        self.chosen = str(self.folder / "report.html")  # which needs no files
        self.save(self.ui.reportButton)
        self.assertIn("3: T2 sag", Path(self.chosen).read_text(encoding="utf-8"))

    def test_refused_packages_write_nothing(self):
        from SpineSegAISlicer.processes import dependencies

        self.openDatabase()
        self.segment(self.dicomVolume())
        self.refusePackages(dependencies.DICOM_SEG_PACKAGES)
        self.save(self.ui.dicomSegButton)
        self.assertIn("so nothing was done", self.dialogs[0])
        self.assertEqual((self.asked, self.found()), ([], []))

    def test_the_scene_closed_meanwhile_it_is_still_added(self):
        self.openDatabase()
        self.segment(self.dicomVolume())
        self.click(self.ui.dicomSegButton)
        slicer.mrmlScene.Clear(0)
        self.waitUntil(lambda: not self.widget.measuring.isBusy, 180)
        self.assertEqual((len(self.found()), self.dialogs), (1, []))

    def test_a_database_that_takes_nothing_is_said(self):
        self.openDatabase()
        self.segment(self.dicomVolume())
        self.click(self.ui.dicomSegButton)
        slicer.dicomDatabase.closeDatabase()
        self.waitUntil(lambda: not self.widget.measuring.isBusy, 180)
        self.assertIn("did not take", self.dialogs[0])

    def test_without_the_module_dicom_there_is_no_database(self):
        from SpineSegAISlicer.scene import dicom

        self.openDatabase()
        self.assertIsNotNone(dicom.database())
        with mock.patch.object(slicer, "dicomDatabase", None):
            self.assertIsNone(dicom.database())
        kept = slicer.dicomDatabase
        del slicer.dicomDatabase
        self.addCleanup(setattr, slicer, "dicomDatabase", kept)
        self.assertIsNone(dicom.database())


if __name__ == "__main__":
    unittest.main()
