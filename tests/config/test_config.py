from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.config import Config, ConfigError, load_config, parse_config, setting_docs

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_unstated_settings_have_their_published_defaults() -> None:
    config = Config()
    assert (config.MODEL.BINS, config.MODEL.DECODER.DEC_LAYERS, config.DATA.MAX_SAMPLE_INTERVAL) == (4000, 6, 200)
    assert (config.TRAIN.LR, config.TRAIN.GRAD_CLIP_NORM, config.DATA.SEARCH.CENTER_JITTER) == (0.0001, 0.1, 3.5)
    assert (config.DATA.TEMPLATE.NUMBER, config.DATA.TEMPLATE.CENTER_JITTER) == (1, 0)


def test_a_stated_setting_replaces_its_default_and_an_override_replaces_both(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "TRAIN: {LR: 0.002, EPOCH: 3}\n")
    config = load_config(file, ["TRAIN.LR=4e-4", "DATA.TRAIN.CLASSES=[coin, kite]"])
    assert config.TRAIN.LR == 0.0004
    assert config.TRAIN.EPOCH == 3
    assert config.DATA.TRAIN.CLASSES == ("coin", "kite")


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1.0e-4", "1E-04"])
def test_a_float_may_be_written_in_any_usual_way(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path / "a.yaml", f"TRAIN: {{LR: {text}}}")).TRAIN.LR == 0.0001


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_comes_back_from_its_own_yaml(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path / "written.yaml", config.to_yaml())) == config


@pytest.mark.parametrize(
    ("name", "encoder", "size", "batch", "samples"),
    [
        ("b256", "base", 256, 8 * 16, 60000),
        ("b384", "base", 384, 8 * 8, 60000),
        ("l256", "large", 256, 8 * 8, 60000),
        ("l384", "large", 384, 8 * 8, 60000),
        ("b256_got", "base", 256, 8 * 8, 30000),
        ("b384_got", "base", 384, 8 * 8, 30000),
        ("l256_got", "large", 256, 8 * 8, 30000),
        ("l384_got", "large", 384, 8 * 8, 30000),
    ],
)
def test_the_published_recipes(name: str, encoder: str, size: int, batch: int, samples: int) -> None:
    """Batches are global: the published number per GPU, times 8 GPUs."""
    config = load_config(CONFIGS[0].parent / f"seqtrack_{name}.yaml")
    assert f"vit_{encoder}_patch16" == config.MODEL.ENCODER.TYPE
    assert (size, size, 2) == (config.DATA.SEARCH.SIZE, config.DATA.TEMPLATE.SIZE, config.DATA.TEMPLATE.NUMBER)
    assert (size, size, True) == (config.TEST.SEARCH_SIZE, config.TEST.TEMPLATE_SIZE, config.TEST.WINDOW)
    assert (batch, samples, 500) == (config.TRAIN.BATCH_SIZE, config.DATA.TRAIN.SAMPLE_PER_EPOCH, config.TRAIN.EPOCH)
    assert (config.TRAIN.LR, config.TRAIN.LR_DROP_EPOCH, config.MODEL.DECODER.DEC_LAYERS) == (0.0001, 400, 2)
    assert (config.DATA.MAX_SAMPLE_INTERVAL, config.MODEL.ENCODER.PRETRAIN_TYPE) == (400, "mae")
    expected = ("GOT10K_train_full",) if name.endswith("got") else ("LASOT", "GOT10K_vottrain", "COCO17", "TRACKINGNET")
    assert expected == config.DATA.TRAIN.DATASETS_NAME


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().TRAIN.LR = 1.0  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    undocumented = [key for key, _, meaning in setting_docs() if not meaning]
    assert undocumented == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"TRAIN": {"LRR": 1.0}}, "f.yaml: TRAIN.LRR: unknown setting; did you mean TRAIN.LR?"),
        ({"LR": 1.0}, "f.yaml: LR: unknown setting; did you mean TRAIN.LR?"),
        ({"TRAIN": {"LR": "fast"}}, "f.yaml: TRAIN.LR: Input should be a valid number (got 'fast')"),
        ({"TRAIN": {"EPOCH": 1.5}}, "f.yaml: TRAIN.EPOCH: Input should be a valid integer"),
        ({"TRAIN": {"BATCH_SIZE": 0}}, "f.yaml: TRAIN.BATCH_SIZE: Input should be greater than 0 (got 0)"),
        ({"TRAIN": {"USE": True}, "SEED": -1}, "f.yaml: SEED: Input should be greater than or equal to 0"),
        ({"MODEL": {"HIDDEN_DIM": 30}}, "f.yaml: MODEL: HIDDEN_DIM 30 must be even and a multiple of DECODER.NHEADS 8"),
        ({"DATA": {"SEARCH": {"SIZE": 100}}}, "f.yaml: DATA.SEARCH: SIZE 100 is not a multiple of the patch size 16"),
        ({"DATA": {"TRAIN": {"DATASETS_RATIO": [1]}}}, "f.yaml: DATA.TRAIN: DATASETS_RATIO has 1 entries for 2"),
        ({"RUN": {"WORKERS": 3}}, "f.yaml: RUN.WORKERS 3 does not divide TRAIN.BATCH_SIZE 8, the global batch"),
    ],
)
def test_a_bad_setting_is_named_with_its_file(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(settings, "f.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("TRAIN.LR", "override 'TRAIN.LR' is not of the form KEY=VALUE"),
        ("TRAIN.LRR=1.0", "command line: TRAIN.LRR: unknown setting; did you mean TRAIN.LR?"),
        ("TRAIN.LR.\n=1", "command line: 'TRAIN.LR.\\n': unknown setting; did you mean TRAIN.LR?"),
        ("TRAIN=1", "command line: TRAIN is a section, not a setting"),
        (
            "TRAIN={LR: 1}",
            "command line: TRAIN is a section, not a setting; name one of its settings, as TRAIN.…=VALUE",
        ),
        ("MODEL.ENCODER={}", "command line: MODEL.ENCODER is a section, not a setting"),
        ("TRAIN.LR.X=1", "command line: TRAIN.LR.X: unknown setting; did you mean TRAIN.LR?"),
        ("TRAIN.LR=[1", "override 'TRAIN.LR=[1': not valid YAML (line 1: expected"),
    ],
)
def test_a_bad_override_is_blamed_on_the_command_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "a.yaml", "TRAIN: {LR: 0.1}"), [override])
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("- 1", "holds list, not settings"), ("a: [", "not valid YAML")])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "a.yaml", text))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_config("nowhere.yaml")


