"""Makes triplets from sample numbers: draws, frames, crops, and another draw if a frame is broken.

This is the whole data path without Ray; `stream.py` runs it in many processes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import Config, DataConfig
from seqtrack.data.crops import Box, HugeCrop, Sample, cut_sample, empty_crops, part_inside, plan_cut
from seqtrack.data.decoding import BrokenFrame, Frame, FrameDecoder, Image, TiledFrame
from seqtrack.data.heads import NotTiled
from seqtrack.data.mixture import Mixture
from seqtrack.data.sampling import Draws, draw_sample, usable_sequences
from seqtrack.data.storage import READS_AT_ONCE, DataError, Span, SpanReader, StoreError, read_bytes
from seqtrack.data.tiles import TiledJpeg

MAX_ATTEMPTS = 100


class Place(NamedTuple):
    """Which frame of a mixture."""

    set_number: int
    row: int
    """Row of the sequence in the index of the set."""
    frame: int


class Part(NamedTuple):
    """Bytes of a frame's file, to its end if `stop` is None."""

    start: int = 0
    stop: int | None = None

    def joined(self, other: Part) -> Part:
        """The least part that has both."""
        stop = None if self.stop is None or other.stop is None else max(self.stop, other.stop)
        return Part(min(self.start, other.start), stop)


class Piece(NamedTuple):
    """A part of a frame's file that was read."""

    part: Part
    content: bytes


NONE_READ: Mapping[Place, Piece] = MappingProxyType({})


