"""Opens the data set that the settings name, packed or not, and checks its annotations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.packed import FOLDER, INDEX, check_shards_exist, first_of, is_packed, select_packed
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.data.triplets import TripletSource


@dataclass(frozen=True)
class Data:
    """The data that a run trains on."""

    index: FrameIndex
    root: Root


def open_data(config: Config) -> Data:
    """Reads the annotations at DATA.ROOT and checks that the frames exist. Raises DataError."""
    root = open_root(str(config.DATA.ROOT))
    index = open_index(config.DATA, root)
    TripletSource.from_config(config, index, root)  # raises if no sequence can be drawn from
    check_frames_exist(index, root)
    return Data(index, root)


def open_index(settings: DataConfig, root: Root) -> FrameIndex:
    """The annotations of the sequences of SPLIT and CLASSES. Raises DataError."""
    if is_packed(root):
        return select_packed(settings, root)
    if root.filesystem.get_file_info(f"{root.path}/{FOLDER}").type == fs.FileType.Directory:
        raise DataError(f"{root.path}: has {FOLDER} but no {INDEX}: `seqtrack pack-lasot` has not finished there")
    return build_index(settings, root)


def check_frames_exist(index: FrameIndex, root: Root) -> None:
    """Raises DataError if a sequence has annotations but no folder of frames, or a shard is missing or cut off."""
    if index.packed:
        check_shards_exist(index, root)
        return
    folders = [Path(index.frame_path(row, 0)).parent.as_posix() for row in range(len(index.names))]
    infos = root.filesystem.get_file_info([f"{root.path}/{folder}" for folder in folders])
    missing = [folder for folder, info in zip(folders, infos, strict=True) if info.type != fs.FileType.Directory]
    if missing:
        raise DataError(f"{root.path}: {len(missing)} of {len(folders)} sequences have no frames, {first_of(missing)}")
