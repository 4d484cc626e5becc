"""What writes files: with the permissions that the umask gives, and where the disk is full, the old files stay."""

from __future__ import annotations

import dataclasses
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import fs

from seqtrack.config import Config, SyntheticConfig
from seqtrack.data.datasets.cache import VARIABLE, kept_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.storage import Root
from seqtrack.evaluation.results import Track, write_track
from seqtrack.evaluation.submissions import write_got10k_zip
from seqtrack.integrations.archives import unpack
from seqtrack.model.weights import save_published, save_safetensors
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.runs.log import MetricsFile, append_to_log
from seqtrack.tracker.follow import Followed
from seqtrack.tracker.recording import Recording
from seqtrack.tracker.sources import Shot
from seqtrack.tracker.tracker import Tracked
from seqtrack.transfer import send
from tests.checkpoints import save
from tests.data.packs import index_of, local, pack
from tests.evaluation.trees import opened, write_got10k
from tests.integrations.copies import read_tree, zipped

LOCAL = fs.LocalFileSystem()
WEIGHTS = {"weight": torch.arange(1000.0)}
NUMBERS = np.arange(800.0).reshape(200, 4)


@dataclasses.dataclass
class Place:
    """Where a writer writes, and what it writes from."""

    folder: Path
    inputs: Path
    tree: Path
    config: Config

    @property
    def run(self) -> RunFolder:
        return RunFolder.of(self.config.with_settings({"RUN.STORAGE_PATH": str(self.folder)}))


@pytest.fixture
def place(lasot_root: Path, tiny_config: Config, tmp_path: Path) -> Place:
    for name in ("folder", "inputs"):
        (tmp_path / name).mkdir()
    return Place(tmp_path / "folder", tmp_path / "inputs", lasot_root, tiny_config)


Write = Callable[[], object]


def tracks(place: Place) -> Write:
    def write() -> None:
        image = np.zeros((48, 64, 3), np.uint8)
        with Recording(place.folder / "tracks", "clip", 2, Fraction(25), crops=True) as recording:
            for number in range(12):
                found = [Tracked((number, y, 9.0, 9.0), 3.0) for y in (1.0, 20.0)]
                recording.add(Followed(Shot(number, number / 25, image), found, 0.1), image)

    return write


def submission(place: Place) -> Write:
    write_got10k(place.inputs, "test", 1)
    data = dataclasses.replace(opened("got10k_test", place.inputs), size=1)
    boxes = {one.name: Track(np.ones((len(one), 4)), np.ones(len(one))) for one in data.sequences}
    return lambda: write_got10k_zip(str(place.folder / "results.zip"), "mine", data, boxes)


def settings(place: Place) -> Write:
    return lambda: write_settings(place.config, place.run)


def scores(place: Place) -> Write:
    place.run.create()
    many = CheckpointScores("a", 1, "mine", "pytracking", 1, 1, {f"measure{number}": 1.0 for number in range(20)})
    return lambda: add_evaluation(place.run, many)


def unpacked(place: Place) -> Write:
    (place.folder / "tree").mkdir(exist_ok=True)
    size = 500 + len(list(place.inputs.iterdir()))  # another one each time
    archive = place.inputs / f"{size}.zip"
    archive.write_bytes(zipped({"a/b.jpg": bytes(size)}))
    return lambda: unpack(archive, place.folder / "tree", lambda path: path)


def sent(place: Place) -> Write:
    (place.inputs / "page").mkdir(exist_ok=True)
    (place.inputs / "page/index.html").write_text("page " * 100)
    return lambda: send(place.inputs / "page", LOCAL, str(place.folder / "sent"))


def result_files(place: Place) -> Write:
    return lambda: write_track(LOCAL, f"{place.folder}/mine", "a", Track(NUMBERS, NUMBERS[:, 0]))


