"""What is checked before a worker starts: bad input ends with one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.training.checkpoint import CheckpointError, Contents, checkpoint_name, write_checkpoint
from seqtrack.training.state import TrainState, generator_states
from seqtrack.training.trainer import (
    check_allowances,
    check_checkpoint,
    check_supported,
    open_checkpoint,
    open_run_folder,
    own_checkpoint,
    plan_resources,
    settle_paths,
    write_settings,
)


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "workers", "expected"),
    [
        (2, 0, 1, 1, (1.0, 0.0, 1.0)),
        (2, 0, 1, 2, (0.5, 0.0, 1.0)),
        (1, 0, 1, 1, (0.5, 0.0, 0.5)),
        (2, 0, 2, 2, (0.5, 0.0, 0.5)),  # a worker on each node leaves each half of a CPU
        (4, 0, 3, 2, (1.0, 0.0, 0.666)),
        (64, 8, 4, 8, (1.0, 1.0, 1.0)),
    ],
)
def test_training_leaves_cpus_for_data(
    cpus: float, gpus: float, nodes: float, workers: int, expected: tuple[float, float, float]
) -> None:
    """CPUs and GPUs of a worker, and CPUs of a data task, some node of which always has room for one."""
    cluster = {"CPU": cpus, "GPU": gpus, "nodes": nodes}
    resources = plan_resources(Config().with_settings({"RUN.WORKERS": workers}), cluster)
    assert (resources.cpus_per_worker, resources.gpus_per_worker, resources.placement.cpus_per_task) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RUN.GPUS_PER_WORKER": 1.0}, r"1 × 1 GPUs asked for, and the cluster has 0 \(RUN.GPUS_PER_WORKER=0"),
        ({"RUN.CPUS_PER_WORKER": 2.0}, r"1 × 2 CPUs leave none of the cluster's 2 for the data pipeline"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_resources(Config().with_settings(settings), {"CPU": 2, "GPU": 0, "nodes": 1})


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


def test_a_storage_path_that_cannot_be_written_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"RUN.STORAGE_PATH .*/file/runs: cannot be written"):
        write_settings(
            tiny_config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "file/runs")}), LOCAL, "/dev/null/a"
        )


def start_run(config: Config) -> str:
    filesystem, folder = open_run_folder(config)
    write_settings(config, filesystem, folder)
    return folder


def test_a_runs_folder_holds_the_settings_that_reproduce_it(tiny_config: Config) -> None:
    folder = start_run(tiny_config)
    assert load_config(f"{folder}/config.yaml") == tiny_config


def test_a_run_is_not_overwritten_by_one_of_other_settings(tiny_config: Config) -> None:
    folder = start_run(tiny_config)
    with pytest.raises(
        ConfigError, match=r"RUN.NAME tiny: .* \(TRAIN.LR: 0.5, not 0.001\); another RUN.NAME keeps both"
    ):
        open_run_folder(tiny_config.with_settings({"TRAIN.LR": 0.5}))
    assert load_config(f"{folder}/config.yaml") == tiny_config


def test_a_run_may_go_on_with_other_workers(tiny_config: Config) -> None:
    start_run(tiny_config)
    open_run_folder(tiny_config.with_settings({"RUN.WORKERS": 2}))


def test_a_run_may_go_on_with_what_is_allowed_to_change(tiny_config: Config) -> None:
    start_run(tiny_config)
    open_run_folder(tiny_config.with_settings({"TRAIN.LR": 0.5}), allow_changed=["TRAIN.LR"])


def test_only_what_exists_can_be_allowed_to_change() -> None:
    check_allowances(["TRAIN.LR", "torch", "dataset"])
    with pytest.raises(ConfigError, match=r"--allow-changed TRAIN.LRR: neither a setting .*; did you mean TRAIN.LR\?"):
        check_allowances(["TRAIN.LRR"])


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


DATASET = {"sequences": 4, "frames": 120, "fingerprint": "0123456789abcdef"}
LOCAL = fs.LocalFileSystem()


def save(config: Config, folder: Path, step: int) -> Path:
    """A checkpoint in a run's folder."""
    state = TrainState.fresh(config, 0, torch.device("cpu"))
    state.step = step
    path = folder / checkpoint_name(*divmod(step, config.steps_per_epoch))
    contents = Contents(*state.snapshot(), [generator_states()], state.meta(config, dataset=DATASET))
    write_checkpoint(contents, LOCAL, str(path))
    return path


@pytest.fixture
def checkpoint(tiny_config: Config, tmp_path: Path) -> Path:
    return save(tiny_config, tmp_path / "run", tiny_config.steps_per_epoch)


def test_a_checkpoint_that_fits_is_accepted(tiny_config: Config, checkpoint: Path) -> None:
    check_checkpoint(tiny_config, open_checkpoint(f"{checkpoint.parent}/latest"), DATASET)


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
        check_checkpoint(tiny_config.with_settings(settings), open_checkpoint(str(checkpoint)), DATASET)


def test_a_checkpoint_of_other_data_is_refused(tiny_config: Config, checkpoint: Path) -> None:
    other = DATASET | {"fingerprint": "fedcba9876543210"}
    with pytest.raises(CheckpointError, match="dataset: 4 sequences, 120 frames, annotations fedcba987654, not 4 seq"):
        check_checkpoint(tiny_config, open_checkpoint(str(checkpoint)), other)
    check_checkpoint(tiny_config, open_checkpoint(str(checkpoint)), other, allow_changed=["dataset"])


def test_a_damaged_checkpoint_is_refused(tiny_config: Config, checkpoint: Path) -> None:
    (checkpoint / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint_epoch_0001/state.pt is damaged"):
        check_checkpoint(tiny_config, open_checkpoint(str(checkpoint)), DATASET)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/checkpoint_epoch_0001"])
def test_a_checkpoint_that_is_not_there_is_named(tiny_config: Config, tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        check_checkpoint(tiny_config, open_checkpoint(str(tmp_path / path)), DATASET)


def snapshot(run: Path, *names: str) -> Path:
    """Ray Train's own list of a run's checkpoints."""
    path = run / "checkpoint_manager_snapshot.json"
    path.write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}))
    return path


def test_a_run_goes_on_from_its_newest_finished_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    assert own_checkpoint(LOCAL, str(tmp_path)) is None
    first, second, third = (save(tiny_config, tmp_path, step) for step in (4, 6, 8))
    (third / "SHA256SUMS").unlink()
    listed = snapshot(tmp_path, first.name, second.name)
    own = own_checkpoint(LOCAL, str(tmp_path))
    assert own is not None and own.path == str(second)
    assert listed.exists()


def test_rays_list_is_set_aside_where_it_cannot_be_right(tiny_config: Config, tmp_path: Path) -> None:
    first, second = (save(tiny_config, tmp_path, step) for step in (4, 6))
    for names in ([first.name], ["checkpoint_epoch_0000", second.name], []):
        listed = snapshot(tmp_path, *names)
        own_checkpoint(LOCAL, str(tmp_path))
        assert not listed.exists()
    listed.write_text('{"checkpoint_results": [{"chec')
    own_checkpoint(LOCAL, str(tmp_path))
    assert not listed.exists()
