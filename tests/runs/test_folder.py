"""A run's folder: which run it belongs to, and small files that are replaced in one step."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pyarrow import fs

from seqtrack import files
from seqtrack.config import Config, ConfigError, load_config
from seqtrack.runs.folder import RunFileError, RunFolder, open_run, read_settings, write_settings
from tests.folders import run_at


def start_run(config: Config) -> RunFolder:
    run = open_run(config)
    write_settings(config, run)
    return run


def test_a_runs_folder_holds_the_settings_that_reproduce_it(tiny_config: Config) -> None:
    run = start_run(tiny_config)
    assert load_config(run.file("config.yaml")) == tiny_config


def test_a_run_is_not_overwritten_by_one_of_other_settings(tiny_config: Config) -> None:
    run = start_run(tiny_config)
    with pytest.raises(
        ConfigError, match=r"RUN.NAME tiny: .* \(TRAIN.LR: 0.5, not 0.001\); another RUN.NAME keeps both"
    ):
        open_run(tiny_config.with_settings({"TRAIN.LR": 0.5}))
    assert load_config(run.file("config.yaml")) == tiny_config


def test_a_run_may_go_on_with_other_workers(tiny_config: Config) -> None:
    start_run(tiny_config)
    open_run(tiny_config.with_settings({"RUN.WORKERS": 2}))


def test_a_run_may_go_on_with_what_is_allowed_to_change(tiny_config: Config) -> None:
    start_run(tiny_config)
    open_run(tiny_config.with_settings({"TRAIN.LR": 0.5}), allow_changed=["TRAIN.LR"])


def test_a_storage_path_that_cannot_be_written_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"RUN.STORAGE_PATH .*/file/runs: cannot be written"):
        start_run(tiny_config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "file/runs")}))


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.8])
def test_settings_that_are_empty_or_cut_off_are_named(tiny_config: Config, part: float) -> None:
    """A part of the settings is often valid YAML, and would be read as a run with defaults."""
    path = Path(start_run(tiny_config).file("config.yaml"))
    text = path.read_text()
    path.write_text(text[: text.index("\nRUN:") + 1][: int(part * len(text))])
    with pytest.raises(
        (RunFileError, ConfigError), match=rf"{path}: (is empty|is cut off|not valid YAML|\S+: .* valid)"
    ):
        open_run(tiny_config)


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing fails, the old file is still there, and no other file is left."""
    run = run_at(tmp_path)
    run.write("a.json", "old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            run.write("a.json", "new")
    assert run.read_text("a.json") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from seqtrack.runs.folder import RunFolder

write_bytes = Path.write_bytes

def killed_half_way(path, data):
    write_bytes(path, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = killed_half_way
RunFolder.at(sys.argv[1]).write("config.yaml", "SEED: 1\\n" * 1000)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tiny_config: Config) -> None:
    run = start_run(tiny_config)
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, run.path])
    assert killed.returncode == -9
    assert read_settings(run) == tiny_config
    assert open_run(tiny_config) == run, "the same command goes on"


def test_an_object_store_gets_the_whole_at_once(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    files.write_atomically(store, "a.txt", "text")
    assert files.read_text(store, "a.txt") == "text"
    assert files.read_text(store, "b.txt") is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b'{"run_id": ', "is cut off or damaged"),
        (b"\xff\xfe\x00", "is cut off or damaged"),
        (b"[]", "holds list"),
    ],
)
def test_a_json_file_that_is_empty_or_damaged_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    run = run_at(tmp_path)
    assert run.read_json("mlflow.json") is None
    run.write("mlflow.json", content)
    with pytest.raises(RunFileError, match=f"{tmp_path}/mlflow.json: {what}"):
        run.read_json("mlflow.json")


@dataclass
class Note:
    name: str
    count: int = 0
    tags: dict[str, str] = field(default_factory=dict)


def test_a_small_file_comes_back_as_what_it_was(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    assert run.read_as("note.json", Note) is None
    run.write_json("note.json", {"name": "a", "tags": {"b": "c"}})
    assert run.read_as("note.json", Note) == Note("a", 0, {"b": "c"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"name": "a"', "is cut off or damaged"),
        ("[" * 100_000, "is cut off or damaged"),
        ("[1]", "holds list, not an object"),
        ("{}", "is not what this version writes (name: "),
        ('{"name": 1}', "is not what this version writes (name: "),
        ('{"name": "a", "count": "1"}', "is not what this version writes (count: "),
        ('{"name": "a", "tags": {"b": 1}}', "is not what this version writes (tags.b: "),
        ('{"name": "a", "other": 1}', "is not what this version writes (unknown: other)"),
    ],
)
def test_a_small_file_that_holds_something_else_is_named_with_the_place(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "note.json").write_text(content)
    with pytest.raises(RunFileError) as error:
        run_at(tmp_path).read_as("note.json", Note)
    assert str(error.value).startswith(f"{tmp_path}/note.json: {said}")
