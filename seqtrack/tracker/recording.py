"""Writes what tracking finds, in a thread of its own, so that the model does not wait for the video's encoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from seqtrack.boxes import iou, xywh_to_xyxy
from seqtrack.data.crops import crop_image, crop_region
from seqtrack.data.decoding import ArrayFrame, Image
from seqtrack.data.drawing import TRUTH, Drawn, colour_of, draw
from seqtrack.data.video_writer import VideoWriter
from seqtrack.files import replacing
from seqtrack.tracker.follow import Followed
from seqtrack.tracker.output import Tables

BEHIND = 8
"""Frames that wait to be written, at most."""
CROP_FACTOR, CROP_SIZE = 2.0, 256
"""Saved crops show twice the target's size, in pixels a side."""


class Recording:
    """Writes tables, and a video or crops if they are wanted, while its `with` block runs.

    Tables and videos appear at its end, and replace those that are there. If one of them cannot be written, none does.
    """

    def __init__(
        self, folder: Path, name: str, targets: int, rate: Fraction, video: bool = True, crops: bool = False
    ) -> None:
        """Raises OSError if the folder cannot be written to."""
        folder.mkdir(parents=True, exist_ok=True)
        self._crops = folder / "crops" if crops else None
        if self._crops is not None:
            self._crops.mkdir(exist_ok=True)
        with ExitStack() as unfinished:

            def place(path: Path) -> Path:
                return unfinished.enter_context(replacing(path))

            self._tables = Tables(folder, name, targets, place)
            self._video = VideoWriter(place(folder / f"{name}.mp4"), rate) if video else None
            self._unfinished = unfinished.pop_all()
        self.files = [*self._tables.files, *([folder / f"{name}.mp4"] if video else [])]
        """What is written, apart from crops."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._waiting: deque[Future[None]] = deque()
        self._failed: list[Future[None]] = []

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Writes what still waits, and the ends of all files, also after an error or Ctrl-C.

        Raises OSError where something could not be written.
        """
        with self._unfinished:
            self._thread.shutdown(wait=True)
            with ExitStack() as ends:
                ends.callback(self._tables.close)
                if self._video is not None:
                    ends.callback(self._video.close)
            for one in (*self._failed, *self._waiting):
                one.result()

    def add(self, followed: Followed, picture: Image) -> None:
        """Writes a frame's results; `picture` is what the video shows. Raises the errors of earlier frames."""
        if len(self._waiting) >= BEHIND:
            first = self._waiting.popleft()
            if first.exception() is not None:
                self._failed.append(first)
            first.result()
        self._waiting.append(self._thread.submit(self._write, followed, picture))

    def _write(self, followed: Followed, picture: Image) -> None:
        shot, found, seconds = followed
        self._tables.write(shot, found, seconds)
        if self._video is not None:
            self._video.write(picture, shot.seconds)
        if self._crops is not None:
            for target, one in enumerate(found, start=1):
                region = crop_region(np.asarray(one.box_xywh, np.float32), CROP_FACTOR)
                crop = crop_image(ArrayFrame(shot.image), region, CROP_SIZE)
                _, jpeg = cv2.imencode(".jpg", crop[..., ::-1])
                with replacing(self._crops / f"{shot.number:08d}_{target}.jpg", synced=False) as partial:
                    partial.write_bytes(jpeg.tobytes())


def picture_of(followed: Followed, annotation: NDArray[np.float32] | None) -> Image:
    """The frame with the boxes that were found and, if there is one, the annotation's."""
    shot, found, _ = followed
    drawn: list[Drawn] = []
    if annotation is not None and shot.number < len(annotation):
        drawn.append(Drawn(annotation[shot.number], "", TRUTH))
    for target, one in enumerate(found):
        number = f"{target + 1}  " if len(found) > 1 else ""
        text = f"{number}{one.confidence:.1f}" if one.confidence else number
        drawn.append(Drawn(one.box_xywh, text, colour_of(target)))
    return draw(shot.image, drawn)


def mean_iou(
    found: Sequence[Sequence[float]] | NDArray[np.floating], annotation: NDArray[np.floating]
) -> tuple[float, int]:
    """Mean IoU over the frames whose annotation has a box, and their number. The frames are paired in order."""
    truth = torch.from_numpy(np.asarray(annotation[: len(found)], np.float64))
    ours = torch.from_numpy(np.array(found[: len(truth)], np.float64))
    there = truth.isfinite().all(dim=1) & (truth[:, 2] > 0) & (truth[:, 3] > 0)
    overlap = iou(xywh_to_xyxy(ours[there]), xywh_to_xyxy(truth[there]))
    return float(overlap.mean()) if len(overlap) else float("nan"), int(there.sum())
