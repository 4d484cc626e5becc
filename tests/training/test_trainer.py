"""What is checked before a worker starts: bad input ends with one line that names it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.data.lasot import DataError, build_index, open_root
from seqtrack.training.state import CheckpointError, TrainState, write_meta
from seqtrack.training.trainer import (
    Resources,
    check_checkpoint,
    check_frames_exist,
    check_supported,
    open_run_folder,
    plan_resources,
    settle_paths,
)


@pytest.mark.parametrize(
    ("cluster", "workers", "expected"),
    [
        ({"CPU": 2, "GPU": 0}, 1, Resources(1.0, 0.0, 1.0)),
        ({"CPU": 2, "GPU": 0}, 2, Resources(0.5, 0.0, 1.0)),
        ({"CPU": 1, "GPU": 0}, 1, Resources(0.5, 0.0, 0.5)),
        ({"CPU": 64, "GPU": 8}, 8, Resources(1.0, 1.0, 1.0)),
    ],
)
def test_training_leaves_cpus_for_data(cluster: dict[str, float], workers: int, expected: Resources) -> None:
    assert plan_resources(Config().with_settings({"RUN.WORKERS": workers}), cluster) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RUN.GPUS_PER_WORKER": 1.0}, r"1 × 1 GPUs asked for, and the cluster has 0 \(RUN.GPUS_PER_WORKER=0"),
        ({"RUN.CPUS_PER_WORKER": 2.0}, r"1 × 2 CPUs leave none of the cluster's 2 for the data pipeline"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_resources(Config().with_settings(settings), {"CPU": 2, "GPU": 0})


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


def test_a_tree_of_annotations_without_frames_is_refused(lasot_root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lasot_root, tmp_path / "tree")
    shutil.rmtree(copy / "kite/kite-2/img")
    root = open_root(str(copy))
    index = build_index(Config().with_settings({"DATA.SPLIT": "all"}).DATA, root)
    with pytest.raises(DataError, match="1 of 4 sequences have no frames, the first: kite/kite-2/img"):
        check_frames_exist(index, root)


def test_a_storage_path_that_cannot_be_written_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"RUN.STORAGE_PATH .*/file/runs: cannot be written"):
        open_run_folder(tiny_config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "file/runs")}))


def test_a_runs_folder_holds_the_settings_that_reproduce_it(tiny_config: Config) -> None:
    _, folder = open_run_folder(tiny_config)
    assert load_config(f"{folder}/config.yaml") == tiny_config


def test_a_run_is_not_overwritten_by_one_of_other_settings(tiny_config: Config) -> None:
    _, folder = open_run_folder(tiny_config)
    with pytest.raises(
        ConfigError, match=r"RUN.NAME tiny: .* \(TRAIN.LR: 0.5, not 0.001\); another RUN.NAME keeps both"
    ):
        open_run_folder(tiny_config.with_settings({"TRAIN.LR": 0.5}))
    assert load_config(f"{folder}/config.yaml") == tiny_config


def test_a_run_may_go_on_with_other_workers(tiny_config: Config) -> None:
    open_run_folder(tiny_config)
    open_run_folder(tiny_config.with_settings({"RUN.WORKERS": 2}))


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
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    state = TrainState.fresh(tiny_config, 0, torch.device("cpu"))
    state.step = tiny_config.steps_per_epoch
    state.save(folder)
    write_meta(folder, tiny_config, state)
    return folder


def test_a_checkpoint_that_fits_is_accepted(tiny_config: Config, checkpoint: Path) -> None:
    assert check_checkpoint(tiny_config, str(checkpoint)).path == str(checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"MODEL.BINS": 99},
            r"does not fit the model; 3 misshapen: .*word_embeddings.weight is \[18, 32\], not \[101, 32\]",
        ),
        ({"TRAIN.BATCH_SIZE": 2}, "has 6 steps an epoch, these settings 11"),
        ({"TRAIN.EPOCH": 1}, r"nothing is left to train \(TRAIN.EPOCH=2 goes on\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny_config: Config, checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(tiny_config.with_settings(settings), str(checkpoint))


def test_a_checkpoint_that_is_not_there_is_named(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        check_checkpoint(tiny_config, str(tmp_path / "nowhere"))
