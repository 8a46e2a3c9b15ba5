"""Annotated cases in Slicer scenes (.mrb, .mrml), read without Slicer.

A case is a volume with the segmentations that refer to it, and the point lists that lie in it. Linear transforms are
applied, so that a case lies where the reader saw it; segments are resampled to the volume's voxels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..anatomy import structure
from ..anatomy.terminology import LOG_ATTRIBUTE
from ..errors import DatasetError, ImageError, SpineSegAIError
from ..files import parse_json
from ..hints import Point
from ..imaging import Geometry, check_image, read_image
from ..imaging.dicom_headers import is_dicom
from ..imaging.geometry import RAS_FROM_LPS
from ..imaging.headers import MAX_VOXELS, first_bytes
from ..keypoints import read_control_points
from ..results.segment_names import CUSTOM, IGNORE, place
from ..results.slicer_file import StoredSegment, layers_of, read_stored
from .mrml import LABEL_MAP, POINT_LIST, SEGMENTATION, VOLUME, Document, Node, parse
from .scene_case import SceneCase, SceneReport, SceneSegment
from .scene_files import SceneFiles, open_scene

MAX_OVERLAP = 0.5
"""Two structures may share this part of the smaller one; more, and one of them is not what its name says."""

_REFERENCE_ROLE = "referenceImageGeometryRef"
_OWN_FORMATS = (".nrrd", ".nii", ".nii.gz", ".mha")
_VOLUME_FILE = re.compile(r".*\.(nrrd|nii|nii\.gz|mha|dcm|ima|\d+)|[^.]*", re.I)  # those after mha are DICOM's
_ELSEWHERE_MM = 0.1


def read_scene(
    path: str | Path,
    *,
    root: str | Path | None = None,
    table: Mapping[str, str] | None = None,
    customs: Iterable[str] = (),
) -> SceneReport:
    """The cases of a scene. What is wrong with one of them is a problem in the report; the others are read.

    Args:
        path: .mrb or .mrml.
        root: folder that the files of a .mrml may lie in; the scene's own if not given.
        table: the reader's meaning of names (`segment_names.parse_table`).
        customs: names of the reader's own structures that are known already.
    """
    path = Path(path)
    report = SceneReport(path)
    try:
        with open_scene(path, root) as files:
            document = parse(files.document(), path.name)
            _Reader(files, document, dict(table or {}), tuple(customs), report).read()
    except SpineSegAIError as error:
        report.problems.append(str(error))
    return report


class _Reader:
    """Reads one scene into a report."""

    def __init__(
        self,
        files: SceneFiles,
        document: Document,
        table: dict[str, str],
        customs: tuple[str, ...],
        report: SceneReport,
    ) -> None:
        self.files, self.document, self.table, self.customs, self.report = files, document, table, customs, report

    def read(self) -> None:
        volumes = self.document.of_kind(VOLUME)
        if not volumes:
            others = _listed(self.document.of_kind(LABEL_MAP, SEGMENTATION))
            has = f"it has only {others}" if others else "it has nothing to learn from"
            raise DatasetError(f"The scene {self.report.path.name} has no volume; {has}.", "Add the image.")
        belonging: dict[str, list[Node]] = {volume.id: [] for volume in volumes}
        for segmentation in self.document.of_kind(SEGMENTATION):
            try:
                belonging[self._volume_of(segmentation, volumes)].append(segmentation)
            except SpineSegAIError as error:
                self.report.problems.append(str(error))
        drawn = any(belonging.values())
        for labels in self.document.of_kind(LABEL_MAP):
            (self.report.notes if drawn else self.report.problems).append(
                f"The label map “{labels.name}” in {self.report.path.name} has no names. "
                "Import it into a segmentation (module “Segmentations”) and name its segments."
            )
        for volume in volumes:
            try:
                self.report.cases.append(self._case(volume, belonging[volume.id]))
            except SpineSegAIError as error:  # an image that nobody drew on is no loss
                (self.report.problems if belonging[volume.id] else self.report.notes).append(str(error))
        for points in self.document.of_kind(POINT_LIST):
            try:
                self._add_points(points)
            except SpineSegAIError as error:
                self.report.problems.append(str(error))

    def _volume_of(self, segmentation: Node, volumes: list[Node]) -> str:
        """Id of the volume that a segmentation was drawn on."""
        found = segmentation.reference(_REFERENCE_ROLE)
        if found in {volume.id for volume in volumes}:
            return found
        if len(volumes) == 1:
            return volumes[0].id
        raise DatasetError(
            f"“{segmentation.name}” in {self.report.path.name} does not say which of {_listed(volumes)} it belongs to.",
            "Choose its source volume in the Segment Editor and save the scene again.",
        )

    # --- volumes -----------------------------------------------------------------------------------------------------

    def _case(self, volume: Node, segmentations: list[Node]) -> SceneCase:
        image = self._image(volume)
        patient = self.document.patients.get(volume.id)
        case = SceneCase(
            scene=self.report.path.name,
            volume=volume.name,
            patient=_pseudonym(patient) if patient else self.report.path.stem,
            image=image,
        )
        for segmentation in segmentations:
            self._add_segments(case, segmentation)
        self._refuse_overlaps(case)
        extents = {s.placement.extent for s in case.drawn if s.placement.extent}
        if len(extents) > 1:
            raise DatasetError(
                f"“{case.volume}” in {case.scene} has vertebral bodies and whole vertebrae.",
                "Keep the ones or the others.",
            )
        case.extent = extents.pop() if extents else None
        return case

    def _image(self, volume: Node) -> sitk.Image:
        name = f"volume “{volume.name}” in {self.report.path.name}"
        path = self._stored(volume)
        if not _VOLUME_FILE.fullmatch(path.name):
            raise DatasetError(f"The {name} is stored as {path.suffix}, which is not read.", "Save it as .nrrd.")
        try:
            if not path.name.lower().endswith(_OWN_FORMATS):
                if not is_dicom(first_bytes(path, 256)):
                    raise DatasetError(f"The {name} is not a DICOM file.", "Save it as .nrrd.")
                _refuse_links(path.parent, name)
            image = read_image(path, inline=True)
        except ImageError as error:
            raise _unusable(error, path, name) from None
        self._refuse_elsewhere(volume, image, name)
        matrix = self.document.to_world(volume)
        return image if np.allclose(matrix, np.eye(4)) else _moved(image, matrix, name)

    def _stored(self, node: Node) -> Path:
        """The file that holds a node's data."""
        storage = self.document.nodes.get(node.reference("storage"))
        if storage is None or not storage.xml.get("fileName"):
            raise DatasetError(
                f"“{node.name}” in {self.report.path.name} was not saved with the scene.", "Save the scene as .mrb."
            )
        return self.files.file(storage.xml["fileName"])

    def _refuse_elsewhere(self, volume: Node, image: sitk.Image, name: str) -> None:
        """The scene repeats where the volume lies. Slicer may flip the voxel axes as it loads, so that its first voxel
        is one of the file's corners; any other place means that the file was moved as it was loaded."""
        try:
            origin = np.array(volume.xml["origin"].split(), float) * (-1, -1, 1)
        except (KeyError, ValueError):
            return
        last = [n - 1 for n in image.GetSize()]
        corners = [
            image.TransformContinuousIndexToPhysicalPoint([float(n * at) for n, at in zip(last, corner, strict=True)])
            for corner in np.ndindex(2, 2, 2)
        ]
        if min(np.linalg.norm(np.array(corner) - origin) for corner in corners) > _ELSEWHERE_MM:
            raise DatasetError(
                f"The {name} lies elsewhere in its file than in the scene (it was centered, or moved since).",
                "Save the scene again, with the volume.",
            )

    # --- segments ----------------------------------------------------------------------------------------------------

    def _add_segments(self, case: SceneCase, segmentation: Node) -> None:
        name = f"segmentation “{segmentation.name}” in {self.report.path.name}"
        path = self._stored(segmentation)
        if not path.name.lower().endswith(".nrrd"):
            raise DatasetError(
                f"The {name} is stored as surfaces ({path.suffix}).",
                "Make “Binary labelmap” its source representation (module “Segmentations”) and save the scene again.",
            )
        try:
            stored = read_stored(path)
        except ImageError as error:
            raise _unusable(error, path, name) from None
        if not stored.segments:
            case.notes.append(f"The {name} has no segments.")
        layers = self._on_volume(stored.image, segmentation, case.image)
        others = {s.placement.target: s.name for s in case.segments if s.is_drawn}
        for segment in stored.segments:
            placement = place(segment.name, segment.tags, self.table, self.customs)
            found = SceneSegment(segment.name, placement, layers[segment.layer], segment.value)
            case.segments.append(found)
            if found.placement.note:
                case.notes.append(found.placement.note)
            if not found.voxels:
                case.notes.append(f"“{segment.name}” is empty and is omitted.")
            elif found.placement.target in others and found.is_drawn:
                raise DatasetError(
                    f"“{case.volume}” in {case.scene} has two segmentations with {found.placement.target}.",
                    "Keep the one that is right, or point the other at another volume.",
                )
        merged: dict[str, list[str]] = {}
        for s in case.segments:
            if s.is_drawn:
                merged.setdefault(s.placement.target, []).append(s.name)
        for target, names in merged.items():
            if len(names) > 1:
                case.notes.append(f"{' and '.join(f'“{n}”' for n in names)} are both taken as {target} and are merged.")
        case.corrections = case.corrections or _corrections(segmentation, stored.segments, case)

    def _on_volume(self, stored: sitk.Image, segmentation: Node, image: sitk.Image) -> list[np.ndarray]:
        """Every layer (z, y, x) on the voxels of the image, nearest neighbor."""
        to_local = np.linalg.inv(RAS_FROM_LPS @ self.document.to_world(segmentation) @ RAS_FROM_LPS)
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(to_local[:3, :3].ravel().tolist())
        transform.SetTranslation(to_local[:3, 3].tolist())
        return layers_of(sitk.Resample(stored, image, transform, sitk.sitkNearestNeighbor, 0))

    def _refuse_overlaps(self, case: SceneCase) -> None:
        drawn = case.drawn
        taken = np.zeros(case.image.GetSize()[::-1], np.int16)
        for number, segment in enumerate(drawn, start=1):
            below, counts = np.unique(taken[segment.mask], return_counts=True)
            for under, count in zip(below.tolist(), counts.tolist(), strict=True):
                other = drawn[under - 1]
                if not under or other.placement.target == segment.placement.target:
                    continue
                own = segment.placement.target.startswith(CUSTOM) != other.placement.target.startswith(CUSTOM)
                share = count / min(segment.voxels, other.voxels)
                if share > MAX_OVERLAP and not own:
                    raise DatasetError(
                        f"“{other.name}” and “{segment.name}” in {case.scene} overlap by {share:.0%} of the smaller.",
                        "Correct them in the Segment Editor, or omit one with “=ignore”.",
                    )
                case.notes.append(f"“{segment.name}” overlaps “{other.name}” in {count} voxels, which it gets.")
            taken[segment.mask] = number

    # --- points ------------------------------------------------------------------------------------------------------

    def _add_points(self, points: Node) -> None:
        name = f"point list “{points.name}” in {self.report.path.name}"
        storage = self.document.nodes.get(points.reference("storage"))
        if storage is None or not storage.xml.get("fileName"):
            return  # an empty list is not saved
        path = self._stored(points)
        if not path.name.lower().endswith(".json"):
            raise DatasetError(f"The {name} is stored as {path.suffix}, which is not read.", "Save it as .mrk.json.")
        if path.stat().st_size > MAX_VOXELS // 64:
            raise DatasetError(f"The {name} is too large.", "Remove it from the scene.")
        matrix = RAS_FROM_LPS @ self.document.to_world(points) @ RAS_FROM_LPS
        placed: dict[str, Point] = {}
        unplaced = []
        for label, position in read_control_points(path):
            target = place(label, {}, self.table, self.customs).target
            if target == IGNORE:
                continue
            if not target or target.startswith(CUSTOM) or not structure(target).is_counted:
                unplaced.append(f"“{label}”")
                continue
            if target in placed:
                raise DatasetError(f"The {name} has two points for {target}.", "Keep one point for each structure.")
            world = matrix @ [*position, 1.0]
            placed[target] = (float(world[0]), float(world[1]), float(world[2]))
        if not placed:
            if unplaced:
                self.report.notes.append(f"The {name} has no point that is named after a vertebra or disc.")
            return
        case = self._around(placed, name)
        case.keypoints.update(placed)
        if unplaced:
            case.notes.append(f"Omitted from the {name}, since they name no vertebra or disc: {', '.join(unplaced)}.")

    def _around(self, placed: Mapping[str, Point], name: str) -> SceneCase:
        """The case whose image holds the points."""
        holding = [case for case in self.report.cases if all(_inside(case.image, p) for p in placed.values())]
        segmented = [case for case in holding if case.segments]
        if len(holding) > 1 and len(segmented) == 1:
            holding = segmented
        if len(holding) != 1:
            why = "none of its volumes holds them all" if not holding else "several volumes hold them"
            raise DatasetError(
                f"Cannot determine which volume the {name} belongs to: {why}.",
                "Save the points in a scene with their volume alone.",
            )
        return holding[0]


