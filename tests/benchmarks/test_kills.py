"""`benchmarks.kills` kills, counts and compares as it says. The trainings here are made up; real ones take minutes."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import kills
from seqtrack.config import Config
from tests.checkpoints import save

LOG = """\
Starting weights : random
Training vit_demo_patch16 on 2 workers (cpu, 1 thread)
Epoch 1 : 8 / 318 samples , time for last 8 samples : 0:00:00
Epoch 1 : 318 / 318 samples , time for last 6 samples : 0:00:00
Epoch 1 of 3 done in 0:00:01 : loss 5.1
Epoch 2 : 16 / 318 samples , time for last 8 samples : 0:00:00
Worker 1 failed (WorkerDied: …); failure 1, and RUN.MAX_FAILURES permits any number of
Restored /runs/a/checkpoint_epoch_0001 : step 80, epoch 1 of 3
Training vit_demo_patch16 on 2 workers (cpu, 1 thread)
Epoch 2 : 8 / 318 samples , time for last 8 samples : 0:00:00
"""


@pytest.mark.parametrize("count", [1, 4, 10, 37, 100])
def test_exactly_so_many_kills_are_dealt(count: int) -> None:
    hands = kills.deal(count)
    assert sum(map(len, hands)) == count and all(1 <= len(hand) <= 5 for hand in hands)
    dealt = Counter(kind for hand in hands for kind in hand)
    assert count < 4 or dealt.keys() == {"worker", "job", "node", "cluster"}


def test_a_log_tells_the_starts_and_the_step_of_the_last() -> None:
    lines = LOG.splitlines(keepends=True)
    positions = [kills.position("".join(lines[:number])) for number in (0, 1, 2, 3, 4, 6, 7, 9, 10)]
    assert positions == [(0, 0), (0, 0), (1, 0), (1, 2), (1, 80), (1, 84), (1, 84), (2, 80), (2, 82)]


def test_any_difference_but_times_is_found(tiny_config: Config, tmp_path: Path) -> None:
    reference, run = tmp_path / "reference", tmp_path / "run"
    save(tiny_config, reference, 3)
    checkpoint = save(tiny_config, reference, 6).name
    (reference / "metrics.jsonl").write_text('{"step": 2, "time": 17, "train/loss": 4.5}\n')
    shutil.copytree(reference, run)
    (run / "metrics.jsonl").write_text('{"step": 2, "time": 18, "train/loss": 4.5}\n')
    assert kills.difference(run, reference) is None

    (run / "metrics.jsonl").write_text('{"step": 2, "time": 18, "train/loss": 4.6}\n')
    assert "records" in str(kills.difference(run, reference))
    shutil.copy(reference / "metrics.jsonl", run)
    weights = load_file(run / checkpoint / "model.safetensors")
    next(iter(weights.values())).view(-1).view(torch.int32)[0] ^= 1
    save_file(weights, run / checkpoint / "model.safetensors")
    assert next(iter(weights)) in str(kills.difference(run, reference))
    shutil.rmtree(run / checkpoint)
    assert checkpoint in str(kills.difference(run, reference))


JOB = """
import subprocess, sys, time
from pathlib import Path
if sys.argv[-1] == "RUN.NAME=broken":
    sys.exit("no such GPU")
while subprocess.Popen(["ray::RayTrainWorker", __file__ + ".worker", *sys.argv[1:]], executable=sys.executable).wait():
    pass
"""
WORKER = """
import os, sys, time
from pathlib import Path
run, job = Path(sys.argv[2]).parent / sys.argv[3].removeprefix("RUN.NAME="), os.getppid()
run.mkdir(exist_ok=True)
log, state = run / "train.log", run / "state"
step = int(state.read_text()) if state.exists() else 0
with log.open("a", buffering=1) as lines:
    lines.write(f"Restored x : step {step}, epoch 0 of 3\\nTraining x\\n")
    while step < 240 and os.getppid() == job:
        if run.name == "hanging" and step == 50:
            time.sleep(60)
        step += 1
        lines.write(f"Epoch {(step - 1) // 80 + 1} : {min((step - 1) % 80 * 4 + 4, 318)} / 318 samples\\n")
        if step % 10 == 0:
            state.write_text(str(step))
        time.sleep(0.004)
