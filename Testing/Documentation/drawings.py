"""Draws how each measurement is taken, on a synthetic spine, from what the library itself computes.

python Testing/Documentation/drawings.py      # writes Resources/Documentation/pictures/measure-*.svg
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "Resources/Documentation/pictures"
INK, LINE = "#1c2733", "#c1121f"

DRAWINGS: dict[str, tuple[str, ...]] = {
    "volume": ("volume_ml",),
    "heights": ("height_anterior_mm", "height_middle_mm", "height_posterior_mm"),
    "mean-height": ("height_mean_mm",),
    "depth": ("depth_mm",),
    "canal": ("canal_depth_mm",),
    "disc-height-index": ("disc_height_index",),
    "endplate-angle": ("endplate_angle_deg",),
    "slip": ("slip_mm",),
    "center": tuple(f"centroid_{frame}_{axis}_mm" for frame in ("lps", "ras") for axis in "xyz"),
    "lordosis": ("lordosis_deg",),
    "lordosis-l1-l5": ("lordosis_l1_l5_deg",),
    "cobb": ("scoliosis_deg",),
    "film-tilt": ("tilt_deg",),
    "film-curves": ("curve_deg", "cobb_main_deg", "cobb_upper_deg", "cobb_lower_deg"),
}
"""Drawing → the measurements that it shows."""


class Spine:
    """A synthetic spine with what the library finds in it. Positions are mm: slice, down, back."""

    def __init__(self, **spec: object) -> None:
        from SpineSegAILib.anatomy import SCHEMES
        from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
        from SpineSegAILib.results import Segmentation
        from SpineSegAILib.results.measurement import measure_all
        from SpineSegAILib.results.measurement.scan import Scan

        values = {"pixel_mm": 0.5, "slice_mm": 2.0, "slices": 31, "width_mm": 150, "top": "T12", **spec}
        made = make_phantom(PhantomSpec.model_validate(values), np.random.default_rng(7))
        segmentation = Segmentation(made.labels, SCHEMES["lumbar-mr"])
        self.rows = {row["structure"]: row for row in measure_all(segmentation)}
        self.scan = Scan(made.labels, segmentation.scheme.extent)

    def body(self, name: str) -> object:
        from SpineSegAILib.anatomy import structure
        from SpineSegAILib.results.measurement.bodies import outline

        return outline(self.scan, structure(name).id, may_be_cut=True)

    def plates(self, name: str) -> tuple[object, object]:
        from SpineSegAILib.anatomy import structure
        from SpineSegAILib.results.measurement.endplates import endplates, sacral_endplate

        if name != "S1":
            return endplates(self.scan, structure(name).id, self.body(name), name)
        above = self.body("L5")
        plate = sacral_endplate(
            self.scan, structure("S1").id, self.body("L5/S1"), self.plates("L5")[1], above.back - above.front
        )
        return plate, plate

    def middle(self) -> int:
        """The slice that the drawings show."""
        return round(self.body("L3").center[0] / self.scan.spacing[0])


@cache
def straight() -> Spine:
    return Spine()


@cache
def slipped() -> Spine:
    return Spine(listhesis={"L4": 8.0})


@cache
def curved() -> Spine:
    return Spine(scoliosis_deg=28.0, slices=81, slice_mm=1.5, width_mm=170)


def axes_of(spine: Spine, names: tuple[str, ...], title: str, *, margin: float = 9.0, width: float = 4.6):
    """Axes that show these structures' outlines in the sagittal slice, and their figure."""
    from matplotlib.figure import Figure

    from SpineSegAILib.anatomy import STRUCTURES, structure

    plane = spine.scan.labels[spine.middle()]
    _, down, back = spine.scan.spacing
    wanted = [structure(name).id for name in names]
    inside = np.argwhere(np.isin(plane, wanted))
    (top, front), (bottom, rear) = inside.min(0) * (down, back) - margin, inside.max(0) * (down, back) + margin
    rows, columns = np.arange(plane.shape[0]) * down, np.arange(plane.shape[1]) * back
    seen = np.ix_((rows > top) & (rows < bottom), (columns > front) & (columns < rear))  # small files
    plane, rows, columns = plane[seen], rows[seen[0].ravel()], columns[seen[1].ravel()]
    figure = Figure(figsize=(width, width * (bottom - top) / (rear - front) + 0.35), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    axes.set_xlim(front, rear)
    axes.set_ylim(bottom, top)
    axes.axis("off")
    figure.text(0.02, 0.995, title, ha="left", va="top", fontsize=10, color=INK)
    for sid in (int(i) for i in np.unique(plane) if i):
        shape = (columns, rows, (plane == sid).astype(float))
        faded = sid not in wanted
        axes.contourf(*shape, levels=(0.5, 2), colors=[STRUCTURES[sid].color], alpha=0.08 if faded else 0.35)
        axes.contour(*shape, levels=(0.5,), colors=[INK], linewidths=0.5, alpha=0.3 if faded else 0.9)
    return figure, axes


def flat(point: np.ndarray) -> tuple[float, float]:
    """(x, y) of a drawing."""
    return float(point[2]), float(point[1])


def segment(axes, start: np.ndarray, end: np.ndarray, text: str = "", *, arrow: bool = True, **style: object) -> None:
    """A measured distance."""
    style = {"color": LINE, "lw": 1.6, **style}
    if arrow:
        axes.annotate("", flat(end), flat(start), arrowprops={"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0, **style})
    else:
        axes.plot(*zip(flat(start), flat(end), strict=True), **style)
    if text:
        write(axes, (start + end) / 2, text)


def write(axes, at: np.ndarray, text: str, *, dx: float = 0.0, dy: float = 0.0) -> None:
    x, y = flat(at)
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85}
    axes.text(x + dx, y + dy, text, ha="center", va="center", fontsize=8.5, color=INK, bbox=box)


def at_share(body, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The points of both endplates at a share of the way from front to back."""
    across = body.front + share * (body.back - body.front)
    upper, lower = (float(np.interp(across, body.depth, edge)) for edge in (body.upper, body.lower))
    return tuple(body.center + across * body.behind + level * body.axis for level in (upper, lower))


def long_line(axes, plate, *, forward: float = 45.0, backward: float = 25.0) -> None:
    segment(axes, plate.point - forward * plate.along, plate.point + backward * plate.along, arrow=False)


# --- one function for each drawing ------------------------------------------------------------------------------------


def volume():
    spine = straight()
    figure, axes = axes_of(spine, ("L3",), "Voxels of the structure times the volume of a voxel")
    write(axes, spine.body("L3").center, f"{spine.rows['L3']['volume_ml']:.1f} mL")
    return figure


def heights():
    spine = straight()
    figure, axes = axes_of(spine, ("L3", "L3/L4"), "Heights: at 10, 50 and 90 % of the way from front to back")
    for name in ("L3", "L3/L4"):
        for share, key in ((0.1, "anterior"), (0.5, "middle"), (0.9, "posterior")):
            segment(axes, *at_share(spine.body(name), share), f"{spine.rows[name][f'height_{key}_mm']:.1f}")
    return figure


def mean_height():
    spine = straight()
    figure, axes = axes_of(spine, ("L3/L4",), "Mean height of a disc: from 10 to 90 % of its depth", margin=14)
    body = spine.body("L3/L4")
    for share in np.linspace(0.1, 0.9, 17):
        segment(axes, *at_share(body, share), arrow=False, lw=0.9)
    write(axes, body.center, f"mean {spine.rows['L3/L4']['height_mean_mm']:.1f} mm", dy=13)
    return figure


def depth():
    spine = straight()
    figure, axes = axes_of(spine, ("L3", "L3/L4"), "AP diameter: front to back at half height")
    for name in ("L3", "L3/L4"):
        body = spine.body(name)
        middle = (body.front + body.back) / 2
        ends = [body.center + (middle + sign * body.waist / 2) * body.behind for sign in (-1, 1)]
        segment(axes, *ends, f"{spine.rows[name]['depth_mm']:.1f} mm")
    return figure


def canal():
    from SpineSegAILib.results.measurement.canal import Canal

    spine = straight()
    figure, axes = axes_of(spine, ("L3", "L3/L4", "L4"), "Canal AP diameter, square to the canal", width=4.4, margin=24)
    canal_found = Canal.of(spine.scan)
    for name in ("L3", "L3/L4", "L4"):
        body = spine.body(name)
        width = canal_found.depth_at(body.center, body.axis)
        nearest = int(np.argmin(np.abs((canal_found.line - body.center) @ body.axis)))
        step = max(round(5 / spine.scan.spacing[1]), 1)
        along = canal_found.line[nearest + step] - canal_found.line[nearest - step]
        back = np.array([0.0, -along[2], along[1]]) / np.hypot(along[1], along[2])
        at = canal_found.line[nearest]
        segment(axes, body.center, at, arrow=False, lw=0.7, ls=":")
        segment(axes, at - width / 2 * back, at + width / 2 * back, f"{width:.1f} mm")
    return figure


def disc_height_index():
    spine = straight()
    figure, axes = axes_of(spine, ("L3", "L3/L4", "L4"), "Disc height index = c / mean of a and b", width=4.0)
    for name, letter in (("L3", "a"), ("L3/L4", "c"), ("L4", "b")):
        segment(axes, *at_share(spine.body(name), 0.5), letter)
    write(axes, spine.body("L3/L4").center, f"index {spine.rows['L3/L4']['disc_height_index']:.2f}", dx=-12)
    return figure


def angle_lines(spine: Spine, axes, upper, lower, text: str, **lines: float) -> None:
    for plate in (upper, lower):
        long_line(axes, plate, **lines)
    write(axes, (upper.point + lower.point) / 2 - lines.get("forward", 45.0) * 0.8 * upper.along, text)


def endplate_angle():
    spine = straight()
    names = ("L5", "L5/S1")
    figure, axes = axes_of(spine, (*names, "S1"), "Endplate angle of a vertebra and of a disc", width=4.6, margin=16)
    upper, lower = spine.plates("L5")
    sacral = spine.plates("S1")[0]
    for plate in (upper, lower, sacral):
        long_line(axes, plate, forward=36, backward=22)
    for name, a, b in (("L5", upper, lower), ("L5/S1", lower, sacral)):
        at = (a.point + b.point) / 2 - 26 * (a.along + b.along) / 2
        write(axes, at, f"{name}: {spine.rows[name]['endplate_angle_deg']:.0f}°")
    return figure


def slip():
    spine = slipped()
    figure, axes = axes_of(spine, ("L4", "L4/L5", "L5"), "Slip: between the back corners, along the disc", width=4.2)
    above, below = spine.plates("L4")[1], spine.plates("L5")[0]
    along = above.along + below.along
    along = along / np.linalg.norm(along)
    foot = below.corner + ((above.corner - below.corner) @ along) * along
    for plate in (above, below):
        long_line(axes, plate, forward=36, backward=24)
        axes.plot(*flat(plate.corner), "o", ms=5, color=LINE)
    segment(axes, above.corner, foot, arrow=False, lw=0.8, ls=":")
    segment(axes, below.corner, foot)
    write(axes, below.corner, f"{spine.rows['L4']['slip_mm']:.1f} mm", dx=9, dy=4)
    return figure


def center():
    spine = straight()
    figure, axes = axes_of(spine, ("L3", "L4"), "Center: mean position of the voxels")
    for name in ("L3", "L4"):
        body = spine.body(name)
        axes.plot(*flat(body.center), "+", ms=12, mew=1.8, color=LINE)
        write(axes, body.center, name, dx=7)
    return figure


COLUMN = ("L1", "L2", "L3", "L4", "L5", "S1")


def lordosis():
    spine = straight()
    figure, axes = axes_of(spine, COLUMN, "Lordosis L1–S1: upper endplates of L1 and S1", width=3.9, margin=24)
    value = spine.rows["spine"]["lordosis_deg"]
    for name in ("L1", "S1"):
        long_line(axes, spine.plates(name)[0], forward=28, backward=40)
    write(axes, spine.body("L3").center, f"{value:.0f}°", dx=38)
    return figure


def lordosis_l1_l5():
    spine = straight()
    title = "Lordosis L1–L5: upper endplate of L1, lower one of L5"
    figure, axes = axes_of(spine, COLUMN, title, width=3.9, margin=24)
    long_line(axes, spine.plates("L1")[0], forward=28, backward=40)
    long_line(axes, spine.plates("L5")[1], forward=28, backward=40)
    write(axes, spine.body("L3").center, f"{spine.rows['spine']['lordosis_l1_l5_deg']:.0f}°", dx=38)
    return figure


def cobb():
    from matplotlib.figure import Figure

    from SpineSegAILib.anatomy import STRUCTURES
    from SpineSegAILib.results.measurement.spine import _coronal_tilt

    spine = curved()
    scan = spine.scan
    bodies = {sid: spine.body(STRUCTURES[sid].name) for sid in scan.column if STRUCTURES[sid].name != "S1"}
    tilts = {
        sid: t for sid in bodies if (t := _coronal_tilt(scan, sid, bodies[sid])) is not None and not scan.is_cut(sid)
    }
    ends = min(tilts, key=tilts.get), max(tilts, key=tilts.get)
    down, aside = scan.spacing[1], scan.spacing[0]
    figure = Figure(figsize=(3.6, 4.9), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 0.93))
    axes.axis("off")
    figure.text(0.02, 0.995, "Cobb angle: the two most tilted vertebrae", ha="left", va="top", fontsize=10, color=INK)
    for sid in bodies:
        column = round(bodies[sid].center[2] / scan.spacing[2])
        plane = (scan.labels[:, :, column] == sid).T.astype(float)
        shape = (np.arange(plane.shape[1]) * aside, np.arange(plane.shape[0]) * down, plane)
        axes.contourf(*shape, levels=(0.5, 2), colors=[STRUCTURES[sid].color], alpha=0.35)
        axes.contour(*shape, levels=(0.5,), colors=[INK], linewidths=0.6)
        axes.text(
            bodies[sid].center[0], bodies[sid].center[1], STRUCTURES[sid].name, fontsize=8, ha="center", color=INK
        )
    for sid in ends:
        x, y = bodies[sid].center[0], bodies[sid].center[1]
        slope = np.tan(np.radians(tilts[sid]))  # positive where the higher slice index points down or up, by its sign
        axes.plot([x - 42, x + 42], [y - 42 * slope, y + 42 * slope], color=LINE, lw=1.6)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    shown = f"{abs(tilts[ends[1]] - tilts[ends[0]]):.0f}°"
    axes.text(
        *[np.mean([bodies[s].center[i] for s in ends]) + (34 if i == 0 else 0) for i in (0, 1)],
        shown,
        fontsize=10,
        color=LINE,
    )
    return figure


@cache
def film() -> object:
    """A synthetic film with two curves, as quadrangles."""
    from SpineSegAILib.anatomy import SCHEMES
    from SpineSegAILib.phantoms.films import FilmSpec, make_film
    from SpineSegAILib.results import Segmentation
    from SpineSegAILib.results.measurement import FilmSpine

    made = make_film(FilmSpec(tilts={"T2": 2, "T6": -18, "T11": 22, "L4": -10}), np.random.default_rng(7))
    return FilmSpine(Segmentation(made.labels, SCHEMES["thoracolumbar-xr"]))


def axes_of_film(title: str, names: tuple[str, ...], *, width: float, margin: float):
    """Axes with the quadrangles of these vertebrae, and their figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Polygon

    from SpineSegAILib.anatomy import STRUCTURES

    spine = film()
    quads = {sid: q for sid, q in spine.quads.items() if not names or STRUCTURES[sid].name in names}
    corners = np.concatenate([q.corners for q in quads.values()])
    low, high = corners.min(0) - margin, corners.max(0) + margin
    figure = Figure(figsize=(width, width * (high[1] - low[1]) / (high[0] - low[0]) + 0.35), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])
    axes.axis("off")
    figure.text(0.02, 0.995, title, ha="left", va="top", fontsize=10, color=INK)
    for sid, quad in quads.items():
        outline = quad.corners[[0, 1, 3, 2]]
        axes.add_patch(Polygon(outline, facecolor=(*_rgb(STRUCTURES[sid].color), 0.35), edgecolor=INK, linewidth=0.6))
        axes.text(*quad.center, STRUCTURES[sid].name, ha="center", va="center", fontsize=6, color=INK)
    return figure, axes, quads


def _rgb(color: object) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def film_tilt():
    figure, axes, quads = axes_of_film(
        "Tilt: the line between the middles of the sides", ("T10", "T11", "T12"), width=4.0, margin=14
    )
    quad = list(quads.values())[1]
    left, right = quad.corners[[0, 2]].mean(0), quad.corners[[1, 3]].mean(0)
    reach = 0.5 * (right - left)
    axes.plot(*np.stack([left - reach, right + reach]).T, color=LINE, lw=1.6)
    axes.plot([left[0], right[0] + 14], [left[1], left[1]], color=LINE, lw=0.8, ls=":")
    axes.text(right[0] + 7, (left[1] + right[1]) / 2, f"{quad.tilt:.0f}°", fontsize=9, color=INK, va="center")
    return figure


def film_curves():
    from SpineSegAILib.results.film_lines import draw_curves

    figure, axes, _ = axes_of_film("Cobb angles in a film, from endplate to endplate", (), width=3.8, margin=45)
    draw_curves(axes, film(), (1.0, 1.0))  # in colors for a dark ground
    for drawn in (*axes.lines, *(text for text in axes.texts if "°" in text.get_text())):
        drawn.set_color(LINE)
    return figure


FUNCTIONS: dict[str, Callable[[], object]] = {
    "volume": volume, "heights": heights, "mean-height": mean_height, "depth": depth, "canal": canal,
    "disc-height-index": disc_height_index, "endplate-angle": endplate_angle, "slip": slip, "center": center,
    "lordosis": lordosis, "lordosis-l1-l5": lordosis_l1_l5, "cobb": cobb, "film-tilt": film_tilt,
    "film-curves": film_curves,
}  # fmt: skip


def save(figure, path: Path) -> None:
    """As SVG that is the same each time, with text as text."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context(
        {"svg.hashsalt": "SpineSegAI", "svg.fonttype": "none", "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"]}
    ):
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None, "Creator": "SpineSegAI"})


def main() -> None:
    """Draws all of them."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, function in FUNCTIONS.items():
        save(function(), PICTURES / f"measure-{name}.svg")


if __name__ == "__main__":
    main()
