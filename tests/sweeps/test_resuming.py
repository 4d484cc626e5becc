"""What a sweep knows of its earlier starts: read from its folder, and refused where a file there is damaged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray.exceptions
import torch

from seqtrack.config import Config, ConfigError, parse_config
from seqtrack.data.open import open_data
from seqtrack.errors import InputError
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.integrations import mirror_state
from seqtrack.integrations.mirror_state import MIRROR_FILE, MirrorState, await_mlflow_run
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, write_checkpoint
from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.sums import checkpoint_name
from seqtrack.sweeps import run, trial
from seqtrack.sweeps.plan import plan_work
from seqtrack.sweeps.results import (
    DATA_FILE,
    SWEEP_FILE,
    TRIAL_FILE,
    TRIALS,
    Status,
    TrialNote,
    check_same_data,
    check_same_sweep,
    describe_data,
    read_note,
    read_trials,
    write_note,
)
from seqtrack.sweeps.settings import Params, Sweep, trial_name
from seqtrack.sweeps.tuner import make_search
from tests.checkpoints import make_meta
from tests.folders import run_at
from tests.settings import make_tiny_settings
from tests.training.runs import load_job, write_config

SEEDS = Sweep.model_validate({"parameters": {"SEED": {"grid": [1, 2, 3, 4, 5, 6]}}})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A sweep's."""
    return run_at(tmp_path / "sweep")


def begin(
    folder: RunFolder, params: Params, status: Status = "unfinished", epochs: int = 0, hopeless: bool = False
) -> RunFolder:
    """What a trial leaves. Its metric after epoch n is n / 10."""
    trial = folder.child(TRIALS).child(trial_name(params))
    write_note(trial, TrialNote(params, status, "crashed" if status == "failed" else "", hopeless))
    history = [{"epoch": epoch, "step": 6 * epoch, "iou": epoch / 10} for epoch in range(1, epochs + 1)]
    for epoch in range(1, epochs + 1):
        contents = Contents({"weight": torch.zeros(1)}, {}, [], make_meta(epoch) | {"history": history[:epoch]})
        write_checkpoint(contents, StoredCheckpoint(trial, checkpoint_name(epoch, 0)))
    return trial


@pytest.fixture
def begun(folder: RunFolder) -> RunFolder:
    """One trial of each kind; the sixth was not begun."""
    begin(folder, {"SEED": 1}, "finished", epochs=2)
    begin(folder, {"SEED": 2}, "stopped early", epochs=1)
    begin(folder, {"SEED": 3}, "failed", hopeless=True)
    begin(folder, {"SEED": 4}, "failed", epochs=1)
    begin(folder, {"SEED": 5}, "unfinished", epochs=1)
    return folder


def test_trials_are_read_from_their_folders(begun: RunFolder) -> None:
    begun.child(TRIALS).child("SEED=6").create()  # as the observer does before a trial begins
    trials = read_trials(begun)
    assert [(trial.name, trial.note.status, trial.checkpoint) for trial in trials] == [
        ("SEED=1", "finished", "checkpoint_epoch_0002"),
        ("SEED=2", "stopped early", "checkpoint_epoch_0001"),
        ("SEED=3", "failed", None),
        ("SEED=4", "failed", "checkpoint_epoch_0001"),
        ("SEED=5", "unfinished", "checkpoint_epoch_0001"),
    ]
    assert trials[0].history == [{"epoch": 1, "step": 6, "iou": 0.1}, {"epoch": 2, "step": 12, "iou": 0.2}]


def test_a_folder_without_trials_has_none(folder: RunFolder) -> None:
    assert read_trials(folder) == []


def test_trials_that_ended_are_not_run_again(begun: RunFolder) -> None:
    """A crash may have been the machine's fault. What diverged would diverge again."""
    work = plan_work(SEEDS, read_trials(begun))
    assert (work.trials, work.left) == (6, 3)
    assert work.listed == [{"SEED": 4}, {"SEED": 5}, {"SEED": 6}]


def test_a_scheduler_hears_again_how_the_ended_trials_went(begun: RunFolder) -> None:
    asha = Sweep.model_validate(SEEDS.model_dump(exclude_defaults=True) | {"scheduler": {"type": "asha"}})
    work = plan_work(asha, read_trials(begun))
    assert work.left == 6 and work.listed == asha.listed()


def test_optuna_goes_on_with_what_is_unfinished_and_knows_the_rest(folder: RunFolder) -> None:
    ended, unfinished = {"TRAIN.LR": 0.01}, {"TRAIN.LR": 0.02}
    begin(folder, ended, "finished", epochs=2)
    begin(folder, unfinished, epochs=1)
    values = {"parameters": {"TRAIN.LR": {"loguniform": [0.001, 0.1]}}, "search": {"type": "optuna"}, "trials": 5}
    sweep, trials = Sweep.model_validate(values), read_trials(folder)
    work = plan_work(sweep, trials)
    assert (work.trials, work.left, work.listed) == (5, 4, [])
    search: Any = make_search(sweep, 1, work.listed, trials)
    assert search.suggest("next") == unfinished
    (known,) = [trial for trial in search._ot_study.trials if trial.value is not None]
    assert (known.params, known.value) == (ended, 0.2)


