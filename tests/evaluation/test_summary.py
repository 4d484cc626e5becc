"""What is said of trackers: tables, intervals, and files in which each number has its protocol beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.curves import Measure
from seqtrack.evaluation.results import Results, Track
from seqtrack.evaluation.summary import by_sequence, evaluate, interval, summarise, table_lines, write_summary
from tests.evaluation.tracks import made_up
from tests.evaluation.trees import opened, write_got10k, write_lasot

NAMES = ("coin-3", "coin-6", "kite-4", "kite-6")


@pytest.fixture
def data(tmp_path: Path) -> BenchmarkData:
    for name in NAMES:
        write_lasot(tmp_path / "lasot", name, frames=40)
    return opened("lasot", tmp_path / "lasot")


def results(data: BenchmarkData, drift: float = 1.0, without: tuple[str, ...] = ()) -> Results:
    tracks = {
        one.name: Track(made_up(one.truth.boxes_xywh, number, drift), np.full(len(one), 0.05))
        for number, one in enumerate(data.sequences)
        if one.name not in without
    }
    return Results("here", tracks, without, ())


def test_any_number_of_trackers_are_in_one_table_the_best_first(data: BenchmarkData) -> None:
    trackers = {"drifting": results(data, 3.0), "still": results(data, 0.1), "slow": results(data, 1.0)}
    heading, *lines = table_lines(evaluate(data, trackers))
    assert heading.startswith("LaSOT test, 4 of 280 sequences, protocol pytracking")
    assert [line.split()[0] for line in lines] == ["still", "slow", "drifting"]
    assert all(f" {name} " in lines[0] for name in ("AUC", "OP50", "OP75", "P", "P_norm"))


def test_trackers_are_compared_on_the_sequences_that_all_have_results_of(data: BenchmarkData) -> None:
    trackers = {"whole": results(data), "partial": results(data, without=("kite-4",))}
    whole, partial = evaluate(data, trackers)
    assert (
        [one.name for one in whole.sequences]
        == [one.name for one in partial.sequences]
        == ["coin-3", "coin-6", "kite-6"]
    )
    assert whole.coverage == "3 of 280 sequences"
    assert (whole.missing["kite-4"], partial.missing["kite-4"]) == ("no results of others", "no results")
    assert whole.notes == ("whole: 1 sequences are left out that others lack, the first: kite-4",)
    assert partial.notes == ("partial: 1 sequences have no results, the first: kite-4",)


def test_trackers_without_a_common_sequence_are_not_compared(data: BenchmarkData) -> None:
    trackers = {"a": results(data, without=NAMES[:2]), "b": results(data, without=NAMES[2:])}
    with pytest.raises(InputError, match="LaSOT test: no sequence has results of all of a, b"):
        evaluate(data, trackers)


def test_a_protocol_can_be_chosen_and_is_the_benchmarks_own_otherwise(data: BenchmarkData, tmp_path: Path) -> None:
    assert evaluate(data, {"a": results(data)})[0].scores.protocol == "pytracking"
    assert evaluate(data, {"a": results(data)}, "lasot-toolkit")[0].scores.protocol == "lasot-toolkit"
    write_got10k(tmp_path, "val", 1)
    val = opened("got10k_val", tmp_path)
    assert evaluate(val, {"a": results(val)})[0].scores.protocol == "got10k"


@pytest.mark.parametrize("with_frames", [True, False])
def test_withheld_annotations_are_not_scored(tmp_path: Path, with_frames: bool) -> None:
    write_got10k(tmp_path, "test", 1)
    test = opened("got10k_test", tmp_path, with_frames)
    with pytest.raises(InputError, match=r"GOT-10k test: the annotations of 1 sequences are not public .* a zip"):
        evaluate(test, {"a": results(test)})


def test_hits_in_frames_without_a_target_are_said(data: BenchmarkData, tmp_path: Path) -> None:
    assert evaluate(data, {"a": results(data)})[0].notes == ()
    write_lasot(tmp_path / "ext", "atv-1", frames=5)
    extension = opened("lasot_ext", tmp_path / "ext")
    (one,) = evaluate(extension, {"a": results(extension)})
    assert one.notes == ("pytracking counts the 1 frames of lasot_ext without a target as hits of P_norm",)


def test_classes_and_attributes_are_means_over_their_sequences(data: BenchmarkData) -> None:
    (one,) = evaluate(data, {"a": results(data)})
    auc = one.scores.measures["auc"]
    assert one.classes == {"coin": [0, 1], "kite": [2, 3]}
    assert auc.mean(one.classes["coin"]) == pytest.approx(auc.values[:2].mean())
    with_low_resolution = [row for row, sequence in enumerate(one.sequences) if "LR" in sequence.attributes]
    assert one.attributes["LR"] == with_low_resolution != []
    summary = summarise([one])["evaluations"][0]
    assert summary["attributes"]["LR"]["auc"]["value"] == pytest.approx(auc.values[with_low_resolution].mean())
    assert summary["classes"]["kite"]["sequences"] == 2


def test_the_interval_is_that_of_the_mean_and_the_same_each_time() -> None:
    values = np.random.default_rng(3).normal(60, 10, 400)
    measure = Measure(values, np.ones(400))
    low, high = interval(measure) or (0.0, 0.0)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.2)
    assert interval(measure) == (low, high)


def test_the_interval_weights_sequences_as_the_mean_does() -> None:
    measure = Measure(np.array([10.0, 90.0, np.nan]), np.array([1.0, 999.0, 0.0]))
    low, high = interval(measure) or (0.0, 0.0)
    assert (low, high) == pytest.approx((10, 90))
    assert interval(measure, [0, 1]) == (low, high)
    assert interval(measure, [1, 2]) is None  # one sequence says nothing about others


def test_each_number_is_stored_beside_its_protocol(data: BenchmarkData, tmp_path: Path) -> None:
    evaluations = [*evaluate(data, {"a": results(data)}), *evaluate(data, {"a": results(data)}, "trackingnet")]
    write_summary(fs.LocalFileSystem(), str(tmp_path / "out"), evaluations)
    table = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert [row["protocol"] for row in table] == ["pytracking"] * 4 + ["trackingnet"] * 4
    assert (table[0]["sequence"], table[0]["class"], table[0]["frames"]) == ("coin-3", "coin", 40)
    assert table[0]["frames_per_second"] == pytest.approx(20)
    assert table[0]["auc"] == evaluations[0].scores.measures["auc"].values[0]
    assert table[4]["op50"] is None and len(table[4]["success_curve"]) == 21
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    first, second = summary["evaluations"]
    assert (first["sequences"], first["of"], len(first["missing"])) == (4, 280, 276)
    for one, protocol in ((first, "pytracking"), (second, "trackingnet")):
        assert {number["protocol"] for number in one["measures"].values()} == {protocol}
        auc = one["measures"]["auc"]
        assert auc["low"] <= auc["value"] <= auc["high"]


def test_numbers_that_do_not_exist_are_null(tmp_path: Path) -> None:
    folder = write_got10k(tmp_path, "val", 1)
    (folder / "cover.label").write_text("0\n0\n0\n")
    val = opened("got10k_val", tmp_path)
    evaluations = evaluate(val, {"a": results(val)})
    assert summarise(evaluations)["evaluations"][0]["measures"]["ao"]["value"] is None
    assert by_sequence(evaluations)["ao"].to_pylist() == [None]
    write_summary(fs.LocalFileSystem(), str(tmp_path / "out"), evaluations)


def test_folders_of_ones_own_count_what_has_no_results(data: BenchmarkData) -> None:
    mine = dataclasses.replace(data, size=None, missing={})
    assert evaluate(mine, {"a": results(mine)})[0].coverage == "4 sequences (all that were found)"
    assert evaluate(mine, {"a": results(mine, without=("kite-4",))})[0].coverage == "3 of 4 sequences"
