"""What the mouse looks like where clicks correct: a ring with a plus, or with a minus while they remove."""

import qt

PIXELS = 24
COLORS = {True: "#2e9e4f", False: "#c62828"}
"""Of adding, and of removing."""


def signPixmap(add):
    """The picture, transparent around the ring and inside it."""
    pixmap = qt.QPixmap(PIXELS, PIXELS)
    pixmap.fill(qt.QColor(0, 0, 0, 0))
    middle, arm = PIXELS // 2, 4
    painter = qt.QPainter()
    painter.begin(pixmap)
    for color, width in (("#ffffff", 4), (COLORS[add], 2)):  # a light rim, to be seen on dark and on bright
        pen = qt.QPen(qt.QColor(color))
        pen.setWidth(width)
        painter.setPen(pen)
        painter.drawEllipse(3, 3, PIXELS - 6, PIXELS - 6)
        painter.drawLine(middle - arm, middle, middle + arm, middle)
        if add:
            painter.drawLine(middle, middle - arm, middle, middle + arm)
    painter.end()
    return pixmap


def signCursor(add):
    """The cursor; it points with its middle."""
    return qt.QCursor(signPixmap(add), PIXELS // 2, PIXELS // 2)
