"""Opens the data set that the settings name, packed or not: its annotations, and where its frames are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyarrow import fs

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets.frames import match_frames
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.layout import packed_archives
from seqtrack.data.packed import FOLDER, INDEX, check_shards_exist, is_packed, select_packed
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.data.triplets import TripletSource


@dataclass(frozen=True)
class Data:
    """The data that a run trains on."""

    index: FrameIndex
    root: Root
    notes: tuple[str, ...] = ()
    """What was found when it was opened and the user should know, a line each."""


def open_data(config: Config) -> Data:
    """Reads the annotations at DATA.ROOT and finds the frames. Raises DataError."""
    notes: list[str] = []
    root = open_root(str(config.DATA.ROOT))
    index = open_index(config.DATA, root, notes.append)
    TripletSource.from_config(config, index, root)  # raises if no sequence can be drawn from
    return Data(index, root, tuple(notes))


def open_index(settings: DataConfig, root: Root, note: Callable[[str], None] = lambda line: None) -> FrameIndex:
    """The annotations and frames of the sequences of SPLIT and CLASSES. `note` gets lines for the log.

    Raises DataError if annotations cannot be read, or frames or shards are missing.
    """
    if is_packed(root):
        index = select_packed(settings, root)
        check_shards_exist(index, root)
        return index
    if root.filesystem.get_file_info(f"{root.path}/{FOLDER}").type == fs.FileType.Directory:
        raise DataError(f"{root.path}: has {FOLDER} but no {INDEX}: `seqtrack pack-lasot` has not finished there")
    index = match_frames(build_index(settings, root, note), root, settings.ON_MISMATCH, note)
    for line in packed_archives(root):
        note(f"{root.path}: {line}")
    return index
