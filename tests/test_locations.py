from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from seqtrack.cli import main
from seqtrack.config import Config, ConfigError, check_supported, load_config
from seqtrack.errors import InputError
from seqtrack.locations import absolute, check_name, child, lasting, parent, stem


@pytest.mark.parametrize(
    ("location", "within"),
    [
        ("/data/runs", "/data/runs/mine"),
        ("s3://bucket/runs", "s3://bucket/runs/mine"),
        ("gs://bucket", "gs://bucket/mine"),
        ("s3://bucket/runs?scheme=http&endpoint_override=host:9000", "s3://bucket/runs/mine?scheme=http&endpoint_override=host:9000"),
    ],
)  # fmt: skip
def test_a_child_and_back(location: str, within: str) -> None:
    assert child(location, "mine") == within
    assert parent(within) == (location, "mine")


def test_a_slash_at_the_end_changes_nothing() -> None:
    assert child("/data/runs/", "mine") == "/data/runs/mine"
    assert child("s3://bucket/runs/?scheme=http", "mine") == "s3://bucket/runs/mine?scheme=http"


def test_only_paths_of_this_machine_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"


@pytest.mark.parametrize("name", ["run #1", "100%", "what?", "é ü", "a%20b", "x=1,y+z"])
def test_a_name_with_odd_characters_in_an_object_store_and_back(name: str) -> None:
    within = child("s3://bucket/runs?region=us-east-1", name)
    assert parent(within) == ("s3://bucket/runs?region=us-east-1", name)
    _, path = fs.FileSystem.from_uri(within)
    assert path == f"bucket/runs/{name}"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data/my%20set", "/data/my set"),
        ("file:///data/set%20%231", "/data/set #1"),
        ("file:///data/set #1?", "/data/set #1?"),
        ("file:///data/100%", "/data/100%"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("FILE:///data/%C3%A9", "/data/é"),
    ],
)
def test_a_file_uri_is_the_path_that_it_stands_for(uri: str, path: str) -> None:
    assert (absolute(uri), lasting(uri)) == (path, path)


@pytest.mark.parametrize("uri", ["file://relative", "file:relative", "file://", "file://host/data"])
def test_a_file_uri_without_a_whole_path_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=f"{uri}: after file:// comes a whole path, as in file:///data/lasot"):
        absolute(uri)
    with pytest.raises(ConfigError, match=f"command line: DATA.ROOT: {uri}: after file://"):
        load_config(None, [f"DATA.ROOT={uri}"])


@pytest.mark.parametrize("name", ["~", "~nobody-of-this-name", "a://b", "s3:x", "-x"])
def test_a_relative_path_may_have_any_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/me")
    assert absolute(f"./{name}") == f"{tmp_path}/{Path(name)}"
    assert absolute(name) == {"~": "/users/me", "a://b": "a://b"}.get(name, f"{tmp_path}/{name}")


@pytest.mark.parametrize("path", ["", " ", '"\\0"', "a\nb", "s3://["])
@pytest.mark.parametrize("key", ["RUN.STORAGE_PATH", "DATA.SPLIT"])
def test_what_can_be_no_location_is_refused(key: str, path: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: {key}: "):
        load_config(None, [f"{key}={path}"])


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("my config #1.yaml", "my config #1"),
        ("configs/demo.yaml", "demo"),
        ("demo", "demo"),
        ("file:///data/my%20run.yaml", "my run"),
        ("s3://bucket/demo.yaml?endpoint_override=host:9000", "demo"),
    ],
)
def test_a_run_is_called_after_the_name_of_its_file(location: str, name: str) -> None:
    assert stem(location) == name


@pytest.mark.parametrize("name", ["2024-01-01", "my run #1", "é 100%?", "x" * 200, "LR=0.1,SEED=1", "~x", "_", "it's"])
def test_a_run_may_have_any_name_that_one_folder_can_have(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a/b", "has a /"),
        ("..", "begins with ."),
        (".", "begins with ."),
        (".hidden", "begins with ."),
        ("-x", "begins with -"),
        ("a\\b", "has a \\"),
        ("a ", "begins or ends with a space"),
        ("a\nb", "has a character that cannot be seen"),
        ("a\0", "has a character that cannot be seen"),
        ("x" * 300, "has 300 bytes"),
        ("é" * 150, "has 300 bytes"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused_before_a_run_starts(name: str, fault: str) -> None:
    config = Config().with_settings(
        {"RUN.NAME": name, "DATA.ROOT": "x", "DATA.TRAIN.DATASETS_NAME": ["LASOT"], "DATA.TRAIN.DATASETS_RATIO": [1]}
    )
    with pytest.raises(ConfigError) as error:
        check_supported(config)
    assert f" {fault}; a name is that of one folder" in str(error.value)
    assert str(error.value).startswith("RUN.NAME '")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "pack-lasot DATA.ROOT=x --to",
        "deliver",
        "convert-weights a",
        "reproduce --config demo --phase1",
        "export --weights a --output",
    ],
)
def test_no_program_takes_an_empty_path_or_begins_anything_with_it(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments.split(), ""]) == 2
    assert capsys.readouterr().err == "error: an empty path; `.` is the current folder\n"
    assert not list(tmp_path.iterdir())