# --- files -----------------------------------------------------------------------------------------------------------


def _unusable(error: ImageError, path: Path, name: str) -> DatasetError:
    """What is wrong with a file, said of its node: the file's name is one that nobody knows."""
    message = error.message
    message = message.replace(f"“{path.name}”", "its file").replace(path.name, "its file")
    return DatasetError(f"The {name} cannot be used: {message[0].lower()}{message[1:]}", error.remedy)


def _refuse_links(folder: Path, name: str) -> None:
    """A DICOM file stands for its series, whose other files lie beside it: none of them may be elsewhere."""
    if any(path.is_symlink() for path in folder.iterdir()):
        raise DatasetError(f"The {name} lies in a folder with links to other places.", "Save the scene as .mrb.")


def _moved(image: sitk.Image, matrix: np.ndarray, name: str) -> sitk.Image:
    """The image where a linear transform (RAS) puts it.

    Raises:
        DatasetError: the transform shears it, so that its voxels are no longer boxes.
    """
    g = Geometry.of(image)
    to_lps = np.eye(4)
    to_lps[:3, :3], to_lps[:3, 3] = g.matrix * g.spacing, g.origin
    moved = RAS_FROM_LPS @ matrix @ RAS_FROM_LPS @ to_lps
    spacing = np.linalg.norm(moved[:3, :3], axis=0)
    direction = moved[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        raise DatasetError(
            f"The transform of the {name} shears it.", "Harden it and resample the volume in Slicer, then save again."
        )
    u, _, vt = np.linalg.svd(direction)  # the nearest true rotation: file formats insist on one
    result = sitk.Image(image)
    result.SetSpacing(spacing.tolist())
    result.SetOrigin(moved[:3, 3].tolist())
    result.SetDirection((u @ vt).ravel().tolist())
    return check_image(result, name=name)


def _inside(image: sitk.Image, point: Point) -> bool:
    index = image.TransformPhysicalPointToContinuousIndex(point)
    return all(-0.5 <= i <= n - 0.5 for i, n in zip(index, image.GetSize(), strict=True))


def _corrections(segmentation: Node, segments: Sequence[StoredSegment], case: SceneCase) -> Any:
    """The correction log, if there is one that can be read."""
    texts = [segmentation.attributes.get(LOG_ATTRIBUTE), *(s.tags.get(LOG_ATTRIBUTE) for s in segments)]
    for text in filter(None, texts):
        try:
            return parse_json(text, "the log", DatasetError)
        except DatasetError:
            case.notes.append(f"The correction log of “{segmentation.name}” cannot be read and is omitted.")
    return None


def _pseudonym(patient: str) -> str:
    """The same for the same patient in every scene, and not who it is."""
    return f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:10]}"


def _listed(nodes: list[Node]) -> str:
    return ", ".join(f"“{node.name}”" for node in nodes)
