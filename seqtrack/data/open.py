"""Opens the data sets that the settings name, packed or not: their annotations, and where their frames are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.frames import match_frames
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.layout import IncompleteSet, packed_archives
from seqtrack.data.mixture import Mixture, TrainingSet
from seqtrack.data.packed import FOLDER, INDEX, check_shards_exist, is_packed, open_packed_set, select_packed
from seqtrack.data.stamp import FrameStamp, stamp_mixture
from seqtrack.data.storage import DataError, NoSuchFolder, Root, list_folder, open_root
from seqtrack.data.triplets import TripletSource


@dataclass(frozen=True)
class Data:
    """The data that a run trains on."""

    mixture: Mixture
    notes: tuple[str, ...] = ()
    """What was found when it was opened and the user should know, a line each."""
    frames: FrameStamp | None = None
    """The stamp of the frames, once it was made."""

    def stamped(self) -> Data:
        """With the stamp. Raises DataError for frames that cannot be read."""
        return self if self.frames is not None else replace(self, frames=stamp_mixture(self.mixture))


def open_data(config: Config) -> Data:
    """Reads the annotations of all training sets and finds the frames. Raises DataError."""
    notes: list[str] = []
    names, ratios = config.DATA.TRAIN.DATASETS_NAME, config.DATA.TRAIN.DATASETS_RATIO
    mixture = Mixture(tuple(open_set(name, config.DATA, notes.append) for name in names), ratios)
    TripletSource.from_config(config, mixture)  # raises if a set has no sequence that can be drawn from
    return Data(mixture, tuple(notes))


def open_set(name: str, settings: DataConfig, note: Callable[[str], None] = lambda line: None) -> TrainingSet:
    """A training set where DATA.ROOTS or DATA.ROOT says it is. `note` gets lines for the log. Raises DataError."""
    setting, place = settings.place_of(name)
    root = open_root(str(place), setting)
    if name == "LASOT":
        return TrainingSet(name, open_index(settings, root, note), root)
    notes: list[str] = []

    def read(partial_set: bool) -> FrameIndex:
        if is_packed(root):
            return open_packed_set(name, root, notes.append, partial_set)
        _check_finished(root)
        return open_training_set(name, root, settings.ON_MISMATCH, notes.append, setting, partial_set)

    try:
        index, partial = read(partial_set=False), False
    except IncompleteSet as problem:
        if name not in settings.PARTIAL:
            allowed = ",".join((*settings.PARTIAL, name))
            raise IncompleteSet(f"{problem} (DATA.PARTIAL=[{allowed}] trains on what is there)") from problem
        notes.clear()
        index, partial = read(partial_set=True), True
    for line in notes:
        note(line)
    return TrainingSet(name, index, root, partial)


def open_index(settings: DataConfig, root: Root, note: Callable[[str], None] = lambda line: None) -> FrameIndex:
    """The annotations and frames of the sequences of SPLIT and CLASSES. `note` gets lines for the log.

    Raises DataError if annotations cannot be read, or frames or shards are missing.
    """
    if is_packed(root):
        index = select_packed(settings, root)
        check_shards_exist(index, root)
        return index
    _check_finished(root)
    index = match_frames(build_index(settings, root, note), root, settings.ON_MISMATCH, note)
    for line in packed_archives(root):
        note(f"{root.path}: {line}")
    return index


def _check_finished(root: Root) -> None:
    """Raises DataError for a folder with shards and no index. A chunk of TrackingNet has a folder of that name, too."""
    try:
        found = list_folder(root, f"{root.path}/{FOLDER}", hidden=True)
    except NoSuchFolder:
        return
    if any(entry.name.endswith((".parquet", ".unfinished")) for entry in found):
        raise DataError(f"{root.path}: has {FOLDER} but no {INDEX}: `seqtrack pack` has not finished there")