def test_an_epoch_is_rounded_up_to_whole_batches() -> None:
    config = Config().with_settings({"DATA.TRAIN.SAMPLE_PER_EPOCH": 27040, "TRAIN.BATCH_SIZE": 12})
    assert config.steps_per_epoch == 2254


def test_settings_without_effect_are_named() -> None:
    assert Config().without_effect() == []
    stated = {"DATA.TRAIN.MAX_SAMPLE_PER_SEQ": 5, "TRAIN.NUM_WORKER": 3, "TEST.WINDOW": True}
    assert Config().with_settings(stated).without_effect() == [
        "DATA.TRAIN.MAX_SAMPLE_PER_SEQ has no effect (nothing in the published code reads it)",
        "TRAIN.NUM_WORKER has no effect (the data pipeline uses the cluster's free CPUs)",
        "TEST has no effect (training does not read it; tracking does)",
    ]


def test_the_list_of_settings_says_which_have_no_effect() -> None:
    marked = {doc.key for doc in setting_docs() if "Has no effect: " in doc.meaning}
    assert {"TRAIN.NUM_WORKER", "DATA.TRAIN.MAX_SAMPLE_PER_SEQ", "TEST.WINDOW", "TEST.UPDATE_INTERVALS.VOT20"} <= marked
    assert not {key for key in marked if not key.startswith("TEST.")} - {
        "TRAIN.NUM_WORKER",
        "DATA.TRAIN.MAX_SAMPLE_PER_SEQ",
    }


def test_the_written_yaml_is_plain() -> None:
    assert yaml.safe_load(Config().to_yaml())["DATA"]["MEAN"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        ("RUN.STORAGE_PATH", "s3://key:canary@bucket/runs"),
        ("DATA.ROOT", "s3://key:canary@bucket/lasot"),
        ("MLFLOW.TRACKING_URI", "postgresql://me:canary@host/mlflow"),
    ],
)
def test_a_password_in_a_setting_is_refused_and_not_repeated(key: str, uri: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} holds a password") as error:
        Config().with_settings({key: uri})
    assert "canary" not in str(error.value)
    assert Config().with_settings({key: uri.replace(":canary", "")}).flat()[key]
