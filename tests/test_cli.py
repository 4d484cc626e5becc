"""The `seqtrack` command: answers at once, ends in one way, and says how to go on."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions

from seqtrack import interruption
from seqtrack.cli import PROGRAMS, main
from seqtrack.cluster.watch import HeadLost
from seqtrack.commands.program import TO_GO_ON, ProgramError, run_program
from seqtrack.config import Config, ConfigError, load_config, recipe_names, setting_docs
from seqtrack.environment import command
from seqtrack.errors import LeaseLostError, Stopped
from seqtrack.experiments import train as experiment
from seqtrack.runs import checkpoint
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.runs.history import FIRST_FILE
from tests.checkpoints import save
from tests.training.loops import train
from tests.training.runs import REPOSITORY

ANSWERS = {
    "": (0, "convert-weights"),
    "--help": (0, "Train SeqTrack many times"),
    "--print-completion bash": (0, "--resume-epoch"),
    "trian": (2, "invalid choice: 'trian' (choose from"),
    "train --help": (0, "seqtrack_l384_got"),
    "train --settings": (0, "TRAIN.LR = 0.0001\n    "),
    "train": (2, "error: --config NAME|FILE is needed, or --resume-from PATH"),
    "train --config nowhere.yaml": (2, "error: nowhere.yaml: cannot be read"),
    "train --config dmo": (
        2,
        "error: dmo: neither a file nor a recipe; did you mean demo? (the recipes: demo, demo_mixture, seq",
    ),
    "train --config demo TRAIN.LRR=1": (2, "TRAIN.LRR: unknown setting; did you mean TRAIN.LR?"),
    "train TRAIN.LR=0.1 --config demo TRAIN.LRR=1": (2, "TRAIN.LRR: unknown setting; did you mean TRAIN.LR?"),
    "train --config demo --workers 3": (2, "RUN.WORKERS 3 does not divide TRAIN.BATCH_SIZE 32"),
    "train --config demo --allow-changed TRAIN.LRR": (2, "--allow-changed TRAIN.LRR: neither a setting nor `dat"),
    "train --config seqtrack_b256": (2, "DATA.ROOTS.COCO17, DATA.ROOTS.TRACKINGNET are not set"),
    "reproduce --config demo --tolerance nan": (2, "--tolerance nan: not a finite number from 0 up"),
    "train --config demo RUN.NAME=a/b": (2, "error: RUN.NAME 'a/b' has a /; a name is that of one folder: at most"),
    "sweep --config demo --sweep smoke RUN.NAME=..": (2, "error: RUN.NAME '..' begins with .; a name is that of one"),
    "train --config demo TRAIN.LR=.inf": (2, "TRAIN.LR: Input should be a finite number (got inf)"),
    "train --config demo MLFLOW.TRACKING_URI=localhost:5000": (
        2,
        "has no scheme; http://localhost:5000 would be",
    ),
    "train --config demo HUB.REPO_ID=me/x/": (2, "HUB.REPO_ID 'me/x/': not a repository of the Hub: user/name"),
    "fetch-lasot DATA.DOWNLOAD_FROM=hf://me/x": (2, "not a repository of the Hub: user/name"),
    "sweep --config demo --sweep smok": (2, "did you mean smoke? (the recipes: lr_asha, lr_seed, smoke)"),
    "sweep --config demo --sweep smoke HUB.REPO_ID=me/x": (2, "HUB.REPO_ID: trials are not uploaded"),
    "reproduce --config demo --resume-epoch 11": (2, "--resume-epoch 11: not one of 2 to TRAIN.EPOCH, 10"),
    "track --help": (0, "--box X,Y,W,H"),
    "track --weights runs/x --source a.mp4 --box 1,2,3": (2, "error: --box 1,2,3: a box is four numbers, x,y,w,h in"),
    "export --help": (0, "--output FILE.onnx"),
    "export --weights runs/x --output a.pth": (2, "error: --output a.pth: the file's name ends in .onnx"),
    "export --weights runs/x --output nowhere/a.onnx": (2, "error: --output nowhere/a.onnx: there is no folder"),
    "vot --help": (0, "--challenge {VOT20,VOT21,VOT22}"),
    "vot --weights runs/x --challenge VOT19": (2, "invalid choice: 'VOT19' (choose from"),
    "pack-lasot --to packed": (2, "error: DATA.ROOT: name the tree to pack"),
    "fetch --set COCO": (2, "error: --set COCO: no such data set; did you mean COCO17?"),
    "fetch --set COCO17": (2, "to be unpacked into DATA.ROOTS.COCO17/images, so that"),
    "fetch --set TRACKINGNET": (2, "error: TRACKINGNET: name a dataset repository of the Hub that has a copy (--from"),
    "fetch --set GOT10K_votval --from x": (2, "error: --from 'x': not a repository of the Hub: user/name"),
    "fetch --set GOT10K_votval --from me/x": (2, "error: DATA.ROOTS.GOT10K_votval: name the folder to download into"),
    "pack --set COCO --to packed": (2, "error: --set COCO: no such data set; did you mean COCO17?"),
    "pack --set COCO17 --to packed DATA.ROOT=x": (2, "error: DATA.ROOTS.COCO17: name the tree to pack"),
    "pack --set VID --to packed": (
        2,
        "error: --set VID: no such data set; known: LASOT, GOT10K_train_full,",
    ),
}
"""What is typed after `seqtrack` -> exit code, and a part of the answer."""
HEAVY = ("torch", "ray", "mlflow", "timm", "huggingface_hub", "cv2", "pandas", "matplotlib")
ANSWER_ALL = f"""
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from seqtrack.cli import main

