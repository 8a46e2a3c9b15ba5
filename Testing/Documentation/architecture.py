"""Draws the rooms of the library as the import contract has them.

python Testing/Documentation/architecture.py      # writes Resources/Documentation/pictures/architecture.svg
"""

from __future__ import annotations

from html import escape

from generate import PAGES, layers

WIDTH, ROW, TOP, BOX, GAP = 720, 46, 78, 34, 12
INK, SOFT = "#1c2733", "#5b6b7b"
FILLS = {"cli": "#dbe9f6", "worker": "#dbe9f6"}


def svg() -> str:
    """The picture."""
    rows = layers()
    height = TOP + ROW * len(rows) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *box(20, 12, 314, "shell: spinesegai", "#fde9d0"),
        *box(346, 12, 314, "3D Slicer: panels, scene, processes", "#fde9d0"),
        text(177, 64, "calls cli", SOFT, 11),
        text(503, 64, "starts worker; imports no PyTorch itself", SOFT, 11),
    ]
    for number, names in enumerate(rows):
        y = TOP + ROW * number
        width = (WIDTH - 80 - GAP * (len(names) - 1)) / len(names)
        for place, name in enumerate(names):
            parts += box(20 + place * (width + GAP), y, width, name, FILLS.get(name, "#eef3f8"))
    x = WIDTH - 34
    parts += [
        f'<path d="M{x} {TOP} V{height - 30}" stroke="{SOFT}" stroke-width="2" fill="none"/>',
        f'<path d="M{x - 6} {height - 38} L{x} {height - 26} L{x + 6} {height - 38} Z" fill="{SOFT}"/>',
        f'<text x="{x + 18}" y="{(TOP + height) / 2}" font-size="12" fill="{SOFT}" text-anchor="middle" '
        f'transform="rotate(90 {x + 18} {(TOP + height) / 2})">imports</text>',
        "</svg>\n",
    ]
    return "\n".join(parts)


def box(x: float, y: float, width: float, label: str, fill: str) -> list[str]:
    """A room."""
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="5" fill="{fill}" stroke="{INK}" '
        'stroke-width="0.8"/>',
        text(x + width / 2, y + BOX / 2 + 5, label, INK, 14),
    ]


def text(x: float, y: float, label: str, color: str, size: int) -> str:
    """A line of text, centered."""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="middle">{escape(label)}</text>'


PICTURE = PAGES / "pictures/architecture.svg"

if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
