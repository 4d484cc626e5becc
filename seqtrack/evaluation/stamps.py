"""A stamp of each sequence of a benchmark: of its boxes and some frames, so that old results meet no new truth.

It is the same for a tree and for its packed form, with tiles or without: boxes are taken as packed trees have them, and
frames that are JPEGs by their pictures at an eighth of their size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from seqtrack.data.datasets.reading import has_size
from seqtrack.data.stamp import ABSENT, DIGITS, NO_PICTURE, draw_frames, hash_file, hash_picture, read_frame
from seqtrack.data.storage import READS_AT_ONCE, Root, SpanReader, first_of
from seqtrack.errors import InputError
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.files import read_text
from seqtrack.locations import absolute, filesystem_at

IDENTITY_FILE = "evaluation.json"
"""What a folder of results says of itself."""
STAMPS = "data"
"""Its entry with the stamp of each sequence."""
UNKNOWN = "-"
"""In place of the hash of frames that were not looked for."""
DRAWN = 2
"""Frames of a sequence that are drawn beside its first and last one."""


def stamp_sequences(root: Root, sequences: Sequence[BenchmarkSequence]) -> dict[str, str]:
    """Name of each sequence -> its stamp. Raises DataError for frames that cannot be read."""
    spans = SpanReader(root)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        stamps = pool.map(lambda one: _stamp(root, spans, one), sequences)
        return dict(zip((one.name for one in sequences), stamps, strict=True))


def _stamp(root: Root, spans: SpanReader, sequence: BenchmarkSequence) -> str:
    """Two hashes: of the boxes, and of the frames if these were looked for."""
    truth = sequence.truth
    boxes = np.ascontiguousarray(truth.boxes_xywh, np.float32)
    visible = has_size(boxes) & ~truth.absent
    digest = hashlib.sha256(f"{sequence.name} {len(boxes)} {truth.resolution}\n".encode())
    for array in (np.nan_to_num(boxes), visible, truth.cover):
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return f"{digest.hexdigest()[:DIGITS]} {_stamp_frames(root, spans, sequence)}"


def _stamp_frames(root: Root, spans: SpanReader, sequence: BenchmarkSequence) -> str:
    if sequence.frames is None:
        return UNKNOWN
    count = len(sequence.frames)
    digest = hashlib.sha256(f"{count}\n".encode())
    for frame in sorted({0, count - 1, *draw_frames(sequence.name, count, DRAWN)}):
        content = read_frame(root, spans, sequence.frames[frame])
        picture = NO_PICTURE if content is None else hash_picture(content)
        file = ABSENT if content is None else hash_file(str(frame), content)
        digest.update(f"{frame} {file if picture == NO_PICTURE else picture}\n".encode())
    return digest.hexdigest()[:DIGITS]


def changed_sequences(then: Mapping[str, object], now: Mapping[str, str]) -> list[str]:
    """The names of the sequences that have another stamp now. What is not known of both is not compared."""

    def differs(one: str, other: str) -> bool:
        return any(UNKNOWN not in pair and pair[0] != pair[1] for pair in zip(one.split(), other.split(), strict=False))

    return [name for name, stamp in now.items() if name in then and differs(str(then[name]), stamp)]


def read_stamps(identity: object, place: str) -> dict[str, object]:
    """The stamps in what `evaluation.json` of a folder of results holds; none if it is older. Raises InputError."""
    stamps = identity.get(STAMPS, {}) if isinstance(identity, dict) else None
    if not isinstance(stamps, dict):
        raise InputError(f"{place}/{IDENTITY_FILE}: {STAMPS} is no stamp for each sequence")
    return stamps


def check_results(place: str, stamps: Mapping[str, str]) -> None:
    """Raises InputError if a folder of results says that they are of other boxes or frames than there are now.

    `stamps`: those of today. Results of other programs say nothing.
    """
    filesystem, path = filesystem_at(absolute(place))
    text = read_text(filesystem, f"{path}/{IDENTITY_FILE}")
    try:
        then = {} if text is None else read_stamps(json.loads(text), place)
    except ValueError as error:
        raise InputError(f"{place}/{IDENTITY_FILE}: is cut off or damaged ({error})") from error
    if changed := changed_sequences(then, stamps):
        raise InputError(
            f"{place}: has results of other boxes or frames, which were replaced in {len(changed)} of "
            f"{len(stamps)} sequences since, {first_of(changed)}; they do not belong to what is there now"
        )
