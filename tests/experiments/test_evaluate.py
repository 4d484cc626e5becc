"""`seqtrack evaluate`: models are tracked on a real Ray cluster, and folders of results are compared without one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from pyarrow import fs

from seqtrack.cli import main
from seqtrack.data.storage import Root
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import folder_of_sequences, open_benchmark
from seqtrack.evaluation.results import Track, read_track, write_track
from seqtrack.experiments.evaluate import Folder, expand, score_all, tracker_name
from seqtrack.experiments.evaluators import EvaluationError, Evaluator, Evaluators, Plan, Progress, plan_workers
from seqtrack.tracker import TrackerSettings
from seqtrack.tracker.lanes import Finished
from seqtrack.tracker.load import load_trained
from tests.data.packs import local, pack
from tests.training.loops import trained_run


@pytest.fixture(scope="module")
def run(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the checkpoints of two epochs."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def measured(cluster: None, run: Path, lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of both checkpoints, by two workers. Tests must not change them."""
    out = tmp_path_factory.mktemp("measured") / "out"
    assert evaluate(f"{run}/*", lasot_root, out, "--workers", "2") == 0
    return out


def evaluate(weights: str | Path, root: Path, out: Path, *arguments: str) -> int:
    return main(["evaluate", "--weights", str(weights), "--data", f"mine={root}", "--out", str(out), *arguments])


def boxes(out: Path) -> dict[str, str]:
    """The result files of the second checkpoint."""
    files = sorted((out / "mine/tiny-0002").glob("*.txt"))
    return {file.name: file.read_text() for file in files if not file.name.endswith("_time.txt")}


def test_all_checkpoints_of_a_run_are_measured(measured: Path) -> None:
    summary = json.loads((measured / "summary.json").read_text())
    assert [one["tracker"] for one in summary["evaluations"]] == ["tiny-0001", "tiny-0002"]
    assert all(one["measures"]["auc"]["protocol"] == "pytracking" for one in summary["evaluations"])
    assert pq.read_table(measured / "results.parquet").num_rows == 2 * 4
    assert boxes(measured).keys() == {"coin-1.txt", "coin-2.txt", "kite-1.txt", "kite-2.txt"}


def test_the_run_keeps_the_numbers_of_its_checkpoints(measured: Path, run: Path) -> None:
    records = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    names = [f"checkpoint_epoch_000{epoch}" for epoch in (1, 2)]
    assert sorted((one["checkpoint"], one["step"]) for one in records) == [(names[0], 6), (names[1], 12)]
    assert all(0 <= one["auc"] <= 100 and one["sequences"] == 4 for one in records)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_results_are_the_same_bits_whatever_the_number_of_workers(
    measured: Path, run: Path, lasot_root: Path, tmp_path: Path, workers: str
) -> None:
    assert evaluate(run, lasot_root, tmp_path, "--workers", workers, "--batch", workers) == 0
    assert boxes(tmp_path) == boxes(measured)


def test_the_same_command_tracks_only_what_is_missing(
    measured: Path, run: Path, lasot_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(measured / "mine/tiny-0002", tmp_path / "mine/tiny-0002")
    (tmp_path / "mine/tiny-0002/kite-1.txt").unlink()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "mine/tiny-0002").iterdir()}
    assert evaluate(run, lasot_root, tmp_path) == 0
    changed = {
        file.name for file in (tmp_path / "mine/tiny-0002").iterdir() if before.get(file) != file.stat().st_mtime_ns
    }
    assert changed == {"kite-1.txt", "kite-1_time.txt"}
    assert boxes(tmp_path) == boxes(measured)


@pytest.fixture
def evaluators(cluster: None) -> Iterator[Evaluators]:
    started = Evaluators(Plan(workers=2, slots=1, device="cpu", precision="fp32"))
    yield started
    started.close()