@dataclass(frozen=True)
class TripletSource:
    """Makes any sample of a run by its number, in any process, in any order."""

    mixture: Mixture
    settings: DataConfig
    seed: int
    usable: tuple[NDArray[np.int64], ...]
    """The rows of each set that samples may come from."""
    shards: tuple[SpanReader, ...]
    """One for each set; they read packed trees."""
    decoder: FrameDecoder = field(default_factory=FrameDecoder)

    @classmethod
    def from_config(cls, config: Config, mixture: Mixture) -> TripletSource:
        """Raises DataError if a set has no sequence that is long and visible enough to draw from."""
        usable = tuple(usable_sequences(one.index, config.DATA) for one in mixture.sets)
        for one, rows in zip(mixture.sets, usable, strict=True):
            if not one.index.visible_counts[rows].any():
                count = len(one.index.lengths)
                raise DataError(
                    f"{one.root.path}: none of the {count} objects has a box with a size"
                    if one.index.stills.any()
                    else f"{one.root.path}: none of the {count} sequences has 20 frames and enough of them visible"
                )
        readers = tuple(SpanReader(one.root) for one in mixture.sets)
        decoder = FrameDecoder(max_pixels=config.DATA.MAX_PIXELS)
        return cls(mixture, config.DATA, config.SEED, usable, readers, decoder)

    def draw(self, number: int, attempt: int) -> tuple[int, Draws]:
        """The set (from 0) of sample `number` at its `attempt`-th try, and its draws there."""
        which = self.mixture.draw_set(self.seed, number, attempt)
        index = self.mixture.sets[which].index
        return which, draw_sample(index, self.usable[which], self.seed, number, attempt, self.settings)

    def samples(
        self, numbers: Sequence[int], into: tuple[Image, Image] | None = None
    ) -> list[tuple[Sample, list[str]]]:
        """`sample` for each number. From object stores, the frames of all first draws are read in parallel.

        `into`: arrays for the templates (N, T, h, w, 3) and the search crops (N, H, W, 3) of all of them; otherwise new
        ones are made.
        """
        drawn = [self.draw(number, 0) for number in numbers]
        ahead = self._read_ahead(drawn)
        templates, searches = into or empty_crops((len(numbers),), self.settings)
        return [
            self._make(number, first, ahead, (templates[row], searches[row]))
            for row, (number, first) in enumerate(zip(numbers, drawn, strict=True))
        ]

    def sample(self, number: int) -> tuple[Sample, list[str]]:
        """Sample `number` (from 0, over the whole run), and one line for each broken frame met on the way.

        Raises DataError after 100 draws without a valid sample, and StoreError if a store or disk does not deliver a
        frame, or memory does not suffice, because substituting a frame would change the run.
        """
        return self._make(number, self.draw(number, 0), NONE_READ, empty_crops((), self.settings))

    def _make(
        self, number: int, first: tuple[int, Draws], ahead: Mapping[Place, Piece], into: tuple[Image, Image]
    ) -> tuple[Sample, list[str]]:
        """A sample and its problems. `first`: its first draw; `ahead`: what was already read of frames."""
        problems: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            which, draws = self.draw(number, attempt) if attempt else first
            boxes = self._boxes(which, draws)
            if boxes is None:
                continue
            open_frame = partial(self._open_frame, ahead, which, draws.sequence)
            try:
                sample = cut_sample(draws, boxes, open_frame, self.settings, into)
            except BrokenFrame as problem:
                problems.append(str(problem))
                continue
            except HugeCrop as problem:
                problems.append(f"{self._name(Place(which, draws.sequence, problem.frame))}: {problem}")
                continue
            if sample is not None:
                return sample._replace(set_number=which), problems
        seen = f"; broken frames: {'; '.join(problems[:5])}" if problems else ""
        raise DataError(f"sample {number}: no valid draw in {MAX_ATTEMPTS} attempts{seen}")

    def _boxes(self, which: int, draws: Draws) -> Box | None:
        """The boxes of the drawn sequence, or None for an object whose box has no size."""
        index = self.mixture.sets[which].index
        if index.stills[draws.sequence] and not len(index.visible_frames(draws.sequence)):
            return None
        return index.boxes_xywh(draws.sequence)

    def _open_frame(self, ahead: Mapping[Place, Piece], which: int, row: int, frame: int) -> Frame:
        place = Place(which, row, frame)
        tiles = self._tiles(place)
        if tiles is not None:

            def read(start: int, stop: int | None) -> bytes:
                return self._get(ahead, place, Part(start, stop))

            return TiledFrame(self._name(place), tiles, read, self.settings.MAX_PIXELS)
        return self.decoder.open(self._name(place), self._get(ahead, place, Part()))

    def _tiles(self, place: Place) -> TiledJpeg | None:
        """How a frame is decoded by tiles, or None if it has to be decoded as a whole."""
        stored = self.mixture.sets[place.set_number].index.tiles(place.row, place.frame)
        try:
            return None if stored is None else TiledJpeg.of_sizes(*stored)
        except NotTiled:
            return None

    def _get(self, ahead: Mapping[Place, Piece], place: Place, part: Part) -> bytes:
        """A part of a frame, read now unless it was read ahead."""
        if place in ahead:
            had, content = ahead[place]
            if had.joined(part) == had:
                stop = None if part.stop is None else part.stop - had.start
                return content[part.start - had.start : stop]
        return self._read(place, part)

    def _name(self, place: Place) -> str:
        """A frame in messages: its path below its root, and its set where there are several."""
        one = self.mixture.sets[place.set_number]
        path = one.index.frame_path(place.row, place.frame)
        return path if len(self.mixture.sets) == 1 else f"{one.name} {path}"

    def _read(self, place: Place, part: Part) -> bytes:
        one, name = self.mixture.sets[place.set_number], self._name(place)
        if one.index.packed:
            span = one.index.span(place.row, place.frame)
            if span is None:
                raise BrokenFrame(f"{name} is missing")
            stop = span.size if part.stop is None else part.stop
            return self.shards[place.set_number].read(Span(span.path, span.start + part.start, stop - part.start))
        path = one.index.frame_path(place.row, place.frame)
        try:
            return read_bytes(one.root, path)
        except FileNotFoundError as error:
            raise BrokenFrame(f"{name} is missing") from error
        except OSError as error:
            raise StoreError(f"{one.root.path}/{path}: cannot be read ({error})") from error

    def _read_ahead(self, drawn: Sequence[tuple[int, Draws]]) -> dict[Place, Piece]:
        """What these draws need of frames in object stores. Missing frames are left out."""
        wanted: dict[Place, Part] = {}
        if all(one.root.local for one in self.mixture.sets):
            return {}
        for which, draws in drawn:
            if not self.mixture.sets[which].root.local:
                for place, part in self._needed(which, draws):
                    wanted[place] = part.joined(wanted.get(place, part))

        def read(place: Place) -> tuple[Place, Piece] | None:
            try:
                return place, Piece(wanted[place], self._read(place, wanted[place]))
            except BrokenFrame:
                return None

        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return dict(filter(None, pool.map(read, sorted(wanted))))

    def _needed(self, which: int, draws: Draws) -> Iterator[tuple[Place, Part]]:
        """What `cut_sample` will read of each frame, until a crop shows that the sample cannot be made."""
        boxes = self._boxes(which, draws)
        if boxes is None:
            return
        for position, frame in enumerate(draws.frames):
            place = Place(which, draws.sequence, frame)
            tiles = self._tiles(place)
            if tiles is None:
                yield place, Part()
                continue
            width, height = tiles.grid.width, tiles.grid.height
            try:
                cut = plan_cut(draws, position, boxes, width, self.settings)
            except HugeCrop:
                return
            if cut is None:
                return
            inside = part_inside(cut.region, width, height)
            if inside is not None:
                _, top, _, bottom = inside
                yield place, Part(*tiles.byte_range(top, bottom))
