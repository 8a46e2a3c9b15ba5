"""Slicer scenes written by hand, in the form that Slicer writes them (Testing/Slicer uses Slicer's own)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import SimpleITK as sitk

SIZE = (10, 40, 30)  # slices, rows, columns
SAGITTAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def volume_image(seed: int = 0, size: tuple[int, int, int] = SIZE) -> sitk.Image:
    """A sagittal stack of noise, 4 mm slices, 1.5 mm pixels."""
    array = np.random.default_rng(seed).integers(1, 200, size).astype(np.int16)
    return sagittal(array)


def sagittal(array: np.ndarray) -> sitk.Image:
    """(slices, rows, columns) as an image that runs to the left, downwards and backwards."""
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    image.SetSpacing((1.5, 1.5, 4.0))
    image.SetOrigin((-20.0, -30.0, 40.0))
    image.SetDirection(SAGITTAL)
    return image


def box(rows: slice, slices: slice = slice(2, 8), columns: slice = slice(8, 22)) -> np.ndarray:
    """A block of voxels (bool)."""
    mask = np.zeros(SIZE, bool)
    mask[slices, rows, columns] = True
    return mask


class Scene:
    """Collects nodes and files; `write` makes a .mrb or .mrml of them."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.files: dict[str, bytes | sitk.Image] = {}
        self.hierarchy: list[str] = []

    def node(self, kind: str, number: int, name: str, references: Mapping[str, str] | None = None, **more: str) -> str:
        ids = {
            "Volume": "vtkMRMLScalarVolumeNode",
            "VolumeArchetypeStorage": "vtkMRMLVolumeArchetypeStorageNode",
        }
        node_id = f"{ids.get(kind, f'vtkMRML{kind}Node')}{number}"
        said = "".join(f"{role}:{target};" for role, target in (references or {}).items())
        text = " ".join(f"{key}={quoteattr(value)}" for key, value in more.items())
        self.nodes.append(
            f'<{kind}\n  id="{node_id}" name={quoteattr(name)} references={quoteattr(said)} {text} ></{kind}>'
        )
        return node_id

    def stored(self, kind: str, number: int, file: str, content: bytes | sitk.Image) -> str:
        self.files[f"Data/{file}"] = content
        return self.node(kind, number, kind, fileName=quote(f"Data/{file}"), fileListMember0=quote(f"Data/{file}"))

    def volume(self, name: str = "T2", image: sitk.Image | None = None, transform: str = "", number: int = 1) -> str:
        image = volume_image() if image is None else image
        storage = self.stored("VolumeArchetypeStorage", number, f"{name}.nrrd", image)
        x, y, z = image.GetOrigin()
        references = {"storage": storage, **({"transform": transform} if transform else {})}
        return self.node("Volume", number, name, references, origin=f"{-x:g} {-y:g} {z:g}")

    def transform(self, matrix: np.ndarray, parent: str = "", number: int = 1, kind: str = "LinearTransform") -> str:
        text = "  ".join(" ".join(f"{v:g}" for v in row) for row in np.asarray(matrix, float))
        values = {"matrixTransformToParent": text} if kind == "LinearTransform" else {}
        return self.node(kind, number, f"Transform {number}", {"transform": parent} if parent else {}, **values)

    def segmentation(
        self,
        segments: Mapping[str, np.ndarray],
        volume: str = "",
        *,
        name: str = "Segmentation",
        tags: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
        transform: str = "",
        number: int = 1,
        image: sitk.Image | None = None,
    ) -> str:
        """Segments as masks (slices, rows, columns); those that overlap get a layer of their own.

        Args:
            tags: segment name → tags as Slicer writes them.
            image: layers and header of its own, instead of masks.
        """
        if image is None:
            layers: list[np.ndarray] = [np.zeros(SIZE, np.uint8)]
            described = []
            for value, (label, mask) in enumerate(segments.items(), start=1):
                layer = next((i for i, other in enumerate(layers) if not other[mask].any()), None)
                if layer is None:
                    layers.append(np.zeros(SIZE, np.uint8))
                    layer = len(layers) - 1
                layers[layer][mask] = value
                described.append((label, layer, value))
            image = sagittal(layers[0] if len(layers) == 1 else np.stack(layers, -1))
            for n, (label, layer, value) in enumerate(described):
                for key, text in (("ID", f"S_{n}"), ("Name", label), ("Layer", str(layer)), ("LabelValue", str(value)),
                                  ("Tags", (tags or {}).get(label, "")), ("Extent", "0 9 0 39 0 29")):  # fmt: skip
                    image.SetMetaData(f"Segment{n}_{key}", text)
        storage = self.stored("SegmentationStorage", number, f"{name}.seg.nrrd", image)
        references = {"storage": storage}
        if volume:
            references["referenceImageGeometryRef"] = volume
        if transform:
            references["transform"] = transform
        said = ";".join(f"{quote(k)}:{quote(v)}" for k, v in (attributes or {}).items())
        return self.node("Segmentation", number, name, references, **({"attributes": said} if said else {}))

    def points(self, content: str, *, name: str = "points", transform: str = "", number: int = 1) -> str:
        storage = self.stored("MarkupsJsonStorage", number, f"{name}.mrk.json", content.encode())
        references = {"storage": storage, **({"transform": transform} if transform else {})}
        return self.node("MarkupsFiducial", number, name, references)

    def patient(self, patient_id: str, *nodes: str) -> None:
        items = "".join(
            f'<SubjectHierarchyItem id="9{i}" dataNode="{n}"></SubjectHierarchyItem>' for i, n in enumerate(nodes)
        )
        attributes = quoteattr(f"DICOM.PatientID^{patient_id}|Level^Patient|")
        self.hierarchy.append(
            f'<SubjectHierarchyItem id="8" name="Doe^J" attributes={attributes}>{items}</SubjectHierarchyItem>'
        )

    def document(self) -> str:
        body = "\n ".join([f"<SubjectHierarchy id=\"vtkMRMLSubjectHierarchyNode1\">{''.join(self.hierarchy)}"
                           "</SubjectHierarchy>", *self.nodes])  # fmt: skip
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<MRML version="Slicer 5.8">\n {body}\n</MRML>\n'

    def write(self, path: Path, document: str | bytes | None = None) -> Path:
        """A .mrb, or a .mrml with its folder Data, by the path's suffix."""
        folder = path.parent / f"{path.stem}-files" if path.suffix == ".mrb" else path.parent
        text = self.document() if document is None else document
        data = text.encode() if isinstance(text, str) else text
        for name, content in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                sitk.WriteImage(content, str(target), useCompression=True)
        if path.suffix == ".mrml":
            path.write_bytes(data)
            return path
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{path.stem}/{path.stem}.mrml", data)
            for name in self.files:
                archive.write(folder / name, f"{path.stem}/{name}")
        return path


def lumbar(seed: int = 0, **more) -> Scene:
    """One volume with L4, L4/L5 and L5, named in English."""
    scene = Scene()
    volume = scene.volume(image=volume_image(seed))
    scene.segmentation(
        {"L4 vertebra": box(slice(5, 14)), "L4-L5 disc": box(slice(14, 18)), "vertebra L5": box(slice(18, 27))},
        volume, **more,
    )  # fmt: skip
    return scene