WRITERS: dict[str, Callable[[Place], Write]] = {
    "tracks": tracks,
    "submission": submission,
    "settings": settings,
    "scores": scores,
    "unpacked zip": unpacked,
    "report": sent,
    "safetensors": lambda place: lambda: save_safetensors(WEIGHTS, place.folder / "a.safetensors"),
    "published form": lambda place: lambda: save_published(WEIGHTS, place.folder / "a.pth.tar"),
    "checkpoint": lambda place: lambda: save(place.config, place.folder / "run", 6),
    "result files": result_files,
}
"""What writes files a second time in place of those that are there."""


def synthetic(place: Place) -> None:
    write_synthetic(place.folder / "synthetic", SyntheticConfig(SEQUENCES=1, FRAMES=20, HEIGHT=64, WIDTH=64))


def logs(place: Place) -> None:
    place.run.create()
    append_to_log(place.run, ["line"])
    MetricsFile(place.run, 0).add({"step": 1, "time": 0, "loss": 1.0})


def index(place: Place) -> None:
    kept_index("set", Root(LOCAL, "nowhere"), lambda: ["1"], lambda: index_of(place.tree))


OTHERS: dict[str, Callable[[Place], object]] = {
    "synthetic data": synthetic,
    "logs": logs,
    "index": index,
    "packed tree": lambda place: pack(place.tree, local(place.folder / "packed")),
}


@contextmanager
def under(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077], ids=oct)
def test_files_and_folders_have_the_permissions_that_the_umask_gives(
    place: Place, monkeypatch: pytest.MonkeyPatch, mask: int
) -> None:
    monkeypatch.setenv(VARIABLE, str(place.folder / "cache"))
    place.folder.chmod(0o2777)  # what is made in it has its group, as in a folder that colleagues share
    with under(mask):
        for writer in WRITERS.values():
            writer(place)()
        for other in OTHERS.values():
            other(place)
    wrong = {
        str(path): oct(path.lstat().st_mode)
        for path in place.folder.rglob("*")
        if stat.S_IMODE(path.lstat().st_mode) != (0o2777 if path.is_dir() else 0o666) & ~mask
    }
    assert wrong == {}
    assert {path.lstat().st_gid for path in place.folder.rglob("*")} == {place.folder.lstat().st_gid}


@contextmanager
def full_disk(size: int = 100) -> Iterator[None]:
    """No file can grow beyond this many bytes: the system refuses to write, as for a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_on_a_full_disk_the_old_files_stay_and_nothing_is_left(
    writer: Callable[[Place], Write], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    writer(place)()
    before, write = read_tree(place.folder), writer(place)
    with full_disk(), pytest.raises(Exception, match=r"."):  # what the library raises that writes
        write()
    assert read_tree(place.folder) == before


@pytest.mark.parametrize("frames", [5, 60], ids=["at the end", "while it tracks"])
def test_a_recording_that_cannot_be_written_whole_is_not_written(frames: int, place: Place) -> None:
    """A video is larger than the tables, so that only it does not fit."""
    old = {name: place.folder / f"clip{name}" for name in (".txt", "_time.txt", ".mp4")}
    for file in (*old.values(), place.folder / "boxes.csv"):
        file.write_text("old")
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    with full_disk(10_000), pytest.raises(OSError), Recording(place.folder, "clip", 1, Fraction(25)) as recording:
        for number in range(frames):
            shot = Shot(number, number / 25, np.roll(noise, number * 7919))
            recording.add(Followed(shot, [Tracked((1.0, 1.0, 9.0, 9.0), 3.0)], 0.1), shot.image)
    assert set(read_tree(place.folder).values()) == {b"old"} and len(read_tree(place.folder)) == 4


def test_what_was_tracked_before_another_error_is_written(place: Place) -> None:
    shot = Shot(0, 0.0, np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ZeroDivisionError), Recording(place.folder, "clip", 1, Fraction(25)) as recording:
        recording.add(Followed(shot, [Tracked((1.0, 2.0, 9.0, 9.0), 3.0)], 0.1), shot.image)
        raise ZeroDivisionError
    assert (place.folder / "clip.txt").read_text() == "1.0000\t2.0000\t9.0000\t9.0000\n"
    assert sorted(read_tree(place.folder)) == ["boxes.csv", "clip.mp4", "clip.txt", "clip_time.txt"]
