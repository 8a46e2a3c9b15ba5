"""What a checkpoint's last features make of the structures: a vector for each, how far apart they lie, and a picture.

As in figure 4 of ATM-Net (t-SNE of structures' features), for every method.

What it can tell: whether the features from which the voxels' classes are made already hold the structures apart, and
which ones lie together, which are those that the last layers must find hard to tell. What it cannot tell: whether a
structure is found at all, since the reference says where to look; where its edge is; or, in t-SNE, anything by the size
of a cluster or the distance between clusters. A method may name levels by other means, by coarser features or by
anatomy (`consistency`), and be right although levels lie together here: the default method does. Slices of a case are
like each other, so that few cases look better than many; and structures that are annotated in different cases also
differ by their images. The silhouette is of the features themselves, not of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..anatomy import STRUCTURES
from ..datasets.manifest import Case
from ..errors import DatasetError, ImageError, MissingPackageError
from ..files import atomic_write
from . import plots
from .on_grid import LabelledVolume, load_labelled

if TYPE_CHECKING:
    from ..inference import Predictor

FEWEST = 10
"""Vectors that an embedding needs: with fewer, the perplexity is below 3, and t-SNE sees nothing but pairs."""
_PERPLEXITY = 30.0  # scikit-learn's own; three times as many neighbors are looked at
_SEED = 0


@dataclass(frozen=True)
class StructureVectors:
    """Features of structures, one row for each slice of a case in which a structure is annotated.

    Attributes:
        values: (N, F) mean over the structure's voxels in the slice of what the last layers read.
        ids: (N,) structure ids.
        cases: N names of cases.
        slices: (N,) slices of the network's grid.
    """

    values: np.ndarray
    ids: np.ndarray
    cases: tuple[str, ...]
    slices: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def require_scikit_learn() -> None:
    """Finds out early whether an embedding can be made.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            "The embedding needs scikit-learn, which is not installed.", "pip install scikit-learn"
        ) from None


def collect_vectors(
    predictor: Predictor,
    cases: Sequence[Case],
    *,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> StructureVectors:
    """The vectors of all annotated structures, where the reference says they are.

    Cases without a label, and those whose image the checkpoint does not take, have none.

    Args:
        predictor: the checkpoint.
        cases: of a manifest.
        options: run-time options, as for `Predictor.segment`; anatomy counts as of an adult's size.
        progress: called with a fraction and a sentence.

    Raises:
        DatasetError: there are fewer than `FEWEST`.
        ConfigError: an option is unknown.
    """
    report = progress or (lambda fraction, message: None)
    rows: list[tuple[str, int, int, np.ndarray]] = []
    for number, case in enumerate(cases):
        report(number / len(cases), f"{case.name}, features")
        try:
            loaded = load_labelled([case], predictor.preprocessing)
        except ImageError:  # the evaluation counts and names it
            continue
        for seen in loaded:
            rows += [(case.name, *row) for row in _case_rows(seen, predictor.features(seen.volume, options))]
    if len(rows) < FEWEST:
        raise DatasetError(
            f"The structures annotated in these cases give {len(rows)} vectors, one for each in each slice; an "
            f"embedding needs {FEWEST}.",
            "Use a split with more labeled structures, or do without the embedding.",
        )
    names, slices, ids, values = zip(*rows, strict=True)
    return StructureVectors(np.stack(values), np.array(ids), names, np.array(slices))


def _case_rows(case: LabelledVolume, features: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Slice, structure and mean (F,) of the (F, D, H, W) features over it."""
    rows = []
    for index, label in enumerate(case.label):
        for sid in np.unique(label[label > 0]).tolist():
            rows.append((index, sid, features[:, index, label == sid].mean(1, dtype=np.float32)))
    return rows


def silhouette(vectors: StructureVectors) -> dict[str, float | None]:
    """How well vectors lie with their like, −1 to 1: mean silhouette in the space of the features (Euclidean).

    ``structures`` takes those of the same structure for alike, ``kinds`` those of the same kind. None where there are
    not at least two groups, or no two vectors are alike.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.metrics import silhouette_score

    kinds = np.array([STRUCTURES[sid].kind.value for sid in vectors.ids.tolist()])
    result: dict[str, float | None] = {}
    for name, groups in (("structures", vectors.ids), ("kinds", kinds)):
        possible = 1 < len(np.unique(groups)) < len(groups)
        result[name] = float(silhouette_score(vectors.values, groups)) if possible else None
    return result


def place(vectors: StructureVectors) -> np.ndarray:
    """(N, 2) places by t-SNE; the same vectors have the same places.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    require_scikit_learn()
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=_SEED).fit_transform(vectors.values)


def write_embedding(vectors: StructureVectors, path: str | Path, *, title: str = "") -> dict[str, Any]:
    """Writes the picture as PNG.

    Args:
        title: what the vectors are of: checkpoint and split.

    Returns:
        For the report, JSON-able: the number of vectors and the `silhouette`.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = silhouette(vectors)
    said = ", ".join(f"of {name} {value:.2f}".replace("-", "−") for name, value in found.items() if value is not None)
    lines, count = [title] if title else [], len(set(vectors.cases))
    where = f"{count} cases" if count > 1 else "one case"
    lines.append(f"{len(vectors)} vectors, one for each structure in each slice; {where}")
    if said:
        lines.append(f"Silhouette {said}")
    figure = plots.scatter(place(vectors), vectors.ids, "\n".join(lines))
    with atomic_write(path) as (part,):
        FigureCanvasAgg(figure).print_png(str(part), metadata={"Software": "SpineSegAI"})
    return {"vectors": len(vectors), "silhouette": found}
