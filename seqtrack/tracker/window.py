"""A live window, and boxes drawn with the mouse, where there is a screen."""

from __future__ import annotations

import os
import sys

import cv2

from seqtrack.data.decoding import Image
from seqtrack.errors import InputError
from seqtrack.shown import shown

HELP = "space: pause, r: select the target anew, q: end"
SPACE, ESCAPE = ord(" "), 27


def check_screen(what: str) -> None:
    """Raises InputError where no window can be opened; `what` is what was asked for."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError(f"{what}: there is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set)")
    # OpenCV's Qt asks for fonts otherwise, which nobody needs.
    os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")


def select_boxes(title: str, image: Image) -> list[tuple[float, ...]]:
    """Boxes that the user draws with the mouse: Enter after each, Escape after the last. Raises InputError if none."""
    try:
        drawn = cv2.selectROIs(title, image[..., ::-1], showCrosshair=False)
        cv2.destroyWindow(title)
    except cv2.error as error:
        raise InputError("--box is missing, and no window can be opened to draw it in") from error
    boxes = [tuple(float(value) for value in box) for box in drawn]
    if not boxes:
        raise InputError("no box was drawn")
    return boxes


class Window:
    """Shows frames as they are tracked."""

    def __init__(self, title: str) -> None:
        """Raises InputError where there is no screen."""
        check_screen("--show")
        self._title = shown(f"{title} ({HELP})")
        self.selected: list[tuple[float, ...]] = []
        """Boxes that were drawn in the last frame shown, to go on with."""

    def show(self, picture: Image, image: Image) -> bool:
        """Shows a picture and answers keys. Returns False if the user wants to end. `image` is the bare frame."""
        self.selected = []
        cv2.imshow(self._title, picture[..., ::-1])
        key = cv2.waitKey(1) & 0xFF
        while key == SPACE:
            key = cv2.waitKey(0) & 0xFF
            if key == SPACE:
                return True
        if key == ord("r"):
            self.selected = select_boxes(self._title, image)
        return key not in (ord("q"), ESCAPE)

    def close(self) -> None:
        cv2.destroyAllWindows()
