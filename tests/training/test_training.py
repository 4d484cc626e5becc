"""Whole runs on a real Ray cluster: what they print, leave behind, and continue from."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from mlflow import MlflowClient

from seqtrack.config import Config, SyntheticConfig, parse_config
from seqtrack.data.lasot import build_index
from seqtrack.data.sampling import draw_sample, usable_sequences
from seqtrack.data.storage import open_root
from seqtrack.data.synthetic import write_synthetic
from tests.training.runs import job, weights, write_config


def summaries(run: Path, checkpoint: str) -> list[dict[str, float]]:
    history = json.loads((run / checkpoint / "meta.json").read_text())["history"]
    return [{key: epoch[key] for key in ("loss", "iou", "grad_norm", "lr")} for epoch in history]


def test_a_run_leaves_a_log_checkpoints_and_curves_and_says_where(
    cluster: None, tiny_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["--config", write_config(tiny_settings, tmp_path)]) == 0
    run, console = tmp_path / "runs/tiny", capsys.readouterr().out

    log = (run / "train.log").read_text()
    assert "4 sequences, 120 frames, 22 samples and 6 steps an epoch, 2 epochs, seed 3" in log
    line = r"Epoch (\d) : (\d+) / 22 samples , time for last (\d+) samples : .* , Loss/total: [\d.]+, IoU: [\d.]+, Acc"
    assert re.findall(line, log) == [(epoch, samples, "8") for epoch in "12" for samples in ("8", "16", "22")]
    assert re.findall(r"Epoch (\d) of 2 done in .*waited for data [\d.]+% of the time", log) == ["1", "2"]
    assert log in console

    assert sorted(path.name for path in run.glob("checkpoint_epoch*")) == [
        "checkpoint_epoch_0001",
        "checkpoint_epoch_0002",
    ]
    files = sorted(path.name for path in (run / "checkpoint_epoch_0002").iterdir())
    assert files == ["SHA256SUMS", "meta.json", "model.safetensors", "rng_rank_0000.pt", "state.pt"]
    assert yaml.safe_load((run / "config.yaml").read_text())["TRAIN"]["LR"] == 0.001

    assert f"--resume-from {run}/checkpoint_epoch_0002 TRAIN.EPOCH=4" in console
    store = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert f"ui --backend-store-uri {store}" in console

    client = MlflowClient(store)
    (mlflow_run,) = client.search_runs([client.get_experiment_by_name("seqtrack").experiment_id])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["TRAIN.LR"] == "0.001"
    run_id = mlflow_run.info.run_id
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6, 8, 10, 12]
    epochs = [point.value for point in client.get_metric_history(run_id, "epoch/loss")]
    assert epochs == [summary["loss"] for summary in summaries(run, "checkpoint_epoch_0002")]
    assert json.loads((run / "checkpoint_epoch_0002/meta.json").read_text())["mlflow_run_id"] == run_id


def test_a_checkpoint_brings_its_settings(cluster: None, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    tiny_settings["TRAIN"]["EPOCH"] = 1
    assert job.main(["--config", write_config(tiny_settings, tmp_path)]) == 0
    checkpoint = tmp_path / "runs/tiny/checkpoint_epoch_0001"
    assert job.main(["--resume-from", str(checkpoint), "TRAIN.EPOCH=2"]) == 0
    (resumed,) = (tmp_path / "runs").glob("tiny-resumed-*")
    assert (resumed / "checkpoint_epoch_0002").is_dir()


def test_a_run_starts_from_a_pre_trained_encoder_and_a_frozen_one_keeps_it(
    cluster: None, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    vit = timm.create_model(
        "vit_base_patch16_224.mae", pretrained=False, embed_dim=128, depth=4, num_heads=4, num_classes=0
    ).state_dict()
    torch.save({"model": vit}, tmp_path / "mae.pth")
    tiny_settings["MODEL"]["ENCODER"] |= {"PRETRAIN_TYPE": "mae", "PRETRAIN_FILE": str(tmp_path / "mae.pth")}
    tiny_settings["TRAIN"] |= {"EPOCH": 1, "FREEZE_ENCODER": True}
    tiny_settings["DATA"]["TEMPLATE"]["NUMBER"] = 3
    assert job.main(["--config", write_config(tiny_settings, tmp_path)]) == 0
    assert (
        f"Starting weights : MODEL.ENCODER.PRETRAIN_FILE {tmp_path}/mae.pth"
        in (tmp_path / "runs/tiny/train.log").read_text()
    )
    trained = weights(tmp_path / "runs/tiny", "checkpoint_epoch_0001")
    for name, tensor in vit.items():
        if name.startswith("blocks."):
            assert torch.equal(trained[f"encoder.body.{name}"], tensor), name


def test_two_workers_train_on_the_same_batches_as_one(
    cluster: None, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    """Without dropout the losses agree to rounding: gradients are summed in another order."""
    tiny_settings["MODEL"]["DECODER"]["DROPOUT"] = 0.0
    config = write_config(tiny_settings, tmp_path)
    for workers in (1, 2):
        assert job.main(["--config", config, f"RUN.WORKERS={workers}", f"RUN.NAME=on{workers}"]) == 0
    one, two = (summaries(tmp_path / f"runs/on{workers}", "checkpoint_epoch_0002") for workers in (1, 2))
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-3)
    files = {path.name for path in (tmp_path / "runs/on2/checkpoint_epoch_0002").glob("rng*")}
    assert files == {"rng_rank_0000.pt", "rng_rank_0001.pt"}


def frame_drawn_rarely(config: Config, samples: int) -> tuple[str, int]:
    """A frame that some samples of the first epoch show, but less than 1 % of them, and how many."""
    root = open_root(str(config.DATA.ROOT))
    index = build_index(config.DATA, root)
    usable = usable_sequences(index, config.DATA)
    shown: Counter[str] = Counter()
    for number in range(samples):
        draws = draw_sample(index, usable, config.SEED, number, 0, config.DATA)
        shown.update({index.frame_path(draws.sequence, frame) for frame in draws.frames})
    return next((frame, times) for frame, times in sorted(shown.items()) if 1 < times < samples / 100)


def test_a_few_broken_frames_are_named_and_replaced(
    cluster: None, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    write_synthetic(root, SyntheticConfig(SEQUENCES=4, FRAMES=100, HEIGHT=64, WIDTH=64))
    tiny_settings["DATA"]["ROOT"] = str(root)
    tiny_settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 400
    tiny_settings["TRAIN"] |= {"EPOCH": 1, "BATCH_SIZE": 20, "PRINT_INTERVAL": 100}
    frame, times = frame_drawn_rarely(parse_config(tiny_settings, "tiny"), samples=400)
    (root / frame).unlink()
    assert job.main(["--config", write_config(tiny_settings, tmp_path)]) == 0
    log = (tmp_path / "runs/tiny/train.log").read_text()
    assert log.count(f"{frame} is missing; the sample is drawn again") == times
    (summary,) = json.loads((tmp_path / "runs/tiny/checkpoint_epoch_0001/meta.json").read_text())["history"]
    assert summary["broken_frames"] == times


def test_many_broken_frames_stop_the_run_with_the_list(
    cluster: None,
    tiny_settings: dict[str, Any],
    lasot_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(lasot_root, tmp_path / "broken")
    for path in root.glob("coin/*/img/*.jpg"):
        path.write_bytes(b"")
    tiny_settings["DATA"]["ROOT"] = str(root)
    assert job.main(["--config", write_config(tiny_settings, tmp_path)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"samples of this epoch met a broken frame, more than 1% of 22: coin/coin-\d/img/\d+\.jpg", error)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("DATA.ROOT=/nowhere/lasot", "DATA.ROOT /nowhere/lasot: no such folder"),
        ("TRAIN.LRR=1", "TRAIN.LRR: unknown setting; did you mean TRAIN.LR?"),
        ("RUN.WORKERS=3", "RUN.WORKERS 3 does not divide TRAIN.BATCH_SIZE 4"),
        ("RUN.GPUS_PER_WORKER=1", "GPUs asked for, and the cluster has 0"),
        ("RUN.STORAGE_PATH=/dev/null/runs", "RUN.STORAGE_PATH /dev/null/runs: cannot be written"),
    ],
)
def test_bad_input_gets_one_line_and_a_non_zero_exit(
    cluster: None,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    assert job.main(["--config", write_config(tiny_settings, tmp_path), override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
