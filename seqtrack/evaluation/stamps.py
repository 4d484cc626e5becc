"""A stamp of each sequence of a benchmark: of its boxes and some frames, so that old results meet no new truth.

It is the same for a tree and for its packed form, with tiles or without: boxes are taken as packed trees have them, and
frames that are JPEGs by their pictures at an eighth of their size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from seqtrack.data.datasets.reading import has_size
from seqtrack.data.stamp import ABSENT, DIGITS, NO_PICTURE, draw_frames, hash_file, hash_picture, read_frame
from seqtrack.data.storage import READS_AT_ONCE, Root, SpanReader
from seqtrack.evaluation.sequences import BenchmarkSequence

DRAWN = 2
"""Frames of a sequence that are drawn beside its first and last one."""


def stamp_sequences(root: Root, sequences: Sequence[BenchmarkSequence]) -> dict[str, str]:
    """Name of each sequence -> its stamp. Raises DataError for frames that cannot be read."""
    spans = SpanReader(root)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        stamps = pool.map(lambda one: _stamp(root, spans, one), sequences)
        return dict(zip((one.name for one in sequences), stamps, strict=True))


def _stamp(root: Root, spans: SpanReader, sequence: BenchmarkSequence) -> str:
    truth = sequence.truth
    boxes = np.ascontiguousarray(truth.boxes_xywh, np.float32)
    visible = has_size(boxes) & ~truth.absent
    digest = hashlib.sha256(f"{sequence.name} {len(sequence)} {truth.resolution}\n".encode())
    for array in (np.nan_to_num(boxes), visible, truth.cover):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    if sequence.frames is not None:
        count = len(sequence.frames)
        for frame in sorted({0, count - 1, *draw_frames(sequence.name, count, DRAWN)}):
            content = read_frame(root, spans, sequence.frames[frame])
            picture = NO_PICTURE if content is None else hash_picture(content)
            file = ABSENT if content is None else hash_file(str(frame), content)
            digest.update(f"{frame} {file if picture == NO_PICTURE else picture}\n".encode())
    return digest.hexdigest()[:DIGITS]


def changed_sequences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The names of the sequences that have another stamp now. Those that are not in both are not compared."""
    return [name for name, stamp in now.items() if then.get(name, stamp) != stamp]