def test_what_a_lost_worker_had_under_way_is_tracked_by_others(
    evaluators: Evaluators, measured: Path, run: Path, lasot_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, data = load_trained(str(run)), open_benchmark(folder_of_sequences("mine"), str(lasot_root))
    frames, found = 0, list[Finished]()
    for progress in evaluators.track(trained, TrackerSettings.from_config(trained.config), data.root, data.sequences):
        if not found and progress.finished:
            ray.kill(evaluators._workers[0])
        frames += progress.frames
        found += progress.finished
    assert sorted(one.name for one in found) == ["coin-1", "coin-2", "kite-1", "kite-2"]
    assert frames == sum(map(len, data.sequences))
    assert "under way; it is started again" in caplog.text
    for name, track in found:
        written = [[float(value) for value in line.split()] for line in boxes(measured)[f"{name}.txt"].splitlines()]
        assert track.boxes_xywh.round(4).tolist() == written


def test_a_worker_decodes_with_its_share_of_the_clusters_cpus(cluster: None) -> None:
    threads = [plan_workers(workers, None, "cpu", "fp32").threads for workers in (1, 2, 4)]
    assert threads == [4, 2, 2]  # the cluster has four


class Dying(Evaluator):
    """A worker that does not survive its first sequence."""

    def advance(self, new: object) -> Progress:
        os._exit(1)


def test_a_sequence_at_which_workers_are_lost_again_and_again_is_named(
    cluster: None, run: Path, lasot_root: Path
) -> None:
    trained, data = load_trained(str(run)), open_benchmark(folder_of_sequences("mine"), str(lasot_root))
    evaluators = Evaluators(Plan(workers=1, slots=1, device="cpu", precision="fp32"), Dying)
    settings = TrackerSettings.from_config(trained.config)
    with pytest.raises(EvaluationError, match="3 workers were lost with coin-1 under way"):
        list(evaluators.track(trained, settings, data.root, data.sequences[:1]))
    evaluators.close()


def test_a_folder_with_results_of_other_weights_is_refused(
    measured: Path, run: Path, lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(measured / "mine/tiny-0001", tmp_path / "mine/tiny-0002")
    assert evaluate(run, lasot_root, tmp_path) == 2
    assert f"{tmp_path}/mine/tiny-0002: has results of another weights sha256: " in capsys.readouterr().err


def test_a_frame_that_cannot_be_read_ends_in_a_line(
    cluster: None, run: Path, lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(lasot_root, tmp_path / "tree")
    (tmp_path / "tree/coin/coin-1/img/00000003.jpg").write_bytes(b"")
    assert evaluate(run, tmp_path / "tree", tmp_path / "out") == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "coin-1/img/00000003.jpg cannot be read" in said[0]


def test_folders_of_results_are_compared(
    measured: Path, lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"early={measured}/mine/tiny-0001", f"{measured}/mine/tiny-0002"]
    arguments = ["--data", f"mine={lasot_root}", "--results", *places, "--out", str(tmp_path)]
    assert main(["evaluate", *arguments, "--sequences", "coin-1", "kite-2"]) == 0
    shown = capsys.readouterr().out
    assert "early " in shown and "tiny-0002 " in shown and "protocol pytracking" in shown
    assert pq.read_table(tmp_path / "results.parquet")["sequence"].to_pylist() == ["coin-1", "kite-2"] * 2


@pytest.mark.parametrize(("more", "videos"), [([], 2), (["--no-videos"], 0)])
def test_the_worst_sequences_are_shown_as_videos(
    lasot_root: Path, tmp_path: Path, more: list[str], videos: int
) -> None:
    for name in ("coin-1", "kite-1"):
        truth = read_track(Root(fs.LocalFileSystem(), str(lasot_root)), f"{name[:4]}/{name}/groundtruth.txt", 30)[0]
        write_track(fs.LocalFileSystem(), str(tmp_path / "results"), name, truth)
    arguments = ["--data", f"mine={lasot_root}", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *arguments, *more]) == 0
    links = re.findall(r'<a href="(videos/mine/results/.+?\.mp4)">', (tmp_path / "out/index.html").read_text())
    assert len(links) == videos
    assert sorted(tmp_path.rglob("*.mp4")) == sorted(tmp_path / "out" / link for link in links)


FAULTS = {
    "": "nothing to measure: --weights names models, --results folders of result files",
    "--weights x --benchmark lasott": "benchmark lasott: known are lasot, ",
    "--weights x --benchmark lasot": "--data lasot=PATH is needed",
    "--weights x --data /data": "--data /data: NAME=PATH is needed, such as lasot=/data/LaSOT",
    "--weights x --workers 0": "--workers 0: at least 1",
    "--weights nowhere/*": "nowhere: no finished checkpoint there: no such folder",
    "--weights nowhere": "nowhere",
    "--weights {run} --data mine={root} --out /proc/x": "--out /proc/x: cannot be written (",
    "--weights {run} nowhere.pth": "nowhere.pth: no such file",
    "--weights {run}/config.yaml": "config.yaml: is no file of weights; 'RUN/*', in quotes, means all checkpoints",
    "--results nowhere --data mine={root}": "nowhere: no such folder",
    "--results {root} --data mine={root}": "no results of these 4 sequences",
    "--results a/x b/x --data mine={root}": "two trackers are called x; NAME=FOLDER renames one",
    "--results x --data mine={root} --sequences coin-9": "no sequence coin-9; did you mean coin-",
    "--results x --data mine={root} --protocol vot": "protocol vot",
}


@pytest.mark.parametrize("typed", FAULTS)
def test_what_cannot_be_measured_is_said_in_a_line(
    typed: str,
    run: Path,
    lasot_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *typed.format(root=lasot_root, run=run).split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and FAULTS[typed] in said
    assert not list(tmp_path.iterdir())


def test_two_models_of_one_name_are_refused_before_anything_is_tracked(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other/tiny")
    with pytest.raises(InputError, match="both would be called tiny-0002; measure them into different folders"):
        expand([str(run), f"{tmp_path}/other/tiny"])


def test_models_are_called_after_their_places(run: Path) -> None:
    places = [f"{run}/checkpoint_epoch_0001", f"{run}/checkpoint_epoch_0002"]
    assert expand([f"{run}/*", places[0], str(run), f"{run}/1"]) == places
    names = {
        "runs/demo/checkpoint_epoch_0010": "demo-0010",
        "s3://bucket/runs/demo/checkpoint_epoch_0003_step_0120": "demo-0003-0120",
        "hf://me/model": "model",
        "hf://me/model/checkpoints/checkpoint_epoch_0002": "model-0002",
        "SEQTRACK_ep0500.pth.tar": "SEQTRACK_ep0500",
        "a.safetensors": "a",
    }
    assert {place: tracker_name(place) for place in names} == names


@pytest.fixture
def claimed(run: Path, tree: Path, tmp_path: Path) -> Callable[..., Folder]:
    """Opens the benchmark at `tree` and claims the folder of its results, as an evaluation does."""
    trained, plan = load_trained(str(run)), Plan(workers=1, slots=1, device="cpu", precision="fp32")

    def claim(*names: str, root: Path = tree, anew: bool = False) -> Folder:
        data = open_benchmark(folder_of_sequences("mine"), str(root))
        folder = Folder(str(tmp_path / "out"), "tiny", data.only(names) if names else data)
        folder.claim(trained, TrackerSettings.from_config(trained.config, "DEFAULT"), plan, anew)
        return folder

    return claim


def track(folder: Folder, *names: str) -> None:
    for name in names:
        folder.write(name, Track(np.ones((30, 4)), None), integers=False)


def replace_frames(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(folder / "img/00000009.jpg", folder / "img" / name)


def replace_box(folder: Path) -> None:
    _, _, others = (folder / "groundtruth.txt").read_text().partition("\n")
    (folder / "groundtruth.txt").write_text(f"1,2,33,44\n{others}")


CHANGES: dict[str, Callable[[Path], object]] = {
    "first frame": lambda folder: replace_frames(folder, "00000001.jpg"),
    "last frame": lambda folder: replace_frames(folder, "00000030.jpg"),
    "a box": replace_box,
    "a flag": lambda folder: (folder / "full_occlusion.txt").write_text(",".join(["0"] * 9 + ["1"] + ["0"] * 20)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_results_on_boxes_or_frames_that_were_replaced_are_refused(
    change: str, claimed: Callable[..., Folder], tree: Path
) -> None:
    track(claimed(), "coin-1", "kite-1")
    CHANGES[change](tree / "kite/kite-2")
    claimed()  # it has no results yet
    CHANGES[change](tree / "coin/coin-1")
    said = "out/mine/tiny: has results of other boxes or frames, which were replaced in 1 of the 2 sequences that were "
    with pytest.raises(InputError, match=f"{said}tracked, the first: coin-1; --out names another folder"):
        claimed()
    assert "kite-1" in claimed("kite-1", "kite-2").done()  # a part that is the same goes on
    results, data = claimed("kite-1").location, open_benchmark(folder_of_sequences("mine"), str(tree))
    with pytest.raises(InputError, match=r"tiny: has results of other boxes or frames, which were replaced in 1 of 1 "):
        score_all(data.only(["coin-1"]), {"a": results}, None)  # as --results names them
    assert claimed(anew=True).done() == frozenset()
    claimed()


def test_results_are_those_of_a_packed_tree_too(claimed: Callable[..., Folder], tree: Path, tmp_path: Path) -> None:
    track(claimed(), "coin-1", "kite-1")
    pack(tree, local(tmp_path / "packed"))
    assert claimed(root=tmp_path / "packed").done() == {"coin-1", "kite-1"}


def test_results_that_are_older_than_stamps_are_taken_with_a_line(
    claimed: Callable[..., Folder], tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = claimed()
    track(folder, "coin-1", "kite-1")
    file = Path(folder.path, "evaluation.json")
    old = {key: value for key, value in json.loads(file.read_text()).items() if key != "data"}
    file.write_text(json.dumps(old))
    claimed()
    assert "whether boxes and frames are those of the 2 results there is not known" in caplog.text
    caplog.clear()
    claimed()
    assert not caplog.text
    replace_box(tree / "coin/coin-1")
    with pytest.raises(InputError, match="has results of other boxes or frames"):
        claimed()  # since the second time they are known
