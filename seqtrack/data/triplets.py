"""Makes triplets from sample numbers: draws, frames, crops, and another draw if a frame is broken.

This is the whole data path without Ray; `stream.py` runs it in many processes at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import Config, DataConfig
from seqtrack.data.crops import HugeCrop, Sample, cut_sample
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.decoding import BrokenFrame, Frame, FrameDecoder
from seqtrack.data.sampling import draw_sample, usable_sequences
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, SpanReader, StoreError, read_bytes

MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class TripletSource:
    """Makes any sample of a run by its number, in any process, in any order."""

    index: FrameIndex
    root: Root
    settings: DataConfig
    seed: int
    usable: NDArray[np.int64]
    shards: SpanReader
    decoder: FrameDecoder = field(default_factory=FrameDecoder)

    @classmethod
    def from_config(cls, config: Config, index: FrameIndex, root: Root) -> TripletSource:
        """Raises DataError if no sequence is long and visible enough to draw from."""
        usable = usable_sequences(index, config.DATA)
        if not len(usable):
            raise DataError(
                f"{root.path}: none of the {len(index.names)} sequences has 20 frames and enough of them visible"
            )
        return cls(index, root, config.DATA, config.SEED, usable, SpanReader(root))

    def samples(self, numbers: Sequence[int]) -> list[tuple[Sample, list[str]]]:
        """`sample` for each number. From an object store, the frames of all first draws are read in parallel."""
        ahead = {} if self.root.local else self._read_ahead(numbers)
        return [self.sample(number, ahead) for number in numbers]

    def sample(self, number: int, ahead: Mapping[str, bytes] = MappingProxyType({})) -> tuple[Sample, list[str]]:
        """Sample `number` (from 0, over the whole run), and one line for each broken frame met on the way.

        `ahead`: path -> bytes of frames already read. Raises DataError after 100 draws without a valid sample, and
        StoreError if an object store does not deliver a frame, because substituting a frame would change the run.
        """
        problems: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            draws = draw_sample(self.index, self.usable, self.seed, number, attempt, self.settings)
            boxes = self.index.boxes_xywh(draws.sequence)
            try:
                sample = cut_sample(draws, boxes, partial(self._open_frame, draws.sequence, ahead), self.settings)
            except BrokenFrame as problem:
                problems.append(str(problem))
                continue
            except HugeCrop as problem:
                problems.append(f"{self.index.frame_path(draws.sequence, problem.frame)}: {problem}")
                continue
            if sample is not None:
                return sample, problems
        seen = f"; broken frames: {'; '.join(problems[:5])}" if problems else ""
        raise DataError(f"sample {number}: no valid draw in {MAX_ATTEMPTS} attempts{seen}")

    def _open_frame(self, sequence: int, ahead: Mapping[str, bytes], frame: int) -> Frame:
        name = self.index.frame_path(sequence, frame)
        return self.decoder.open(name, ahead[name] if name in ahead else self._read(sequence, frame))

    def _read(self, sequence: int, frame: int) -> bytes:
        name = self.index.frame_path(sequence, frame)
        if self.index.packed:
            span = self.index.span(sequence, frame)
            if span is None:
                raise BrokenFrame(f"{name} is missing")
            return self.shards.read(span)
        try:
            return read_bytes(self.root, name)
        except FileNotFoundError as error:
            raise BrokenFrame(f"{name} is missing") from error
        except OSError as error:
            if self.root.local:
                raise BrokenFrame(f"{name} cannot be read ({error})") from error
            raise StoreError(f"{self.root.path}/{name}: cannot be read ({error})") from error

    def _read_ahead(self, numbers: Sequence[int]) -> dict[str, bytes]:
        """Path -> bytes of the frames in each sample's first draw. Missing frames are left out."""
        drawn = (draw_sample(self.index, self.usable, self.seed, number, 0, self.settings) for number in numbers)
        wanted = {(draws.sequence, frame) for draws in drawn for frame in draws.frames}

        def read(place: tuple[int, int]) -> tuple[str, bytes] | None:
            try:
                return self.index.frame_path(*place), self._read(*place)
            except BrokenFrame:
                return None

        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return dict(filter(None, pool.map(read, sorted(wanted))))
