"""What is checked before a worker starts: bad input ends with one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seqtrack.config import Config, ConfigError
from seqtrack.experiments.prepare import check_start, check_supported, open_start, prepare, settle_paths
from seqtrack.runs.checkpoint import CheckpointError
from seqtrack.runs.folder import write_settings
from tests.checkpoints import DATASET, save


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DATA.TRAIN.DATASETS_NAME": ["LASOT", "COCO17"]}, "COCO17 cannot be trained on here, only LASOT"),
        ({"DATA.SAMPLER_MODE": "causal"}, "SAMPLER_MODE causal is not supported, only order"),
        ({"DATA.ROOT": None}, "DATA.ROOT is not set"),
    ],
)
def test_published_settings_that_are_not_carried_out_are_refused(
    tiny_config: Config, settings: dict[str, Any], message: str
) -> None:
    if "DATA.TRAIN.DATASETS_NAME" in settings:
        settings = settings | {"DATA.TRAIN.DATASETS_RATIO": [1, 1]}
    with pytest.raises(ConfigError, match=message):
        check_supported(tiny_config.with_settings(settings))


def test_local_paths_become_absolute_and_uris_stay(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    settled = settle_paths(tiny_config.with_settings({"DATA.ROOT": "data", "RUN.STORAGE_PATH": "s3://bucket/runs"}))
    assert (settled.DATA.ROOT, settled.RUN.STORAGE_PATH) == ("/data", "s3://bucket/runs")


def test_the_synthetic_data_set_is_written_when_asked_for(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.with_settings(
        {
            "DATA.ROOT": "synthetic",
            "DATA.SYNTHETIC": {"SEQUENCES": 1, "FRAMES": 20, "HEIGHT": 64, "WIDTH": 64, "PATH": str(tmp_path)},
        }
    )
    assert Path(str(settle_paths(config).DATA.ROOT), "coin/coin-1/groundtruth.txt").is_file()


@pytest.fixture
def checkpoint(tiny_config: Config, tmp_path: Path) -> Path:
    return save(tiny_config, tmp_path / "run", tiny_config.steps_per_epoch)


def test_a_checkpoint_that_fits_is_accepted(tiny_config: Config, checkpoint: Path) -> None:
    check_start(tiny_config, open_start(f"{checkpoint.parent}/latest"), DATASET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"MODEL.BINS": 99},
            r"does not fit the model; 3 misshapen: .*word_embeddings.weight is \[18, 32\], not \[101, 32\]",
        ),
        ({"TRAIN.BATCH_SIZE": 2}, "has 6 steps an epoch, these settings 11"),
        ({"TRAIN.EPOCH": 1}, r"nothing is left to train \(TRAIN.EPOCH=2 goes on\)"),
        ({"TRAIN.LR": 0.5}, r"cannot be continued exactly: TRAIN.LR: 0.5, not 0.001 \(--allow-changed TRAIN.LR goes"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny_config: Config, checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_start(tiny_config.with_settings(settings), open_start(str(checkpoint)), DATASET)


def test_a_checkpoint_of_other_data_is_refused(tiny_config: Config, checkpoint: Path) -> None:
    other = DATASET | {"fingerprint": "fedcba9876543210"}
    with pytest.raises(CheckpointError, match="dataset: 4 sequences, 120 frames, annotations fedcba987654, not 4 seq"):
        check_start(tiny_config, open_start(str(checkpoint)), other)
    check_start(tiny_config, open_start(str(checkpoint)), other, allow_changed=["dataset"])


def test_a_damaged_checkpoint_is_refused(tiny_config: Config, checkpoint: Path) -> None:
    (checkpoint / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint_epoch_0001/state.pt is damaged"):
        check_start(tiny_config, open_start(str(checkpoint)), DATASET)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/checkpoint_epoch_0001"])
def test_a_checkpoint_that_is_not_there_is_named(tiny_config: Config, tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        check_start(tiny_config, open_start(str(tmp_path / path)), DATASET)


def test_a_run_is_prepared_from_its_own_checkpoint_before_another_one(tiny_config: Config, tmp_path: Path) -> None:
    elsewhere = open_start(str(save(tiny_config, tmp_path / "elsewhere", 4)))
    new = prepare(tiny_config, elsewhere, allow_changed=["dataset"])
    assert (new.start, new.continued) == (elsewhere, False)
    write_settings(new.config, new.run)
    save(tiny_config, tmp_path / "runs/tiny", 6)
    again = prepare(tiny_config, elsewhere, allow_changed=["dataset"])
    assert again.start is not None and again.continued
    assert again.start.path == str(tmp_path / "runs/tiny/checkpoint_epoch_0001")


def test_a_prepared_run_without_a_checkpoint_starts_from_random_weights(tiny_config: Config) -> None:
    prepared = prepare(tiny_config)
    assert (prepared.start, prepared.continued, prepared.weights_source) == (None, False, "random")
    assert prepared.data.mixture.description["frames"] == 120
