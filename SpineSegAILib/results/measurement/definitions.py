"""What is measured: every column of the table, with its unit and how its value is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """What a column of the table means.

    Attributes:
        key: name of the column, ends with the unit.
        label: for readers.
        unit: ``"mm"``, ``"mL"``, ``"°"``, or empty for a ratio.
        method: how it is measured.
        word: the same within a sentence; the label with a small letter, if empty.
    """

    key: str
    label: str
    unit: str
    method: str
    word: str = ""

    @property
    def has_scale(self) -> bool:
        """Whether it means nothing where the size of a pixel is not known."""
        return self.unit in ("mm", "mL")


_PROFILE = "distance between the endplates along the structure's axis, {} % of the way from its front to its back"

MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("volume_ml", "Volume", "mL", "voxels times voxel volume"),
    Measurement("height_anterior_mm", "Anterior height", "mm", _PROFILE.format(10)),
    Measurement("height_middle_mm", "Middle height", "mm", _PROFILE.format(50)),
    Measurement("height_posterior_mm", "Posterior height", "mm", _PROFILE.format(90)),
    Measurement("height_mean_mm", "Mean height", "mm", "of a disc: the same, mean from 10 to 90 % of the depth"),
    Measurement("depth_mm", "AP diameter", "mm", "front to back in the sagittal plane, at half height"),
    Measurement(
        "canal_depth_mm",
        "Canal AP diameter",
        "mm",
        "front to back of the canal at the level of the structure's center, square to the canal; only for canals from "
        "a model that was validated on real ones",
    ),
    Measurement(
        "disc_height_index",
        "Disc height index",
        "",
        "mean height of the disc over the mean height of the vertebrae above and below it (Masuda et al. 2005), or of "
        "the one of the two that has heights, as above S1",
    ),
    Measurement(
        "endplate_angle_deg",
        "Endplate angle",
        "°",
        "sagittal angle between the upper and the lower endplate of a vertebra, or between the endplates beside a "
        "disc, each as the line between its rims; positive if it opens to the front. The upper endplate of S1 is the "
        "lower face of the disc above it, or its own upper edge where that has its back corner and both agree",
    ),
    Measurement(
        "slip_mm",
        "Anterolisthesis (slip)",
        "mm",
        "how far a vertebra's lower back corner lies in front of the upper back corner of the next one below, along "
        "the disc between them; negative backwards (retrolisthesis)",
        "slip",
    ),
    Measurement(
        "tilt_deg",
        "Tilt in a film",
        "°",
        "of the line between the middles of a vertebra's sides against the picture's rows; positive where its right "
        "end in the picture is lower",
        "tilt",
    ),
    Measurement(
        "curve_deg",
        "Cobb angle of a curve",
        "°",
        "in a film, between the upper endplate of the curve's upper end vertebra and the lower one of its lower end "
        "vertebra: those tilted most against each other, then those beyond them that bend back by 10° or more",
        "Cobb angle of a curve",
    ),
    *(
        Measurement(
            f"centroid_{frame}_{axis}_mm",
            f"Center, {letter} ({frame.upper()})",
            "mm",
            "mean position of the voxels that are in view; of the part in view where the border cuts the structure",
        )
        for frame in ("lps", "ras")
        for axis, letter in zip("xyz", frame.upper(), strict=True)
    ),
)
"""Every measurement of a structure, in the order of the table's columns."""

SPINE_MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement("lordosis_deg", "Lordosis L1–S1", "°", "sagittal angle between the upper endplates of L1 and S1"),
    Measurement(
        "lordosis_l1_l5_deg",
        "Lordosis L1–L5",
        "°",
        "sagittal angle between the upper endplate of L1 and the lower one of L5",
    ),
    Measurement(
        "scoliosis_deg",
        "Cobb angle (supine)",
        "°",
        "largest angle, in the coronal plane, between any two vertebrae wholly in view",
        "Cobb angle (supine)",
    ),
    *(
        Measurement(f"cobb_{key}_deg", f"{label} Cobb angle", "°", f"in a film with T1 to L5 in view: {method}")
        for key, label, method in (
            ("main", "Main", "largest angle between any two vertebrae"),
            ("upper", "Proximal thoracic", "the one above it, by the rule of the AASCE challenge"),
            ("lower", "Thoracolumbar", "the one below it, by the rule of the AASCE challenge"),
        )
    ),
)
"""What is measured of the spine as a whole: columns of the last row of `measure_all`."""

FILM = ("tilt_deg", "curve_deg", "cobb_main_deg", "cobb_upper_deg", "cobb_lower_deg")
"""What is measured in films from the front, where nothing else is, and nowhere else."""

EVERY: dict[str, Measurement] = {m.key: m for m in (*MEASUREMENTS, *SPINE_MEASUREMENTS)}
"""All of them by key."""

SPINE = "spine"
"""``structure`` of the row of the spine as a whole."""

COLUMNS: tuple[str, ...] = (
    "id", "structure", "name", "kind", "level_confidence", "outline_quality", "unvalidated", "touches_border",
    *(m.key for m in SPINE_MEASUREMENTS), *(m.key for m in MEASUREMENTS), "notes",
)  # fmt: skip
"""Columns of the table. `level_confidence` is that of the result and stands in the row of the spine."""

SHORT_COLUMNS: tuple[str, ...] = (
    "structure", "volume_ml", "height_anterior_mm", "height_middle_mm", "height_posterior_mm", "endplate_angle_deg",
    "slip_mm", *(m.key for m in SPINE_MEASUREMENTS if m.key not in FILM), "outline_quality", "notes",
)  # fmt: skip
"""The columns that a reader wants; the default of files."""

FILM_COLUMNS: tuple[str, ...] = ("structure", *FILM, "outline_quality", "notes")
"""The same of a film."""
