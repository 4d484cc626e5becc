"""What a word in YAML or on the command line means: its setting's type decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.config import Config, ConfigError, load_config, load_settings, parse_config, recipe_names
from seqtrack.sweeps.settings import load_sweep
from tests.training.runs import REPOSITORY

WORDS = (
    "2024-01-01",
    "1_1",
    "007",
    "1e5",
    "0x10",
    "12:30",
    "yes",
    "no",
    "on",
    "2024-01-01 12:00:00",
    "1.0",
    "-1",
    ".inf",
)
NAMES = ("RUN.NAME", "MLFLOW.EXPERIMENT", "MLFLOW.RUN_NAME", "MLFLOW.TAGS.x", "RUN.WORKER_LABELS.x", "DATA.ROOT")


@pytest.mark.parametrize(
    "word", (*WORDS, "/data/set #1", "a: b", "[x]", "{x}", "*x", "!x", "- x", "%x", "it's", "x\\y")
)
@pytest.mark.parametrize("key", NAMES)
def test_text_on_the_command_line_is_taken_as_it_stands(key: str, word: str) -> None:
    assert load_config(None, [f"{key}={word}"]).flat()[key] == word


@pytest.mark.parametrize("word", WORDS)
def test_a_name_in_a_file_is_text_whatever_it_looks_like(word: str) -> None:
    config = load_settings(
        f"RUN: {{NAME: {word}}}\nMLFLOW: {{TAGS: {{{word}: {word}}}}}\nDATA: {{TRAIN: {{CLASSES: [{word}]}}}}", "f.yaml"
    )
    assert (word, {word: word}, (word,)) == (config.RUN.NAME, config.MLFLOW.TAGS, config.DATA.TRAIN.CLASSES)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("RUN.NAME='a #b'", "a #b"),
        ('RUN.NAME="a b"', "a b"),
        ("RUN.NAME='null'", "null"),
        ("RUN.NAME='a' and 'b'", "'a' and 'b'"),
        ("RUN.NAME=null", None),
        ("RUN.NAME=", None),
        ("RUN.STORAGE_PATH=null", "null"),
        ("DATA.TRAIN.CLASSES=[1, '2', kite]", ["1", "2", "kite"]),
        ("TRAIN.SLOTS=null", None),
        ("TRAIN.EPOCH=1_0", 10),
        ("TRAIN.DETERMINISTIC=no", False),
    ],
)  # fmt: skip
def test_quotes_and_null_mean_what_they_do_in_yaml(override: str, expected: Any) -> None:
    assert load_config(None, [override]).flat()[override.partition("=")[0]] == expected


@pytest.mark.parametrize("text", ["010", "12:30", "2024-01-01", "1.5", "yes"])
def test_what_only_yaml_would_call_a_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"TRAIN\.EPOCH: Input should be a valid integer"):
        load_config(None, [f"TRAIN.EPOCH={text}"])


@pytest.mark.parametrize("name", recipe_names())
def test_published_files_mean_what_they_mean_to_any_yaml_reader(name: str) -> None:
    text = (REPOSITORY / f"configs/{name}.yaml").read_text()
    assert load_settings(text, name) == parse_config(yaml.safe_load(text), name)


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999", "9" * 400])
@pytest.mark.parametrize("key", ["TRAIN.LR", "TRAIN.GRAD_CLIP_NORM", "TEST.UPDATE_THRESHOLD.VOT20", "HUB.PATIENCE"])
def test_a_number_that_is_not_finite_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"command line: {key}: Input should be"):
        load_config(None, [f"{key}={text}"])


@pytest.mark.parametrize(
    "parameter", ["grid: [0.1, .nan]", "choice: [.inf]", "uniform: [0, .inf]", "loguniform: [1, .nan]"]
)
def test_a_number_that_is_not_finite_is_refused_in_a_sweep(parameter: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"parameters: {{TRAIN.LR: {{{parameter}}}}}")
    with pytest.raises(ConfigError, match=rf"{file}: parameters\.TRAIN\.LR.*finite number"):
        load_sweep(file).check(Config(), str(file))


def test_a_sweeps_values_are_read_by_the_type_of_their_setting(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("parameters: {MODEL.WEIGHTS: {grid: [2024-01-01, 1e5, null]}, TRAIN.LR: {grid: [1e-4]}}")
    sweep = load_sweep(file)
    assert sweep.parameters["MODEL.WEIGHTS"].grid == ["2024-01-01", "1e5", None]
    assert sweep.parameters["TRAIN.LR"].grid == [0.0001]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: 1\nTRAIN: {LR: 1}\nSEED: 2", "f.yaml: line 3: 'SEED' is set a second time"),
        ("TRAIN:\n  LR: 1\n  EPOCH: 1\n  LR: 2", "f.yaml: line 4: 'LR' is set a second time"),
        ("SEED: 1\nRUN: {NAME: !!python/object:os.system x}", "f.yaml: line 2: the tag '!!python/object:os.system'"),
        ("SEED: !!int x", "f.yaml: line 1: 'x' is no int"),
        ("a: &a [*a]", "f.yaml: lists or sections are nested too deeply"),
        ("? [a]\n: 1", "f.yaml: line 1: a list or a section stands where a name should"),
        ("SEED: 1\n\tTRAIN: 2", "f.yaml: not valid YAML (line 2: found character '\\t'"),
        ("0", "f.yaml: holds int, not settings"),
    ],
)
def test_what_yaml_allows_and_settings_do_not_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(text, "f.yaml")
    assert message in str(error.value)


def test_sections_may_be_shared_by_aliases() -> None:
    config = load_settings("DATA: {SEARCH: &s {SIZE: 128}, TEMPLATE: {<<: *s, NUMBER: 2, SIZE: 64}}", "f.yaml")
    assert (config.DATA.SEARCH.SIZE, config.DATA.TEMPLATE.SIZE, config.DATA.TEMPLATE.NUMBER) == (128, 64, 2)


def test_a_file_that_is_far_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="/dev/zero: has more than 1,048,576 bytes"):
        load_config("/dev/zero")
