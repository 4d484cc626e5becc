"""The protocols: the numbers of the published code and of the official tools, and what a frame without a target is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from seqtrack.data.datasets.annotations import parse_boxes, parse_flags
from seqtrack.errors import InputError
from seqtrack.evaluation.protocols import PROTOCOLS, Truth, score
from tests.evaluation.tracks import made_up

Golden = Callable[[str], Any]


@pytest.fixture(scope="session")
def coins_and_kites(shared_data: Path) -> Callable[[Sequence[str]], list[Truth]]:
    """Real annotations by the name of the sequence."""

    def read(names: Sequence[str]) -> list[Truth]:
        truths = []
        for name in names:
            folder = shared_data / "lasot_annotations" / name.partition("-")[0] / name
            absent = [parse_flags((folder / f"{kind}.txt").read_bytes()) for kind in ("full_occlusion", "out_of_view")]
            boxes = parse_boxes((folder / "groundtruth.txt").read_bytes()).astype(np.float64)
            truths.append(Truth(boxes, (absent[0] | absent[1]).astype(bool)))
        return truths

    return read


@pytest.mark.parametrize("case", [0, 1])
def test_pytracking_agrees_with_the_published_code(
    golden: Golden, coins_and_kites: Callable[[Sequence[str]], list[Truth]], case: int
) -> None:
    published = golden("evaluation")[case]
    truths = coins_and_kites(list(published["sequences"]))
    tracks = [made_up(one.boxes_xywh, published["seed"] + k, published["drift"]) for k, one in enumerate(truths)]
    scores = score("pytracking", "lasot", truths, tracks)
    for name in ("auc", "op50", "op75", "precision", "normalized_precision"):
        assert scores.measures[name].mean() == pytest.approx(published[name], rel=1e-6), name
    assert scores.curves["success"].mean() == pytest.approx(np.array(published["success_curve"]), rel=1e-6)
    for row, expected in enumerate(published["sequences"].values()):
        for name in ("auc", "precision", "normalized_precision"):
            assert scores.measures[name].values[row] == pytest.approx(expected[name], rel=1e-6), (name, row)
        assert scores.measures["average_overlap"].values[row] == pytest.approx(100 * expected["average_overlap"])
        assert scores.frames[row] == expected["frames"]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_got10k_and_trackingnet_agree_with_their_own_tools(
    golden: Golden, coins_and_kites: Callable[[Sequence[str]], list[Truth]], case: int
) -> None:
    published = golden("evaluation_got10k_trackingnet")[case]
    truths = []
    for one in coins_and_kites(published["sequences"]):
        cover = np.where(one.absent, 0, 1 + np.arange(len(one.absent)) % 8)
        truths.append(Truth(one.boxes_xywh, one.absent, cover, tuple(published["resolution"])))
    tracks = [made_up(one.boxes_xywh, published["seed"] + k, published["drift"]) for k, one in enumerate(truths)]
    got10k = score("got10k", "got10k_val", truths, tracks)
    for name in ("ao", "sr50", "sr75"):
        assert got10k.measures[name].mean() == pytest.approx(100 * published["got10k"][name], rel=1e-6), name
    assert got10k.measures["ao"].weights.sum() == published["got10k"]["frames"]
    trackingnet = score("trackingnet", "trackingnet", truths, tracks)
    for ours, theirs in (("auc", "success"), ("precision",) * 2, ("normalized_precision",) * 2):
        expected = published["trackingnet"][theirs]
        assert trackingnet.measures[ours].mean() == pytest.approx(expected, rel=1e-6), theirs


@pytest.mark.parametrize("protocol", ["pytracking", "lasot-toolkit"])
def test_all_test_sequences_of_lasot_get_the_published_numbers_also_by_attribute(
    golden: Golden, shared_data: Path, protocol: str
) -> None:
    file = shared_data / "lasot_test_annotations.parquet"
    if not file.exists():
        pytest.skip(f"no annotations of LaSOT's test sequences at {file}")
    published = golden("evaluation_lasot_test")
    table = pq.read_table(file)
    boxes = [np.asarray(one, np.float64).reshape(-1, 4) for one in table["boxes_xywh"].to_pylist()]
    absent = [np.asarray(one, bool) for one in table["absent"].to_pylist()]
    truths = [Truth(*one) for one in zip(boxes, absent, strict=True)]
    tracks = [made_up(one, published["seed"] + k, published["drift"]) for k, one in enumerate(boxes)]
    began = time.perf_counter()
    scores = score(protocol, "lasot", truths, tracks)
    print(f"\n{protocol}: {len(truths)} sequences in {time.perf_counter() - began:.2f} s")
    expected = published[protocol]
    for name in expected.keys() & scores.measures.keys():
        assert scores.measures[name].mean() == pytest.approx(expected[name], abs=1e-4, rel=1e-6), name
    has = np.array(table["attributes"].to_pylist(), bool)
    by_attribute = [scores.measures["auc"].mean(np.flatnonzero(column)) for column in has.T]
    assert by_attribute == pytest.approx(expected["auc_by_attribute"], rel=1e-6)
    for row, auc in enumerate(expected.get("auc_first_5_sequences", ())):
        assert scores.measures["auc"].values[row] == pytest.approx(auc, rel=1e-6)


def one_of_two(absent: bool = True) -> tuple[list[Truth], list[Any]]:
    """A track that is right in both frames, of which the second does not show the target."""
    boxes = np.array([[10.0, 20, 30, 40], [10, 20, 30, 40]])
    return [Truth(boxes, np.array([False, absent]))], [boxes.copy()]


@pytest.mark.parametrize(
    ("protocol", "benchmark", "precision", "normalized_precision"),
    [
        ("pytracking", "lasot", 50, 50),
        ("pytracking", "lasot_ext", 50, 100),
        ("pytracking", "nfs", 50, 100),
        ("pytracking", "uav123", 100, 100),
        ("lasot-toolkit", "lasot_ext", 50, 50),
    ],
)
def test_a_frame_without_a_target_is_what_its_protocol_says(
    protocol: str, benchmark: str, precision: float, normalized_precision: float
) -> None:
    measures = score(protocol, benchmark, *one_of_two()).measures
    assert measures["auc"].mean() == pytest.approx(50 * 20 / 21)
    assert measures["precision"].mean() == precision
    assert measures["normalized_precision"].mean() == normalized_precision


def test_frames_with_nan_leave_both_sides_only_under_got10k() -> None:
    boxes = np.array([[10.0, 20, 30, 40], [np.nan] * 4, [10, 20, 30, 40]])
    truth, track = Truth(boxes, np.zeros(3, bool)), np.nan_to_num(boxes)
    assert score("got10k", "otb100", [truth], [track]).measures["precision"].mean() == 100
    assert score("pytracking", "otb100", [truth], [track]).measures["precision"].mean() == pytest.approx(200 / 3)


def test_a_perfect_track_has_an_auc_of_20_out_of_21() -> None:
    for protocol in ("pytracking", "lasot-toolkit", "got10k"):
        assert score(protocol, "otb100", *one_of_two(absent=False)).measures["auc"].mean() == pytest.approx(2000 / 21)
    assert score("trackingnet", "trackingnet", *one_of_two(absent=False)).measures["auc"].mean() == pytest.approx(100)


def test_an_empty_prediction_takes_the_box_before_it() -> None:
    truth = np.tile([10.0, 20, 30, 40], (4, 1))
    track = np.array([[10.0, 20, 30, 40], [10, 20, 30, 40], [0, 0, 0, 0], [0, 0, 0, 9]])
    for protocol in ("pytracking", "lasot-toolkit"):
        measures = score(protocol, "lasot", [Truth(truth, np.zeros(4, bool))], [track]).measures
        assert measures["precision"].mean() == 100


def test_an_empty_prediction_never_takes_the_box_of_another_sequence() -> None:
    truth = Truth(np.tile([10.0, 20, 30, 40], (2, 1)), np.zeros(2, bool))
    tracks = [truth.boxes_xywh.copy(), np.zeros((2, 4))]
    assert score("pytracking", "lasot", [truth] * 2, tracks).measures["precision"].values.tolist() == [100, 50]


def test_the_first_box_is_the_annotation_of_its_own_sequence() -> None:
    truths = [Truth(np.tile([place, 20.0, 30, 40], (2, 1)), np.zeros(2, bool)) for place in (10.0, 500.0)]
    tracks = [np.array([[0.0, 0, 5, 5], truth.boxes_xywh[1]]) for truth in truths]
    for protocol in PROTOCOLS:
        assert score(protocol, "lasot", truths, tracks).measures["auc"].mean() > 95


def test_overlaps_at_a_threshold_count_only_for_trackingnet() -> None:
    truth = Truth(np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]]), np.zeros(2, bool))
    half = np.array([[0.0, 0, 10, 10], [0, 0, 5, 10]])
    assert score("pytracking", "lasot", [truth], [half]).measures["op50"].mean() == 50
    success = score("trackingnet", "trackingnet", [truth], [half]).curves["success"].mean()
    assert (success[10], success[11]) == (100, 50)


def test_a_sequence_without_any_frame_that_counts_is_left_out_of_the_mean() -> None:
    truths, tracks = one_of_two(absent=False)
    hidden = Truth(truths[0].boxes_xywh, np.zeros(2, bool), cover=np.zeros(2, np.int64))
    scores = score("got10k", "got10k_val", [truths[0], hidden], tracks * 2)
    assert scores.measures["ao"].mean() == pytest.approx(100)
    assert np.isnan(scores.measures["ao"].mean([1]))


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"protocol got10: known are pytracking, .*; did you mean got10k\?"):
        score("got10", "lasot", *one_of_two())
