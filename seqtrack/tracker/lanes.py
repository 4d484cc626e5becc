"""Tracks the sequences of a benchmark in the slots of a tracker: a slot whose sequence has ended takes the next one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from seqtrack.data.decoding import MAX_PIXELS, BrokenFrame, Frame, FrameDecoder
from seqtrack.data.storage import READS_AT_ONCE, Root, Span, SpanReader, read_bytes
from seqtrack.errors import InputError
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.sequences import BenchmarkSequence, Frames
from seqtrack.failures import explain
from seqtrack.tracker.tracker import BatchTracker

AHEAD = 4
"""Frames of a sequence that are decoded before they are asked for."""
Open = Callable[[str | Span], Frame]
"""Reads and decodes a frame. Raises InputError."""


class Finished(NamedTuple):
    """A sequence that was tracked to its end."""

    name: str
    track: Track


class Lanes:
    """Sequences side by side, one in each slot of a tracker."""

    def __init__(self, tracker: BatchTracker, root: Root, threads: int = 2, max_pixels: int = MAX_PIXELS) -> None:
        """`root`: where the frames' places begin. `threads`: how many frames are read and decoded at the same time.

        An object store is asked for more, because a thread waits longer for its answer than it decodes.
        """
        self._tracker = tracker
        self._open = opener(root, max_pixels)
        threads = threads if root.local else max(threads, READS_AT_ONCE)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._lanes: dict[int, _Lane] = {}

    @property
    def free(self) -> int:
        """Number of slots without a sequence."""
        return self._tracker.slots - len(self._lanes)

    def begin(self, sequence: BenchmarkSequence) -> None:
        """Puts a sequence, whose frames were looked for, into a free slot."""
        slot = next(slot for slot in range(self._tracker.slots) if slot not in self._lanes)
        self._lanes[slot] = _Lane(sequence, self._open, self._pool)

    def step(self) -> list[Finished]:
        """Tracks one frame of each sequence. Returns those that have ended. Raises InputError naming a broken frame."""
        frames = {slot: lane.next_frame() for slot, lane in self._lanes.items()}
        began = time.perf_counter()
        old = {slot: frame for slot, frame in frames.items() if self._lanes[slot].boxes}
        for slot in frames.keys() - old.keys():
            lane = self._lanes[slot]
            try:
                self._tracker.start(slot, frames[slot], lane.first)
            except InputError as error:
                raise InputError(f"{lane.name}: {error}") from error
            lane.boxes.append(lane.first)
            lane.seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = self._tracker.track(old) if old else {}
        seconds = time.perf_counter() - began
        for slot, tracked in found.items():
            self._lanes[slot].boxes.append(tracked.box_xywh)
            self._lanes[slot].seconds.append(seconds)
        ended = [slot for slot, lane in self._lanes.items() if lane.ended]
        for slot in ended:
            self._tracker.stop(slot)
        return [self._lanes.pop(slot).result() for slot in sorted(ended)]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Lane:
    """A sequence that is being tracked."""

    def __init__(self, sequence: BenchmarkSequence, open_frame: Open, pool: ThreadPoolExecutor) -> None:
        assert sequence.frames is not None
        self.name = sequence.name
        x, y, w, h = sequence.truth.boxes_xywh[0].tolist()
        self.first: tuple[float, float, float, float] = (x, y, w, h)
        self.boxes: list[tuple[float, float, float, float]] = []
        self.seconds: list[float] = []
        """What each frame waited for: the time of the step in which it was tracked."""
        self._frames: Frames = sequence.frames
        self._open, self._pool, self._asked = open_frame, pool, 0
        self._waiting: deque[Future[Frame]] = deque()

    def next_frame(self) -> Frame:
        while self._asked < len(self._frames) and len(self._waiting) <= AHEAD:
            self._waiting.append(self._pool.submit(self._open, self._frames[self._asked]))
            self._asked += 1
        return self._waiting.popleft().result()

    @property
    def ended(self) -> bool:
        return len(self.boxes) == len(self._frames)

    def result(self) -> Finished:
        return Finished(self.name, Track(np.array(self.boxes, np.float64), np.array(self.seconds, np.float64)))


def opener(root: Root, max_pixels: int = MAX_PIXELS) -> Open:
    """Opens frames below a root. Threads may share it.

    Frames are decoded whole: decoding ahead only a part saves little (docs/evaluation.md).
    """
    decoder, spans = FrameDecoder(by_region=False, max_pixels=max_pixels), SpanReader(root)

    def open_frame(place: str | Span) -> Frame:
        name = f"{root.path}/{place.path if isinstance(place, Span) else place}"
        try:
            return decoder.open(name, spans.read(place) if isinstance(place, Span) else read_bytes(root, place))
        except InputError:
            raise
        except BrokenFrame as error:
            raise InputError(str(error)) from error
        except Exception as error:  # of the disk or of any object store
            raise InputError(f"{name}: cannot be read ({explain(error)})") from error

    return open_frame
