"""How a checkpoint draws the top of S1: ``python Testing/Benchmarks/sacrum.py CHECKPOINT DATA``.

No case of the data has an S1 that a reader drew. Its upper corners were placed on zoomed pictures of the midline in ten
validation cases, by one person, to about a millimeter. Printed, for each case and on average: the tilt of the upper
endplate by these corners and as it is measured on the checkpoint's outline, and the slip of L5 on S1, for which the
corner of L5 is taken from the reader's outline of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from SpineSegAILib import Predictor, Segmentation  # noqa: E402
from SpineSegAILib.anatomy import SACRUM_ID, scheme, structure  # noqa: E402
from SpineSegAILib.datasets.manifest import read_case, read_cases  # noqa: E402
from SpineSegAILib.results import drop_unvalidated  # noqa: E402
from SpineSegAILib.results.measurement.endplates import Endplate  # noqa: E402
from SpineSegAILib.results.measurement.rows import NotMeasured  # noqa: E402
from SpineSegAILib.results.measurement.scan import Scan  # noqa: E402
from SpineSegAILib.results.measurement.spine import Column, slip  # noqa: E402
from SpineSegAILib.results.measurement.table import outlines  # noqa: E402

CORNERS = {
    "spider_034": ((248.1, 135.8), (230.1, 169.0)),
    "spider_055": ((259.7, 96.9), (238.5, 123.6)),
    "spider_081": ((225.5, 116.1), (209.9, 147.2)),
    "spider_142": ((237.5, 110.4), (220.1, 139.5)),
    "spider_191": ((253.4, 124.5), (235.5, 147.7)),
    "spider_241": ((266.0, 149.7), (240.0, 167.3)),
    "chu_08": ((279.6, 193.4), (259.3, 218.2)),
    "myo_07": ((214.0, 99.2), (190.9, 121.8)),
    "myo_25": ((216.2, 100.1), (198.7, 122.4)),
    "myo_45": ((211.4, 80.3), (190.3, 105.5)),
}
"""Front and back upper corner of S1 in the midline: mm down from the first row, and backwards from the first column."""
L5 = structure("L5").id


def endplates(segmentation: Segmentation) -> dict[int, tuple[Endplate, Endplate]]:
    """The upper and the lower endplate of what has any, by id; of S1 the upper one, twice."""
    return outlines(Scan(segmentation.labels, segmentation.scheme.extent), segmentation)[1].plates


def slip_of_l5(plates: dict[int, tuple[Endplate, Endplate]]) -> float | None:
    """As a user gets it, mm; None where it is not given."""
    try:
        return slip(Column(plates=plates), (L5, 1), (SACRUM_ID, 0), L5)
    except NotMeasured:
        return None


def main(checkpoint: str, data: Path) -> None:
    """Print the table."""
    predictor = Predictor(checkpoint)
    cases = {
        c.name: c for c in read_cases([data / "lumbar_mr/dataset.json", data / "spider/dataset.json"], "validation")
    }
    print("| case | tilt, placed | tilt, measured | slip, placed | slip, measured |\n|---|---|---|---|---|")
    tilts, slips = [], []
    for name, (front, back) in CORNERS.items():
        image, label = read_case(cases[f"{name}_image"])
        front, back = np.array([0.0, *front]), np.array([0.0, *back])
        placed = Endplate((back - front) / np.linalg.norm(back - front), back, 0.0, corner=back)
        reader = endplates(Segmentation(label, scheme("lumbar-mr")))
        found = endplates(drop_unvalidated(predictor.segment(image), None, ""))
        tilt = found[SACRUM_ID][0].tilt if SACRUM_ID in found else None
        wanted, given = slip_of_l5({**reader, SACRUM_ID: (placed, placed)}), slip_of_l5(found)
        if tilt is not None:
            tilts.append(tilt - placed.tilt)
        if wanted is not None and given is not None:
            slips.append(given - wanted)
        shown = (placed.tilt, tilt, wanted, given)
        print(f"| {name} |", " | ".join("–" if x is None else f"{x:.1f}" for x in shown), "|", flush=True)
    print()
    for what, errors, unit in (("tilt", tilts, "°"), ("slip", slips, " mm")):
        e = np.array(errors)
        told = (
            f"bias {e.mean():.1f}, mean error {abs(e).mean():.1f}, largest {abs(e).max():.1f}{unit}" if len(e) else ""
        )
        print(f"{what}: {len(e)} of {len(CORNERS)} measured; {told}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
