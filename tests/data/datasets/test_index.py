"""Where an index says that frames are, and what its fingerprint depends on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqtrack.data.datasets.index import FIRST_FRAME, FRAME_NAMES, STILL, FrameIndex, count_from, make_index


def index_of(**columns: pa.Array) -> FrameIndex:
    """A sequence of two frames, visible in the first, and one of one frame."""
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    offsets, visible = np.array([0, 2, 3]), np.array([1, 0, 1], np.uint8)
    return make_index(["coin", "kite"], ["coin-1", "kite-2"], offsets, boxes, visible, **columns)


def texts(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.large_list(pa.string()) if isinstance(values[0], list) else pa.string())


def test_fingerprints_of_lasot_are_those_in_checkpoints() -> None:
    """The numbers were computed before other data sets could be read."""
    assert index_of().fingerprint == "74b21d30f68b2a8b347824cfbf33bf3dcf9a97d8551958fb001c5014f433f9bb"
    named = index_of(**{FRAME_NAMES: texts([["a1.png", "a2.png"], []])})
    assert named.fingerprint == "5b355cc295d0855a9966129cb5b456cd5923d64e93f6d8b1940408d318676fca"


@pytest.mark.parametrize(
    ("first", "frame", "name"),
    [
        ("00000001.jpg", 9, "00000010.jpg"),
        ("TRAIN_0/frames/a.b_0/0.jpg", 10, "TRAIN_0/frames/a.b_0/10.jpg"),
        ("TRAIN_11/frames/1.2/0.jpg", 3, "TRAIN_11/frames/1.2/3.jpg"),
        ("img/frame_099.PNG", 1, "img/frame_100.PNG"),
        ("images/a picture.jpg", 0, "images/a picture.jpg"),
    ],
)
def test_frames_count_up_from_the_first(first: str, frame: int, name: str) -> None:
    assert count_from(first)(frame) == name


def test_paths_are_lasots_unless_a_column_says_otherwise() -> None:
    assert index_of().frame_path(0, 1) == "coin/coin-1/img/00000002.jpg"
    other = index_of(**{FIRST_FRAME: texts(["a/0.jpg", "b/c/7.jpg"])})
    assert [other.frame_path(0, 1), other.frame_path(1, 0)] == ["a/1.jpg", "b/c/7.jpg"]
    listed = index_of(**{FIRST_FRAME: texts(["a/0.jpg", "b/c/7.jpg"]), FRAME_NAMES: texts([["x1.png", "x3.png"], []])})
    assert [listed.frame_path(0, 1), listed.frame_path(1, 0)] == ["a/x3.png", "b/c/7.jpg"]


def test_the_fingerprint_follows_the_names_of_frames_and_not_their_folders() -> None:
    prints = [
        index_of(**{FIRST_FRAME: texts(paths)}).fingerprint
        for paths in (["a/0.jpg", "b/0.jpg"], ["c/d/0.jpg", "0.jpg"], ["a/00.jpg", "b/0.jpg"])
    ]
    assert prints[0] == prints[1] != prints[2]


def test_visible_frames_are_counted_in_each_sequence() -> None:
    assert index_of().visible_counts.tolist() == [1, 1]


def test_sequences_of_an_image_set_are_marked() -> None:
    assert index_of().stills.tolist() == [False, False]
    assert index_of(**{STILL: pa.array([False, True])}).stills.tolist() == [False, True]
