"""From a sample's number to every random choice in it.

A sample is a pure function of (seed, sample number): the draws come from a counter-based generator keyed by those two
numbers, so a training position is one integer and any process can make any sample. If a sample turns out invalid,
it is drawn again with attempt + 1, which is a distant part of the same generator's sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import DataConfig
from seqtrack.data.datasets.index import FrameIndex

GRAYSCALE_PROBABILITY = 0.05
FLIP_PROBABILITY = 0.5
BRIGHTNESS_JITTER = 0.2
MIN_FRAMES = 20
WIDEN_BY = 5


class Draws(NamedTuple):
    """All random choices of one sample. Entry i of each array belongs to frame i: templates first, search last."""

    sequence: int
    """Row of the sequence in the index."""
    frames: tuple[int, ...]
    """Frame numbers, from 0."""
    grayscale: bool
    joint_flip: bool
    normal: NDArray[np.float32]
    """(n, 2) standard normal: scale jitter."""
    uniform: NDArray[np.float32]
    """(n, 2) in [0, 1): centre jitter."""
    brightness: NDArray[np.float32]
    """(n,) factors."""
    flips: NDArray[np.bool_]
    """(n,) whether the finished crop is mirrored."""


def usable_sequences(index: FrameIndex, settings: DataConfig) -> NDArray[np.int64]:
    """Rows of the sequences that samples may come from: ≥ 20 frames, > 2·(templates + search) of them visible.

    All images of an image set are among them, as published. Where an object's box has no size, the sample is drawn
    again.
    """
    wanted = settings.TEMPLATE.NUMBER + settings.SEARCH.NUMBER
    return np.flatnonzero(index.stills | (index.visible_counts > 2 * wanted) & (index.lengths >= MIN_FRAMES))


def draw_sample(
    index: FrameIndex, usable: NDArray[np.int64], seed: int, number: int, attempt: int, settings: DataConfig
) -> Draws:
    """The draws of sample `number` (from 0, counted over the whole run) at its `attempt`-th try.

    `usable`: the rows from `usable_sequences`, not empty. Of an image set, templates and search show the same image.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, attempt]))
    sequence = int(usable[generator.integers(len(usable))])
    count = settings.TEMPLATE.NUMBER + settings.SEARCH.NUMBER
    if index.stills[sequence]:
        frames: tuple[int, ...] = (0,) * count
    else:
        frames = _ordered_frames(generator, index.visible_frames(sequence), count, settings.MAX_SAMPLE_INTERVAL)
    return Draws(
        sequence=sequence,
        frames=frames,
        grayscale=bool(generator.random() < GRAYSCALE_PROBABILITY),
        joint_flip=bool(generator.random() < FLIP_PROBABILITY),
        normal=generator.standard_normal((count, 2), dtype=np.float32),
        uniform=generator.random((count, 2), dtype=np.float32),
        brightness=generator.uniform(1 - BRIGHTNESS_JITTER, 1 + BRIGHTNESS_JITTER, count).astype(np.float32),
        flips=generator.random(count) < FLIP_PROBABILITY,
    )


def _ordered_frames(
    generator: np.random.Generator, visible: NDArray[np.int64], count: int, max_interval: int
) -> tuple[int, ...]:
    """SAMPLER_MODE `order`: `count` visible frames in [base - interval, base + interval), in order or reversed."""
    base = visible[generator.integers(len(visible))]
    interval = max_interval
    while True:
        first, last = np.searchsorted(visible, (base - interval, base + interval))
        if last > first:
            break
        interval += WIDEN_BY
    chosen = np.sort(visible[generator.integers(first, last, count)])
    return tuple(int(frame) for frame in (chosen if generator.random() < 0.5 else chosen[::-1]))
