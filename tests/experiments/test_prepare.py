"""What is checked before a worker starts: bad input ends with one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from seqtrack.config import Config, parse_config
from seqtrack.data.open import open_data
from seqtrack.experiments.prepare import check_start, open_experiment, open_start, prepare, settle_paths
from seqtrack.runs.checkpoint import CheckpointError
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.training.state import TrainState, restore
from tests.checkpoints import DATASET, save


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


def test_a_made_up_set_is_written_in_the_layout_of_each_training_set(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.with_settings(
        {
            "DATA.ROOT": None,
            "DATA.ROOTS": {"LASOT": "synthetic", "GOT10K": "synthetic", "COCO17": "synthetic", "TRACKINGNET": "data"},
            "DATA.SYNTHETIC": {"SEQUENCES": 1, "FRAMES": 20, "HEIGHT": 64, "WIDTH": 64, "PATH": str(tmp_path)},
        }
    )
    roots = settle_paths(config).DATA.ROOTS
    assert Path(roots["LASOT"], "coin/coin-1/groundtruth.txt").is_file()
    assert Path(roots["GOT10K"], "train/list.txt").is_file()
    assert Path(roots["COCO17"], "annotations/instances_train2017.json").is_file()
    assert roots["TRACKINGNET"] == str(Path("data").absolute())


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


@pytest.fixture
def stamped(tiny_settings: dict[str, Any], tree: Path, tmp_path: Path) -> Config:
    """A run's settings, whose checkpoint has the stamp of its frames; and the frames may be changed."""
    tiny_settings["DATA"]["ROOT"] = str(tree)
    config, data = open_experiment(parse_config(tiny_settings, "tiny"))
    assert data.frames is not None
    write_settings(config, RunFolder.of(config))
    save(config, tmp_path / "runs/tiny", 6, dataset=data.mixture.description, frames=data.frames.to_json())
    return config


def replace_frames(tree: Path) -> None:
    for path in sorted(tree.rglob("kite-*/img/*.jpg")):
        path.write_bytes(next(tree.rglob("coin-1/img/*.jpg")).read_bytes())


REPLACED = (
    r"checkpoint_epoch_0001 cannot be continued exactly: frames: LASOT: 60 of 120 drawn frames are not those of then, "
    r"the first: kite/kite-1/img/00000001.jpg \(--allow-changed frames goes on all the same\)"
)


@pytest.mark.parametrize("resumed", ["the run itself", "another run"])
def test_a_run_whose_frames_were_replaced_is_refused_unless_that_is_allowed(
    resumed: str, stamped: Config, tree: Path, tmp_path: Path
) -> None:
    config, source = stamped, None
    if resumed == "another run":
        config, source = config.with_settings({"RUN.NAME": "other"}), str(tmp_path / "runs/tiny/latest")
    assert not prepare(config, source).data.notes
    replace_frames(tree)
    with pytest.raises(CheckpointError, match=REPLACED):
        prepare(config, source)
    with pytest.raises(CheckpointError, match=REPLACED):
        prepare(config, source, allow_changed=["dataset"])  # the annotations are the same
    assert prepare(config, source, allow_changed=["frames"]).data.frames is not None


def test_workers_compare_frames_too_and_write_the_stamp_into_new_checkpoints(
    stamped: Config, tree: Path, tmp_path: Path
) -> None:
    data = open_data(stamped).stamped()
    start, state = open_start(str(tmp_path / "runs/tiny")).stored, TrainState.fresh(stamped, 0, torch.device("cpu"))
    arguments = (state, start, stamped, data.mixture.description)
    restore(*arguments, (), 0, "cpu", RunFolder.of(stamped), data.frames)
    replace_frames(tree)
    replaced = open_data(stamped).stamped().frames
    with pytest.raises(CheckpointError, match="frames: LASOT: 60 of 120"):
        restore(*arguments, (), 0, "cpu", RunFolder.of(stamped), replaced)
    restore(*arguments, ("frames",), 0, "cpu", RunFolder.of(stamped), replaced)


def test_a_checkpoint_that_is_older_than_stamps_is_continued_with_a_line(
    tiny_settings: dict[str, Any], tree: Path, tmp_path: Path
) -> None:
    tiny_settings["DATA"]["ROOT"] = str(tree)
    config, data = open_experiment(parse_config(tiny_settings, "tiny"))
    write_settings(config, RunFolder.of(config))
    save(config, tmp_path / "runs/tiny", 6, dataset=data.mixture.description)
    assert prepare(config).data.notes == ("Frames were not compared, only annotations: no stamp of them was made then",)


@pytest.mark.parametrize("value", [3, {"LASOT": {"annotations": 1}}])
def test_a_stamp_that_is_none_is_named(value: Any, tiny_config: Config, tmp_path: Path) -> None:
    config, data = open_experiment(tiny_config)
    save(config, tmp_path / "other", 6, dataset=data.mixture.description, frames=value)
    with pytest.raises(CheckpointError, match=r"meta.json: frames (is no|has not the entries)"):
        prepare(config, str(tmp_path / "other"))
