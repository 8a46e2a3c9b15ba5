"""How good a segmentation is: overlap, surface distance and whether the levels are right; over a case and a dataset.

Conventions. A structure that is absent in both masks is skipped; one that is absent in exactly one has Dice and IoU 0
and no surface distances (NaN here, null in JSON), and how many these are is reported, since omitting them flatters a
method that misses structures. Surfaces are the voxels of a mask with a 6-neighbor outside it, distances run between
voxel centers in mm, HD95 is the larger of the two directed 95th percentiles, ASD the mean over both surfaces, surface
Dice the share of both surfaces' voxels within 1 mm of the other. Distances in pixels are those of single sagittal
slices, as papers on 2D networks give them. Level-strict results compare with the predicted structure of the same name,
matched ones with the one that overlaps most, whatever its level.
"""

from .dataset import HintMaker, Seen, Segmenter, evaluate_dataset
from .masks import dice, hd95_and_asd, surface_distances, surface_measures
from .report import format_report, write_csv, write_report
from .scores import CaseReport, Panoptic, StructureScore, UnscoredVolume, evaluate_case
from .summary import summarize
from .variants import VARIANTS, make_variant

__all__ = [
    "VARIANTS",
    "CaseReport",
    "HintMaker",
    "Panoptic",
    "Seen",
    "Segmenter",
    "StructureScore",
    "UnscoredVolume",
    "dice",
    "evaluate_case",
    "evaluate_dataset",
    "format_report",
    "hd95_and_asd",
    "make_variant",
    "summarize",
    "surface_distances",
    "surface_measures",
    "write_csv",
    "write_report",
]