DAMAGED = ["", "\n", '{"params": {"SEED', "[]"]


@pytest.mark.parametrize("content", [*DAMAGED, "{}", '{"params": {}, "colour": "red"}'])
def test_a_trials_note_that_is_damaged_is_named(begun: RunFolder, content: str) -> None:
    trial = begun.child(TRIALS).child("SEED=1")
    trial.write(TRIAL_FILE, content)
    with pytest.raises(RunFileError, match=rf"{trial.path}/{TRIAL_FILE}: (is|holds) "):
        read_trials(begun)


@pytest.mark.parametrize("content", [*DAMAGED, "{}"])
def test_a_sweeps_file_that_is_damaged_is_named(folder: RunFolder, content: str) -> None:
    folder.create()
    folder.write(SWEEP_FILE, content)
    with pytest.raises(InputError, match=f"{folder.path}/{SWEEP_FILE}: "):
        check_same_sweep(SEEDS, folder)


@pytest.mark.parametrize("file", [SWEEP_FILE, f"{TRIALS}/SEED=1/{TRIAL_FILE}"])
def test_the_program_names_a_damaged_file_before_it_asks_for_a_cluster(
    lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    config = write_config(make_tiny_settings(lasot_root, tmp_path / "runs"), tmp_path)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("parameters: {SEED: {grid: [1, 2]}}")
    damaged = tmp_path / "runs/tiny" / file
    damaged.parent.mkdir(parents=True)
    damaged.touch()
    assert load_job("sweep").main(["--config", config, "--sweep", str(sweep)]) == 2
    assert f"{damaged}: is empty" in capsys.readouterr().err


def test_more_trials_of_the_same_sweep_are_accepted_and_other_values_refused(folder: RunFolder) -> None:
    drawn = {"parameters": {"TRAIN.LR": {"uniform": [0.1, 0.2]}, "SEED": {"grid": [1, None]}}}
    few, many = (Sweep.model_validate(drawn | {"trials": trials}) for trials in (2, 5))
    folder.create()
    folder.write(SWEEP_FILE, few.to_json())
    check_same_sweep(many, folder)
    with pytest.raises(InputError, match=r"holds a sweep with other parameters, metric, direction; another RUN.NAME"):
        check_same_sweep(SEEDS.model_copy(update={"metric": "loss"}), folder)


def test_a_note_is_replaced_whole_or_not_at_all(begun: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = begun.child(TRIALS).child("SEED=5")
    before = read_note(trial)

    def cut_off(path: Path, data: bytes) -> int:
        path.open("wb").write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(OSError, match="No space left"):
        write_note(trial, TrialNote({"SEED": 5}, "finished"))
    assert read_note(trial) == before
    assert len(list(Path(trial.path).iterdir())) == 2  # note and checkpoint


def test_a_trial_waits_for_its_mlflow_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's process opens it, which may take a while, and notes its id in the trial's folder."""
    folder.create()
    happenings = iter(
        [
            lambda: folder.write_json(MIRROR_FILE, {"run_id": None, "status": "RUNNING"}),
            lambda: folder.write_json(MIRROR_FILE, {"run_id": "a1", "status": "RUNNING", "opened": True}),
        ]
    )
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: next(happenings)())
    monkeypatch.setattr(mirror_state, "time", clock)
    assert await_mlflow_run(folder, patience=600) == "a1"


def test_a_folder_that_cannot_be_read_for_a_while_does_not_end_who_waits(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.create()
    folder.write_json(MIRROR_FILE, {"run_id": "a1", "status": "RUNNING", "opened": True})
    answers = [OSError("503"), pa.ArrowInvalid("half an answer")]
    read = MirrorState.read

    def failing(run: RunFolder) -> MirrorState:
        if answers:
            raise answers.pop()
        return read(run)

    monkeypatch.setattr(MirrorState, "read", failing)
    monkeypatch.setattr(mirror_state, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: None))
    assert await_mlflow_run(folder, patience=600) == "a1"


def test_a_trial_does_not_wait_for_ever_for_a_server_that_is_away(folder: RunFolder) -> None:
    folder.create()
    folder.write_json(MIRROR_FILE, {"run_id": None, "status": "RUNNING"})
    assert await_mlflow_run(folder, patience=0.5) is None


@pytest.fixture
def on_data(folder: RunFolder, tree: Path, tiny_settings: dict[str, Any]) -> Callable[[], str | None]:
    """Opens the data at `tree`, which are also a benchmark, compares them with those of the sweep, and notes them."""
    tiny_settings["DATA"]["ROOT"] = str(tree)
    tiny_settings["EVAL"] = {"BENCHMARKS": {"mine": str(tree)}, "SEQUENCES": ["coin-1"]}
    config = parse_config(tiny_settings, "tiny")

    def compare() -> str | None:
        data, benchmarks = open_data(config).stamped(), open_for_run(config)
        line = check_same_data(data, benchmarks, folder)
        folder.write_json(DATA_FILE, describe_data(data, benchmarks))
        return line

    return compare


def replace_frame(tree: Path, sequence: str) -> None:
    images = tree / sequence.partition("-")[0] / sequence / "img"
    shutil.copy(images / "00000002.jpg", images / "00000001.jpg")


def replace_boxes(tree: Path) -> None:
    (tree / "kite/kite-2/groundtruth.txt").write_text("1,2,30,40\n" * 30)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: replace_frame(tree, "kite-1"), "frames: LASOT: 1 of 120 drawn frames .*kite-1/img/00000001.jpg"),
        (lambda tree: replace_frame(tree, "coin-1"), "frames: LASOT: .*; boxes or frames of mine were replaced"),
        (replace_boxes, "its trials had other sequences or annotations"),
    ],
)
def test_a_sweep_whose_data_were_replaced_does_not_go_on(
    change: Callable[[Path], Any], said: str, on_data: Callable[[], str | None], folder: RunFolder, tree: Path
) -> None:
    folder.create()
    on_data()
    assert on_data() is None
    change(tree)
    with pytest.raises(ConfigError, match=rf"sweep holds a sweep on other data: {said}.*; another RUN\.NAME keeps"):
        on_data()


def test_a_sweep_that_is_older_than_stamps_goes_on_with_a_line(
    on_data: Callable[[], str | None], folder: RunFolder
) -> None:
    folder.create()
    said = on_data()
    assert said is not None and said.endswith(f"the trials that {folder.path} has is not known")
    assert on_data() is None


@pytest.mark.parametrize("content", ["{}", '{"dataset": {}, "frames": 1, "benchmarks": {}}', "[]", '{"frames": {}}'])
def test_a_damaged_note_of_the_data_is_named(
    content: str, on_data: Callable[[], str | None], folder: RunFolder
) -> None:
    folder.create()
    folder.write(DATA_FILE, content)
    with pytest.raises(RunFileError, match=DATA_FILE):
        on_data()


@pytest.mark.parametrize(
    ("key", "shared"),
    [("SEED", True), ("TRAIN.LR", True), ("MODEL.DECODER.DEC_LAYERS", False), ("MODEL.WEIGHTS", False)],
)
def test_the_job_reads_the_starting_weights_of_all_trials_unless_they_differ_and_only_then_trials_get_the_hubs_token(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, shared: bool
) -> None:
    class Joined(Exception):
        pass

    kept: list[str] = []

    def join(keep: Sequence[str] = ()) -> None:
        kept.extend(keep)
        raise Joined

    read: list[Config] = []
    monkeypatch.setattr(run, "join_cluster", join)

    def read_weights(config: Config) -> tuple[dict[str, torch.Tensor], str]:
        read.append(config)
        return {}, "the Hub"

    monkeypatch.setattr(run, "starting_weights", read_weights)
    config = parse_config(make_tiny_settings(lasot_root, tmp_path), "tiny").with_settings({"RUN.NAME": "sweep"})
    sweep = Sweep.model_validate({"parameters": {key: {"choice": [1, 2]}}, "trials": 2})
    with pytest.raises(Joined):
        run.run(config, sweep, lambda line: None)
    assert len(read) == (1 if shared else 0)
    assert ("HF_TOKEN" in kept) == (not shared)


@pytest.mark.parametrize(
    "error",
    [ray.exceptions.ActorDiedError(), ray.exceptions.NodeDiedError("gone"), ray.exceptions.RaySystemError("no raylet")],
    ids=lambda error: type(error).__name__,
)
def test_a_trial_whose_controller_is_lost_ends_with_a_line_and_leaves_it_to_ray_tune_whether_it_failed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tiny_config: Config, error: ray.exceptions.RayError
) -> None:
    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr(trial, "_train", train)
    monkeypatch.setattr(trial, "is_stop_requested", lambda _: False)
    ours = folder.child(TRIALS).child("SEED=1")
    setting: Any = SimpleNamespace(
        trial_config=lambda _: tiny_config, trial_folder=lambda _: ours, sweep=SEEDS, stop=None
    )
    with pytest.raises(trial.TrialFailed, match=f"^{type(error).__name__}: "):
        trial.run_trial({"SEED": 1}, setting)
    note = read_note(ours)
    assert note is not None and note.status == "unfinished", "a scheduler may have stopped it"
