"""Follows targets through a source: frames are decoded ahead and outputs written behind, while the model works."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from seqtrack.tracker.sources import Shot, Source
from seqtrack.tracker.tracker import BatchTracker, BoxLike, Tracked

SECONDS_TO_END = 2.0
"""How long the thread that decodes is waited for: a camera may give no frame for longer."""
AHEAD = 8
"""Frames that are decoded before the model asks for them."""


class Followed(NamedTuple):
    """A frame in which the targets were found."""

    shot: Shot
    found: list[Tracked]
    seconds: float
    """What finding them took."""


def follow(tracker: BatchTracker, shots: Iterator[Shot], boxes: Sequence[BoxLike]) -> Iterator[Followed]:
    """The targets of `boxes`, which are those of the first frame, in every frame. Raises what tracker and source raise.

    The first frame's boxes are the given ones, with a confidence of 0.
    """
    for shot in ahead(shots):
        began = time.perf_counter()
        if not tracker.running:
            for slot, box in enumerate(boxes):
                tracker.start(slot, shot.image, box)
            found = [Tracked(tuple(float(value) for value in box), 0.0) for box in boxes]  # type: ignore[arg-type]
        else:
            found = list(tracker.track(dict.fromkeys(range(len(boxes)), shot.image)).values())
        yield Followed(shot, found, time.perf_counter() - began)


def chosen(source: Source, start: int = 0, stop: int | None = None, stride: int = 1) -> Iterator[Shot]:
    """The frames start, start + stride … before `stop`."""
    for shot in source.shots():
        if stop is not None and shot.number >= stop:
            return
        if shot.number >= start and (shot.number - start) % stride == 0:
            yield shot


def ahead(shots: Iterator[Shot]) -> Iterator[Shot]:
    """The same frames, decoded in a thread, a few ahead of the one that is asked for. Passes errors on."""
    waiting: queue.Queue[Shot | BaseException | None] = queue.Queue(AHEAD)
    ended = threading.Event()

    def put(item: Shot | BaseException | None) -> bool:
        while not ended.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def decode() -> None:
        try:
            for shot in shots:
                if not put(shot):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=decode, name="decode", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        thread.join(SECONDS_TO_END)
