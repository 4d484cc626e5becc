"""The training sets beside LaSOT by their published names: annotations and frames of each as one index."""

from __future__ import annotations

from collections.abc import Callable

from seqtrack.data.datasets import coco, got10k, trackingnet
from seqtrack.data.datasets.frames import OnMismatch, match_frames
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.storage import Root

OTHER_SETS = (*got10k.SETS, coco.SET, trackingnet.SET)
"""The names that `open_training_set` knows."""


def open_training_set(
    name: str,
    root: Root,
    on_mismatch: OnMismatch = "error",
    note: Callable[[str], None] = lambda line: None,
    setting: str = "DATA.ROOT",
    partial_set: bool = False,
) -> FrameIndex:
    """The index of one of OTHER_SETS in its own layout at this root. Its annotations come from the cache if they can.

    `on_mismatch`: what happens to a sequence whose frames do not fit its boxes, as in `match_frames`. `note` gets lines
    for the log. `setting` names the root in messages. `partial_set`: whether the copy may lack sequences; the index
    then has those that are there, and its fingerprint is theirs. An image set is marked by `FrameIndex.stills`.

    Raises DataError if something cannot be read or does not fit, and IncompleteSet (`layout.py`) if the copy lacks
    sequences and may not.
    """
    if name == coco.SET:
        return coco.match_images(coco.open_index(root, note, setting), root, on_mismatch, note)
    if name == trackingnet.SET:
        index = trackingnet.open_index(root, note, setting, partial_set)
    else:
        index = got10k.open_index(name, root, note, setting, partial_set)
    return match_frames(index, root, on_mismatch, note)
