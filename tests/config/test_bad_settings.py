"""Settings of every kind of wrong, through the real command: each is answered with a line, or training would start."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqtrack.cli import main
from seqtrack.config import Config, setting_docs
from seqtrack.experiments import train as experiment
from seqtrack.sweeps import run as sweep

KEYS = [doc.key for doc in setting_docs()]
ONE_OF_EACH_KIND = (
    *("SEED", "TRAIN.LR", "TRAIN.SLOTS", "TRAIN.DETERMINISTIC", "TRAIN.PRECISION", "DATA.SEARCH.NUMBER", "DATA.MEAN"),
    *("RUN.NAME", "RUN.WORKERS", "DATA.ROOT", "RUN.STORAGE_PATH", "DATA.TRAIN.CLASSES", "MLFLOW.TAGS", "MLFLOW.TAGS.x"),
    *("MLFLOW.EXPERIMENT", "TRAIN", "TRAIN.LR.x", "x"),
)
ODD_TEXTS = (
    *(
        "",
        "null",
        "~",
        "yes",
        "no",
        "010",
        "0x10",
        "1_1",
        "12:30",
        "2024-01-01",
        "1e5",
        "1e999",
        ".inf",
        "-.inf",
        ".nan",
    ),
    *(
        "a #b",
        "#1",
        "a: b",
        "- a",
        "'",
        '"',
        "'a",
        "''",
        '"\\0"',
        '"\\ud800"',
        "\\",
        "/",
        "..",
        ".",
        "a/b",
        "~",
        "~x/y",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "[]",
        "{}",
        "[[]]",
        "{a: 1, a: 2}",
        "[1, 2, 3]",
        "[null]",
        "{a: {b: c}}",
        "&a [*a]",
        "*a",
        "<<",
    ),
    *(
        "!!python/object:os.system x",
        "!!int x",
        "!!set {a}",
        "!!binary aGk=",
        "!x y",
        "? a",
        "%TAG",
        "---",
        "--- a\n--- b",
    ),
    *(
        "file://relative",
        "file:x",
        "file:///a%20b #?",
        "s3://[",
        "s3://k:canary@b/c",
        "http://",
        "\ufeff1",
        "\t1",
        "1\r\n",
    ),
    *("9" * 5000, "-" + "9" * 400, "0x" + "f" * 5000, "[" * 400, "[" * 150 + "]" * 150, "x" * 300, "é" * 150, "-1"),
    *("0", "1", "2", "3.5", "1000000000000000000000", "true", "\x01", "\x7f", "a\u2028b", "\udcff"),
)
ALIAS_BOMB = b"97: &97 [x, x]\n" + b"".join(b"%i: &%i [*%i, *%i]\n" % (i, i, i - 1, i - 1) for i in range(98, 140))
"""Forty lines that stand for a million of millions of values."""
FILES_ALONE = (
    b"", b"\0", b"\xef\xbb\xbfSEED: 1\r\n", b"\xff\xfeS\0E\0", b"SEED: 1\nSEED: 2\n", b"SEED:\t1\n\tTRAIN: 1\n", b"- 1",
    ALIAS_BOMB,
    b"a: &a {b: *a}", b"? {a: b}\n: c", b"[" * 5000, b"{a: " * 5000, b"a:\n" + b" " * 5000 + b"b: 1", b"x" * 2**21,
    b"!!python/object/apply:os.system ['touch canary']", b"SEED: !!python/name:os.system", b"<<: 1", b"<<: [[1]]",
    b"parameters: {TRAIN.LR: {grid: [.nan]}}", b"parameters: {TRAIN.LR: {uniform: [0, .inf]}}", b"parameters: {}",
    b"parameters: {TRAIN.LR: {loguniform: [-1, 1]}}", b"parameters: {SEED: {grid: [1, 1.0, true, null, 2024-01-01]}}",
    b"parameters: {SEED: {randint: [1, 1e30]}}", b"parameters: {TRAIN: {grid: [1]}}", b"parameters: [1]", b"trials: 1",
    b"parameters: {SEED: {grid: [1]}}\nstop: {loss: .nan}", b"parameters: {SEED: {grid: [1], grid: [2]}}",
)  # fmt: skip
"""Files that are wrong as a whole; some are sweeps."""

texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
keys = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS).map(str.lower),
    st.sampled_from(KEYS).flatmap(lambda key: st.text(max_size=3).map(lambda end: f"{key}.{end}")),
    st.sampled_from([key.rpartition(".")[0] for key in KEYS]),
    st.text(max_size=6),
)
overrides = st.builds(lambda key, text: f"{key}={text}", keys, texts).filter(lambda one: not one.startswith("-"))


def nested(key: str, text: str) -> str:
    """`A.B` and `c` as `A: {B: c}`."""
    return (
        "".join(f"{name}: {{" for name in key.split(".")[:-1]) + f"{key.split('.')[-1]}: {text}" + "}" * key.count(".")
    )


def sweep_over(key: str, kind: str, values: Any) -> str:
    return str(yaml.safe_dump({"parameters": {key: {kind: values}}}))


files = st.one_of(
    st.sampled_from(FILES_ALONE),
    st.binary(max_size=40),
    st.builds(nested, keys, texts).map(lambda text: text.encode(errors="replace")),
    st.lists(st.builds(nested, keys, texts), max_size=3).map(lambda lines: "\n".join(lines).encode(errors="replace")),
    plain.map(lambda value: yaml.safe_dump(value).encode(errors="replace")),
    st.builds(
        sweep_over, keys, st.sampled_from(["grid", "choice", "uniform", "loguniform", "randint"]), plain
    ).map(lambda text: text.encode(errors="replace")),
)  # fmt: skip


class Begun(BaseException):
    """The training or sweep would begin now."""


@pytest.fixture(autouse=True)
def begins_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def begin(config: Config, *_: Any) -> None:
        raise Begun

    monkeypatch.setattr(experiment, "run_training", begin)
    monkeypatch.setattr(sweep, "run", begin)
    monkeypatch.chdir(tmp_path)
    yield
    # Nothing was written, and no code from a file was run.
    assert {path.name for path in tmp_path.iterdir()} <= {"odd.yaml"}


def assert_answered(arguments: Sequence[str]) -> None:
    """The command starts to train, or says in one line what is wrong."""
    with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()), suppress(Begun):
        code = main(arguments)
        line = said.getvalue()
        assert code == 2, line
        assert line.startswith("error: ") and line.count("\n") == 1 and line.endswith("\n"), line
        assert len(line) < 1500 and "canary" not in line, line


many = settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@many
@given(st.lists(overrides, min_size=1, max_size=3))
def test_any_setting_on_the_command_line_is_answered(given: list[str]) -> None:
    assert_answered(["train", "--config", "demo", *given])


@many
@given(files)
def test_any_file_of_settings_is_answered(content: bytes) -> None:
    Path("odd.yaml").write_bytes(content)
    assert_answered(["train", "--config", "odd.yaml", "DATA.ROOT=x", "DATA.TRAIN.DATASETS_NAME=[LASOT]"])


@many
@given(files)
def test_any_file_of_a_sweep_is_answered(content: bytes) -> None:
    Path("odd.yaml").write_bytes(content)
    assert_answered(["sweep", "--config", "demo", "--sweep", "odd.yaml"])


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: ascii(text)[:20])
def test_an_odd_value_is_answered_for_every_kind_of_setting(text: str) -> None:
    for key in ONE_OF_EACH_KIND:
        assert_answered(["train", "--config", "demo", f"{key}={text}"])


@pytest.mark.parametrize("content", FILES_ALONE, ids=range(len(FILES_ALONE)))
@pytest.mark.parametrize(
    "program", [["train", "--config"], ["sweep", "--config", "demo", "--sweep"]], ids=["train", "sweep"]
)
def test_an_odd_file_is_answered(program: list[str], content: bytes) -> None:
    Path("odd.yaml").write_bytes(content)
    assert_answered([*program, "odd.yaml", "DATA.ROOT=x"])
