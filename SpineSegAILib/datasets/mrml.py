"""Slicer's scene file (MRML, an XML dialect) as nodes: no entities, no document type, no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn
from urllib.parse import unquote
from xml.parsers import expat

import numpy as np

from ..errors import DatasetError

SEGMENTATION, VOLUME, LABEL_MAP = "Segmentation", "Volume", "LabelMapVolume"
LINEAR_TRANSFORM = "LinearTransform"
POINT_LIST = "MarkupsFiducial"


@dataclass(frozen=True)
class Node:
    """One element of a scene.

    Attributes:
        kind: the element's name, e.g. ``Volume``.
        xml: its XML attributes as they are.
    """

    kind: str
    xml: Mapping[str, str]

    @property
    def id(self) -> str:
        """``vtkMRMLScalarVolumeNode1``."""
        return self.xml.get("id", "")

    @property
    def name(self) -> str:
        """What users see."""
        return self.xml.get("name", "") or self.id

    @cached_property
    def attributes(self) -> dict[str, str]:
        """The node's own attributes: MRML writes them as ``name:value;…``, percent-encoded."""
        pairs = (entry.partition(":") for entry in self.xml.get("attributes", "").split(";") if ":" in entry)
        return {unquote(name): unquote(value) for name, _, value in pairs}

    def reference(self, role: str) -> str:
        """Id of the first node referred to in a role; empty if there is none."""
        for entry in self.xml.get("references", "").split(";"):
            found, _, ids = entry.partition(":")
            if found == role and ids.split():
                return ids.split()[0]
        return ""


@dataclass
class Document:
    """A scene: its nodes by id, and the patient that the subject hierarchy puts a node under.

    Attributes:
        patients: node id → patient identifier (DICOM) or name; only of nodes for which there is one.
    """

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[Node]:
        """Nodes of these kinds, in the scene's order."""
        return [node for node in self.nodes.values() if node.kind in kinds]

    def to_world(self, node: Node) -> np.ndarray:
        """(4, 4) matrix of a node's parent transforms, RAS to RAS (mm).

        Raises:
            DatasetError: one of them is not linear, is missing, or they form a circle.
        """
        matrix, seen = np.eye(4), set()
        parent = node.reference("transform")
        while parent:
            transform = self.nodes.get(parent)
            if transform is None or parent in seen:
                raise DatasetError(f"The transform of “{node.name}” in {self.name} is missing.", "Save it again.")
            seen.add(parent)
            if transform.kind != LINEAR_TRANSFORM:
                raise DatasetError(
                    f"“{node.name}” in {self.name} is under “{transform.name}”, which is not a linear transform.",
                    "Harden it in the module “Transforms” and save the scene again.",
                )
            matrix = _matrix(transform, self.name) @ matrix
            parent = transform.reference("transform")
        return matrix


def parse(data: bytes, name: str) -> Document:
    """A scene's nodes.

    Args:
        data: the XML.
        name: what to call the scene in messages.

    Raises:
        DatasetError: it is damaged, no scene, or uses what no scene of Slicer's has (a document type, entities).
    """
    document = Document(name)
    roots: list[str] = []
    patients: list[str] = []  # of the items of the subject hierarchy that are open

    def refuse(*_: object) -> NoReturn:
        raise DatasetError(
            f"The scene {name} declares XML entities, as no scene of Slicer's does.",
            "It may be an attack; do not use it.",
        )

    def start(kind: str, xml: dict[str, str]) -> None:
        roots.append(kind)
        if kind == "SubjectHierarchyItem":
            patients.append(_patient(xml) or (patients[-1] if patients else ""))
            if xml.get("dataNode") and patients[-1]:
                document.patients[xml["dataNode"]] = patients[-1]
        elif xml.get("id"):
            document.nodes[xml["id"]] = Node(kind, xml)

    def end(kind: str) -> None:
        if kind == "SubjectHierarchyItem":
            patients.pop()

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DatasetError(f"The scene {name} is damaged: {error}.", "Save or copy it again.") from None
    if roots[0] != "MRML":
        raise DatasetError(f"{name} is not a Slicer scene.", "Give a .mrb or .mrml file.")
    return document


def _patient(xml: Mapping[str, str]) -> str:
    """Who an item of the subject hierarchy is, if it is a patient."""
    pairs = (entry.partition("^") for entry in xml.get("attributes", "").split("|"))
    attributes = {name: value for name, _, value in pairs}
    if attributes.get("Level") != "Patient":
        return ""
    return attributes.get("DICOM.PatientID") or xml.get("name", "")


def _matrix(transform: Node, scene: str) -> np.ndarray:
    try:
        matrix = np.array(transform.xml["matrixTransformToParent"].split(), float).reshape(4, 4)
    except (KeyError, ValueError):
        matrix = np.zeros((4, 4))
    projects = not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0))
    if projects or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise DatasetError(f"The transform “{transform.name}” in {scene} is damaged.", "Save the scene again.")
    return matrix
