"""Renders the README's pictures of a real case with the library's own preview.

    python Testing/Documentation/pictures.py DATA/spider/spider_034_image.nii.gz

The case is of SPIDER (van der Graaf et al., Scientific Data 2024, CC BY 4.0), one that no shipped model was trained on.
No other data may be shown.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "Resources/Screenshots"
CREDIT = "Image: SPIDER, van der Graaf et al. 2024, CC BY 4.0; midline slab, half resolution. Segmentation: SpineSegAI."
BACKGROUND, WHITE, MUTED = "#0b0e12", "#e8ecf1", "#8a94a0"


def rendered(figure) -> Image.Image:
    """A matplotlib figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return Image.open(file).convert("RGB")


def panel(figure, number: int) -> Image.Image:
    """One of the figure's views."""
    whole = rendered(figure)
    x0, y0, x1, y1 = figure.axes[number].get_position().extents
    width, height = whole.size
    return whole.crop((round(x0 * width), round((1 - y1) * height), round(x1 * width), round((1 - y0) * height)))


def font(size: int) -> ImageFont.FreeTypeFont:
    """The previews' own."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def strip(panels: list[tuple[str, Image.Image]], height: int = 470, gap: int = 12) -> Image.Image:
    """Pictures side by side, each with a line above it, and the credit below."""
    scaled = [(line, p.resize((round(p.width * height / p.height), height), Image.LANCZOS)) for line, p in panels]
    width = sum(p.width for _, p in scaled) + gap * (len(scaled) + 1)
    result = Image.new("RGB", (width, height + 34 + 28), BACKGROUND)
    draw = ImageDraw.Draw(result)
    x = gap
    for line, picture in scaled:
        draw.text((x, 9), line, WHITE, font(14))
        result.paste(picture, (x, 34))
        x += picture.width + gap
    draw.text((gap, height + 40), CREDIT, MUTED, font(11))
    return result


def clicked(image, result) -> Image.Image:
    """S1, deleted, after one click beside its name; a cross shows where."""
    import numpy as np
    import SimpleITK as sitk

    from SpineSegAILib.anatomy import structure
    from SpineSegAILib.correction import Click, refine
    from SpineSegAILib.results.preview import _ANTERIOR_MM, _POSTERIOR_MM, _shown, draw_preview

    s1 = structure("S1").id
    voxels = np.argwhere(sitk.GetArrayViewFromImage(result.labels) == s1)
    middle = result.labels.TransformContinuousIndexToPhysicalPoint(voxels.mean(0)[::-1].tolist())
    point = (middle[0], middle[1] + 6.0, middle[2] - 6.0)
    after = refine(image, result.without([s1]), [Click(s1, point)])
    figure = draw_preview(image, after, framed=False)
    oriented = sitk.DICOMOrient(after.labels, "PIR")
    wide, high, _ = oriented.GetSpacing()
    column, row, _ = oriented.TransformPhysicalPointToContinuousIndex(point)
    labels = sitk.GetArrayViewFromImage(oriented)
    first = _shown(labels, 2, oriented.GetSpacing()[::-1], (_ANTERIOR_MM, _POSTERIOR_MM)).start
    axes, at = figure.axes[1], ((column + 0.5 - first) * wide, (row + 0.5) * high)
    axes.plot(*at, "+", color="white", markersize=9, markeredgewidth=1.8, zorder=20)
    return panel(figure, 1)


def main(path: Path) -> None:
    """Segments the case and writes both pictures."""
    from SpineSegAILib import Predictor, read_image
    from SpineSegAILib.anatomy import structure
    from SpineSegAILib.correction import LabeledStructures, apply_correction, set_level, shift
    from SpineSegAILib.results import drop_unvalidated
    from SpineSegAILib.results.preview import draw_preview

    image = read_image(path)
    result = drop_unvalidated(Predictor().segment(image), None, "")
    up = apply_correction(result, shift(LabeledStructures.of(result.labels), "up"))
    back = apply_correction(up, set_level(LabeledStructures.of(up.labels), structure("L4").id, "L5"))
    # The mark of experimental names would need its note here.
    up, back = (replace(moved, unvalidated=frozenset()) for moved in (up, back))
    first = draw_preview(image, result, framed=False)
    real = [("Image, mid-sagittal", panel(first, 0)), ("One click, or one command", panel(first, 1))]
    steps = [
        ("1  Segment spine", panel(first, 1)),
        ("2  Shift labels: one level up", panel(draw_preview(image, up, framed=False), 1)),
        ("3  Set level: this one is L5", panel(draw_preview(image, back, framed=False), 1)),
        ("4  Delete S1; one click draws it", clicked(image, result)),
    ]
    for name, panels in (("real", real), ("strip", steps)):
        strip(panels).save(SCREENSHOTS / f"{name}.jpg", quality=86, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