heavy = lambda: {{name for name in {HEAVY} if name in sys.modules}}
assert not heavy()
answers = {{}}
for typed in sys.argv[1:]:
    before = heavy()
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            code = main(typed.split())
        except SystemExit as end:
            code = end.code
    answers[typed] = code, out.getvalue(), err.getvalue(), sorted(heavy() - before)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """What is typed -> exit code, stdout, stderr, and what was imported for it. All in one new process."""
    shown = subprocess.run(
        [sys.executable, "-c", ANSWER_ALL, *ANSWERS],
        cwd=tmp_path_factory.mktemp("empty"), env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
    found: dict[str, tuple[int, str, str, list[str]]] = json.loads(shown)
    return found


@pytest.mark.parametrize("typed", ANSWERS)
def test_what_needs_no_data_is_answered_without_heavy_imports(
    typed: str, answers: dict[str, tuple[int, str, str, list[str]]]
) -> None:
    expected_code, part = ANSWERS[typed]
    code, out, err, imported = answers[typed]
    assert part in out + err
    assert code == expected_code
    assert imported == []
    assert err.count("\n") == 1 or not err.startswith("error: ")


def test_every_program_for_ray_jobs_is_one_of_the_command() -> None:
    jobs = {path.stem.replace("_", "-") for path in (REPOSITORY / "ray_jobs").glob("*.py")}
    assert jobs <= PROGRAMS.keys()


def test_settings_without_effect_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--settings"]) == 0
    shown = dict(re.findall(r"^([A-Z][\w.]+) = .*\n((?:    .*\n)+)", capsys.readouterr().out, re.MULTILINE))
    assert shown.keys() == {doc.key for doc in setting_docs()}
    without = {key for key, meaning in shown.items() if "Has no effect: " in meaning}
    assert {"TRAIN.NUM_WORKER", "TEST.EPOCH"} <= without
    assert not {"TRAIN.LR", "RUN.WORKERS"} & without


def end(error: BaseException) -> Callable[[], int]:
    def program() -> int:
        raise error

    return program


@pytest.mark.parametrize(
    ("program", "code", "out", "err"),
    [
        (lambda: 0, 0, "", ""),
        (end(ConfigError("f.yaml: SEED: is wrong")), 2, "", "error: f.yaml: SEED: is wrong\n"),
        (end(ProgramError("no space left")), 1, "", "error: no space left\nTo go on: again\n"),
        (end(Stopped(15)), 143, "Stopped. To go on: again\n", ""),
        (end(KeyboardInterrupt()), 130, "", "\nTo go on: again\n"),
    ],
    ids=["done", "input", "failure", "signal", "ctrl-c"],
)
def test_all_programs_end_in_one_way(
    program: Callable[[], int], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(program, TO_GO_ON.format(command="again")) == code
    assert capsys.readouterr() == (out, err)


def noted(error: BaseException) -> BaseException:
    error.add_note("To go on: as RUN.NAME=x")
    return error


OF_RAY = [
    ray.exceptions.RaySystemError("the raylet died"),
    ray.exceptions.ActorDiedError(),
    ray.exceptions.NodeDiedError("gone"),
    ray.exceptions.ObjectLostError("ab", None, ""),
    ray.exceptions.RpcError("socket closed", 14),
    ray.exceptions.OutOfMemoryError("of the node"),
]


@pytest.mark.parametrize("error", OF_RAY, ids=lambda error: type(error).__name__)
def test_a_failure_of_ray_is_a_line_and_how_to_go_on(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(end(error), "To go on: again") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1] == "To go on: again"
    assert said[0].startswith(f"error: {type(error).__name__}: ") and "report" not in said[0]


def test_the_process_that_ray_lost_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class ActorDiedError(ray.exceptions.RayActorError):
        def __str__(self) -> str:
            return "The actor died unexpectedly before finishing this task.\n\tclass_name: TrainController\n\tpid: 4"

    assert run_program(end(ActorDiedError())) == 1
    expected = "error: ActorDiedError: The actor died unexpectedly before finishing this task (TrainController)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), 1),
        (ray.exceptions.ActorDiedError(), 1),
        (ProgramError("x"), 1),
        (KeyboardInterrupt(), 130),
        (Stopped(15), 143),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_error_says_on_how_to_go_on_counts_more_than_what_was_known_at_the_start(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(end(noted(error)), "To go on: again") == code
    out, err = capsys.readouterr()
    assert "To go on: as RUN.NAME=x\n" in out + err and "again" not in out + err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ray.exceptions.ActorDiedError(), 1),
        (ray.exceptions.RaySystemError("x"), 1),
        (HeadLost("Ray's head is gone"), 1),
        (OSError(5, "Input/output error"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_training_it_says_how_to_go_on_with_the_name_that_the_run_got(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "run_training", fail)
    assert main(["train", "--config", "demo", "TRAIN.LR=0.5"]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"To go on: .* --config demo TRAIN.LR=0.5 RUN.NAME=demo-\d{8}-\d{6}", last)


@pytest.mark.parametrize("instead", [None, KeyboardInterrupt(), RuntimeError("the trial was aborted"), Stopped(2)])
def test_the_main_thread_can_be_interrupted_for_a_reason(
    instead: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray raises a KeyboardInterrupt of its own for any that comes, and Ray Tune errors that follow from it."""

    def program() -> int:
        interruption.listen()
        threading.Thread(target=interruption.interrupt_main_thread, args=(ProgramError("the head is gone"),)).start()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            if instead is not None:
                raise instead from None
            raise
        return 0

    before = signal.getsignal(interruption.WAKES)
    try:
        assert run_program(program, "To go on: again") == 1
    finally:
        signal.signal(interruption.WAKES, before)
    assert capsys.readouterr().err == "error: the head is gone\nTo go on: again\n"
    assert run_program(end(KeyboardInterrupt())) == 130, "the reason was that of an earlier program"


JOB = json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}, "runtime_env": {}})


@pytest.mark.parametrize(
    ("started", "job", "expected"),
    [
        ("bin/seqtrack", None, "seqtrack pack-lasot --to x"),
        (".venv/bin/seqtrack", None, ".venv/bin/seqtrack pack-lasot --to x"),
        ("ray_jobs/pack_lasot.py", None, "bin/python ray_jobs/pack_lasot.py --to x"),
        ("ray_jobs/pack_lasot.py", JOB, "ray job submit --working-dir . -- python ray_jobs/pack_lasot.py --to x"),
        ("/opt/bin/seqtrack", JOB, "ray job submit --working-dir . -- seqtrack pack-lasot --to x"),
    ],
)
def test_a_program_is_started_again_as_it_was_started(
    started: str, job: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/seqtrack").touch(0o755)
    monkeypatch.setenv("PATH", "bin", prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setattr(sys, "argv", [started])
    if job is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    assert " ".join(command("pack-lasot", ["--to", "x"])) == expected


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_found_by_its_name_and_by_its_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(REPOSITORY / f"configs/{name}.yaml")


def test_a_file_that_is_there_goes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("SEED: 5\n")
    assert load_config("demo").SEED == 5


class Begun(BaseException):
    """The training would begin now."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The settings of each training that is ready to begin and then does not."""
    seen: list[Config] = []

    def run_prepared(prepared: Any, *_: Any) -> None:
        seen.append(prepared.config)
        raise Begun

    monkeypatch.setattr(experiment, "run_prepared", run_prepared)
    return seen


@pytest.mark.parametrize("config", ["demo", str(REPOSITORY / "configs/demo.yaml")])
def test_a_run_without_a_name_is_called_after_its_recipe(
    config: str, begun: list[Config], lasot_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(Begun):
        main(["train", "--config", config, f"DATA.ROOT={lasot_root}", f"RUN.STORAGE_PATH={tmp_path}"])
    assert re.fullmatch(r"demo-\d{8}-\d{6}", str(begun[0].RUN.NAME))


@pytest.mark.parametrize(("file", "fault"), [(".yaml", "begins with ."), ("-x.yaml", "begins with -")])
@pytest.mark.parametrize(
    "program", [["train"], ["reproduce"], ["sweep", "--sweep", "smoke"]], ids=lambda words: words[0]
)
def test_a_file_whose_name_makes_no_name_of_a_run_is_refused(
    program: list[str], file: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / file).write_text((REPOSITORY / "configs/demo.yaml").read_text())
    assert main([*program, "--config", f"{tmp_path}/{file}"]) == 2
    assert f" {fault}; a name is that of one folder" in capsys.readouterr().err


def test_a_checkpoint_that_brings_its_settings_is_read_once(
    begun: list[Config], tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config.with_settings({"TRAIN.EPOCH": 1}))
    verified: list[str] = []
    verify = checkpoint.verify_checkpoint

    def counted(directory: Path, shown: str) -> dict[str, Any]:
        verified.append(directory.name)
        return verify(directory, shown)

    monkeypatch.setattr(checkpoint, "verify_checkpoint", counted)
    with pytest.raises(Begun):
        main(["train", "--resume-from", f"{tmp_path}/runs/tiny", "TRAIN.EPOCH=3"])
    assert verified == ["checkpoint_epoch_0001"]
    assert re.fullmatch(r"tiny-resumed-\d{8}-\d{6}", str(begun[0].RUN.NAME))
    assert (begun[0].TRAIN.EPOCH, begun[0].SEED) == (3, tiny_config.SEED)


def test_a_run_goes_on_though_the_checkpoint_that_it_started_from_is_gone(
    begun: list[Config], tiny_config: Config, tmp_path: Path
) -> None:
    gone, run = tmp_path / "gone/checkpoint_epoch_0001", tmp_path / "runs/tiny"
    save(tiny_config, run, 6, resumed_from={"path": str(gone), "step": 6})
    write_settings(tiny_config, RunFolder.at(str(run)))
    (tmp_path / "tiny.yaml").write_text(tiny_config.to_yaml())
    named = [f"RUN.STORAGE_PATH={tmp_path}/runs", "RUN.NAME=tiny", "--allow-changed", "dataset"]
    for settings in (["--config", f"{tmp_path}/tiny.yaml"], []):  # else they are in the run's own folder
        with pytest.raises(Begun):
            main(["train", *settings, *named, "--resume-from", str(gone)])
    assert [(config.RUN.NAME, config.SEED) for config in begun] == [("tiny", tiny_config.SEED)] * 2


def test_a_run_that_cannot_be_what_was_asked_for_ends_with_a_line(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.of(tiny_config)
    (tmp_path / "tiny.yaml").write_text(tiny_config.to_yaml())
    command = ["train", "--config", f"{tmp_path}/tiny.yaml", "--allow-changed", "dataset"]
    write_settings(tiny_config, run)
    run.write(FIRST_FILE, "{}")
    assert main(command) == 2
    assert f"error: {run.location}: had checkpoints ({FIRST_FILE}: {{}}) and shows none" in capsys.readouterr().err
    save(tiny_config, Path(run.path), 6)
    assert main([*command, "--resume-from", "/nowhere/3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --resume-from /nowhere/3: {run.location} began from no checkpoint, and goes on")
    with run.owned():
        assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run.location}: belongs to another job: ") and said.count("\n") == 1
    assert {path.name for path in Path(run.path).iterdir()} == {"checkpoint_epoch_0001", "config.yaml", FIRST_FILE}


@pytest.mark.parametrize(
    "typed",
    [
        "train --config {tmp}/tiny.yaml",
        "reproduce --config {tmp}/tiny.yaml --resume-epoch 2",
        "sweep --config {tmp}/tiny.yaml --sweep {tmp}/sweep.yaml",
        "evaluate --results x --data mine={root} --out {tmp}/runs/tiny",
        "pack DATA.ROOT={root} --to {tmp}/runs/tiny",
    ],
    ids=lambda typed: typed.split()[0],
)
def test_no_program_works_in_a_folder_that_another_job_owns(
    typed: str, tiny_config: Config, lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_config.to_yaml())
    (tmp_path / "sweep.yaml").write_text("{parameters: {TRAIN.LR: {grid: [0.1, 0.2]}}, metric: iou, stop: {epoch: 1}}")
    run = RunFolder.of(tiny_config)
    with run.owned():
        assert main(typed.format(tmp=tmp_path, root=lasot_root).split()) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run.location}: belongs to another job: ") and said.count("\n") == 1
    assert not Path(run.path).exists()


def test_a_job_that_lost_its_folder_says_so_and_not_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(end(LeaseLostError("runs/mine: was taken over by x")), "To go on: again") == 1
    assert capsys.readouterr().err == (
        "error: runs/mine: was taken over by x; this job has ended, and wrote nothing more there\n"
    )


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    shell = f"set -o pipefail; {shlex.quote(sys.executable)} ray_jobs/train.py --settings | head -n 1"
    ended = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("SEED = 42\n", "")


def test_an_error_that_nobody_expected_is_one_line_and_its_traceback_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_program(end(ZeroDivisionError("division by zero")), "To go on: again") == 1
    said = capsys.readouterr().err
    kept = re.fullmatch(r"error: ZeroDivisionError: division by zero \(for a report: (.+)\)\nTo go on: again\n", said)
    assert kept is not None
    log = Path(kept[1])
    assert "raise error" in log.read_text()
    log.unlink()


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), ConfigError("SEED: is wrong")])
def test_a_traceback_is_shown_where_it_is_asked_for(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(end(error), None, with_traceback=True) != 0
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.splitlines()[-1].startswith("error: ")


PRINTS = """
import sys
from seqtrack.commands.program import prepare_output, run_program

prepare_output()
sys.exit(run_program(lambda: print('3 × 4 …') or 0))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_the_terminal_lacks_ends_no_program(encoding: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
    shown = subprocess.run([sys.executable, "-c", PRINTS], env=environment, capture_output=True)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout == "3 × 4 …\n".encode(encoding, "replace")


@pytest.mark.parametrize("arguments", ["train --help", "track --help"])
def test_help_is_shown_by_a_terminal_that_lacks_its_letters(arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    code = "import sys; from seqtrack.cli import main; main(sys.argv[1:])"
    shown = subprocess.run([sys.executable, "-c", code, *arguments.split()], env=environment, capture_output=True)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout.startswith(b"usage: ")


WRITES_LATER = """
import sys, time
from seqtrack.commands.program import prepare_output, run_program

def program():
    print('begun', flush=True)
    sys.stdin.read()
    print('goes on', flush=True)
    open('file', 'w').write('whole')
    END

prepare_output()
sys.exit(run_program(program))
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return 0", 0),
        ("from seqtrack.errors import Stopped; raise Stopped(15)", 143),
        ("from seqtrack.errors import InputError; raise InputError('x')", 2),
    ],
)
def test_a_reader_that_leaves_amid_a_program_changes_nothing_of_it(end: str, code: int, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_LATER.replace("END", end)],
        env=environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == code
    assert (tmp_path / "file").read_text() == "whole"


def test_output_that_a_full_disk_does_not_take_ends_no_program_and_is_said() -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", PRINTS], env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 0
    assert ended.stderr == "warning: the output cannot be written and is lost: no space is left there\n"


@pytest.mark.parametrize(
    ("argument", "locale"),
    [(b"\xff", {}), ("ü".encode(), {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})],
    ids=["no UTF-8", "locale C"],
)
def test_the_traceback_is_kept_whatever_was_typed(argument: bytes, locale: dict[str, str]) -> None:
    code = PRINTS.replace("print('3 × 4 …') or 0", "{}['x']").encode()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | locale
    said = subprocess.run([sys.executable, "-c", code, argument], env=environment, capture_output=True).stderr.decode()
    kept = re.fullmatch(r"error: KeyError: 'x' \(for a report: (.+)\)\n", said)
    assert kept is not None, said
    assert "KeyError" in Path(kept[1]).read_text("utf-8")
    Path(kept[1]).unlink()


def test_a_closed_stdout_ends_no_program(tmp_path: Path) -> None:
    """And no file that is opened later takes its place."""
    code = PRINTS.replace("print('3 × 4 …')", "(open('file', 'w').write('content'), print('printed'))[2:]")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = f"{shlex.join([sys.executable, '-c', code])} >&-"
    assert subprocess.run(command, shell=True, env=environment, cwd=tmp_path).returncode == 0
    assert (tmp_path / "file").read_text() == "content"