if step == 240:
    (run / "checkpoint_epoch_0003").mkdir(exist_ok=True)
"""
"""A job that starts its worker again, and a worker that goes on where it was: what `Training` sees of real ones."""


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], kills.Training]]:
    (tmp_path / "ray_jobs").mkdir()
    (tmp_path / "ray_jobs/train.py").write_text(JOB)
    (tmp_path / "ray_jobs/train.py.worker").write_text(WORKER)
    monkeypatch.setattr(kills, "REPOSITORY", tmp_path)
    started = []

    def start(name: str) -> kills.Training:
        started.append(kills.Training(str(tmp_path / "tiny.yaml"), tmp_path / name, None, random.Random(2)))
        return started[-1]

    yield start
    for one in started:
        one.close()
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]


def test_each_kill_is_followed_by_a_start_and_the_run_reaches_its_end(
    training: Callable[[str], kills.Training],
) -> None:
    killed = training("whole")
    done = list(killed.endure(["worker", "job", "worker", "cluster"]))
    assert [kind for kind, _ in done] == ["worker", "job", "worker", "cluster"]
    assert sorted(step for _, step in done) == [step for _, step in done]
    assert kills.position((killed.run / "train.log").read_text()) == (5, 240)
    assert (killed.run / kills.LAST).exists()


def test_a_kill_after_the_end_does_not_count(training: Callable[[str], kills.Training]) -> None:
    killed = training("whole")
    (killed.run / kills.LAST).mkdir(parents=True)
    assert list(killed.endure(["job", "cluster"])) == []


def test_a_run_that_hangs_or_fails_is_an_error(
    training: Callable[[str], kills.Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "PATIENCE", 1.0)
    with pytest.raises(kills.RunFailedError, match=r"no line in the log for 1 s, after step"):
        list(training("hanging").endure([]))
    with pytest.raises(kills.RunFailedError, match=r"ended with exit code 1, see \S+/broken.console"):
        list(training("broken").endure(["job"]))


class Made:
    """A training of which only `limits` kills each come in time; the second one fails if it is to."""

    limits: list[int]
    fails = False
    hands: list[list[str]]

    def __init__(self, config: str, run: Path, cluster: None, draws: random.Random) -> None:
        self.run = run
        run.mkdir(parents=True)

    def endure(self, hand: Sequence[str]) -> Iterator[tuple[str, int]]:
        self.hands.append(list(hand))
        for kind in hand[: self.limits.pop(0)]:
            yield kind, 1
        if self.fails and self.run.name == "run-2":
            raise kills.RunFailedError("hangs")

    def close(self) -> None: ...


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> type[Made]:
    monkeypatch.setattr(kills, "Training", Made)
    monkeypatch.setattr(kills, "nodes", nullcontext)
    monkeypatch.setattr(kills, "train_together", lambda work, folder: None)
    monkeypatch.setattr(kills, "difference", lambda run, reference: None)
    Made.hands, Made.fails = [], False
    return Made


def test_kills_that_came_too_late_are_tried_again(
    made: type[Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.limits = [3, 5, 0, 9]
    assert kills.kill_trainings(10, 1, tmp_path) == 10
    assert [len(hand) for hand in made.hands] == [5, 5, 2, 2]
    assert sorted(made.hands[2]) == sorted(made.hands[3]) == sorted(made.hands[0][3:])
    assert capsys.readouterr().out.count(" of 10: ") == 10


def test_the_kills_of_a_failed_training_are_not_equal_and_its_folder_is_kept(
    made: type[Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.limits, made.fails = [9, 9], True
    assert kills.kill_trainings(10, 1, tmp_path) == 5
    assert f"DIFFERS: hangs ({tmp_path}/runs/run-2)" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run-2"]


def test_what_fails_before_a_kill_ends_the_program(made: type[Made], tmp_path: Path) -> None:
    made.limits, made.fails = [9, 0], True
    assert kills.kill_trainings(10, 1, tmp_path) == 5
    assert len(made.hands) == 2
