"""Sequences of a benchmark in the slots of one tracker."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from seqtrack.config import Config
from seqtrack.data.storage import Root, read_bytes
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData, folder_of_sequences, open_benchmark
from seqtrack.evaluation.sequences import BenchmarkSequence, FrameFiles
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.tracker import BatchTracker, TrackerSettings, lanes
from seqtrack.tracker.lanes import AHEAD, Lanes, opener
from seqtrack.tracker.tracker import Tracker


@pytest.fixture
def model(tiny_config: Config) -> SeqTrack:
    return build_model(tiny_config).eval()


def shortened(sequence: BenchmarkSequence, frames: int) -> BenchmarkSequence:
    assert isinstance(sequence.frames, FrameFiles)
    return dataclasses.replace(sequence, frames=dataclasses.replace(sequence.frames, count=frames))


@pytest.fixture
def data(lasot_root: Path) -> BenchmarkData:
    """Four sequences of unequal length."""
    opened = open_benchmark(folder_of_sequences("mine"), str(lasot_root))
    lengths = zip(opened.sequences, (9, 3, 1, 6), strict=True)
    return dataclasses.replace(opened, sequences=tuple(shortened(one, length) for one, length in lengths))


def tracked(data: BenchmarkData, model: SeqTrack, config: Config, slots: int, backwards: bool) -> dict[str, np.ndarray]:
    side_by_side = Lanes(BatchTracker(model, TrackerSettings.from_config(config), slots), data.root)
    waiting, found = list(data.sequences if backwards else reversed(data.sequences)), {}
    while waiting or side_by_side.free < slots:
        while waiting and side_by_side.free:
            side_by_side.begin(waiting.pop())
        for name, track in side_by_side.step():
            assert track.seconds is not None and len(track.seconds) == len(track.boxes_xywh)
            found[name] = track.boxes_xywh
    side_by_side.close()
    return found


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_each_sequence_has_the_boxes_that_it_has_alone(
    data: BenchmarkData, model: SeqTrack, tiny_config: Config, slots: int, backwards: bool
) -> None:
    found = tracked(data, model, tiny_config, slots, backwards)
    open_frame, alone = opener(data.root), Tracker(model, TrackerSettings.from_config(tiny_config))
    assert found.keys() == {one.name for one in data.sequences}
    for one in data.sequences:
        assert one.frames is not None
        pictures = [open_frame(one.frames[number]) for number in range(len(one))]
        whole = [picture.pixels(0, 0, picture.width, picture.height) for picture in pictures]
        alone.initialize(whole[0], one.truth.boxes_xywh[0])
        expected = [tuple(one.truth.boxes_xywh[0]), *(alone.track(picture).box_xywh for picture in whole[1:])]
        assert found[one.name].tolist() == [list(box) for box in expected]


def test_an_object_store_is_asked_for_all_frames_ahead_at_once(
    data: BenchmarkData, model: SeqTrack, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, together = data.sequences[0], threading.Barrier(AHEAD + 1, timeout=10)
    assert first.frames is not None
    ahead = {first.frames[number] for number in range(AHEAD + 1)}

    def read(root: Root, path: str) -> bytes:
        if path in ahead:
            together.wait()  # raises an error unless as many reads wait for each other
        return read_bytes(root, path)

    monkeypatch.setattr(lanes, "read_bytes", read)
    store = Root(fs.SubTreeFileSystem(data.root.path, fs.LocalFileSystem()), "")
    alone = dataclasses.replace(data, root=store, sequences=(first,))
    assert tracked(alone, model, tiny_config, 1, False).keys() == {first.name}


def test_a_frame_that_cannot_be_read_is_named(
    data: BenchmarkData, model: SeqTrack, tiny_config: Config, tmp_path: Path
) -> None:
    shutil.copytree(data.root.path, tmp_path / "tree")
    broken = tmp_path / "tree/coin/coin-1/img/00000003.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    copied = dataclasses.replace(data, root=data.root._replace(path=str(tmp_path / "tree")))
    with pytest.raises(InputError, match=r"coin-1/img/00000003\.jpg cannot be read"):
        tracked(copied, model, tiny_config, 2, False)
