"""The coin and kite experiment at its full size: real annotations, frames made up at the size that they need."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.training.runs import REPOSITORY, job

CONFIG = REPOSITORY / "configs/seqtrack_b256_lasot_coin_kite.yaml"
TINY = [
    "MODEL.ENCODER.TYPE=vit_demo_patch16",
    "MODEL.ENCODER.PRETRAIN_TYPE=scratch",
    "MODEL.ENCODER.USE_CHECKPOINT=false",
    "MODEL.HIDDEN_DIM=32",
    "MODEL.DECODER.NHEADS=2",
    "MODEL.DECODER.DIM_FEEDFORWARD=32",
    "MODEL.DECODER.DEC_LAYERS=1",
    "DATA.SEARCH.SIZE=64",
    "DATA.TEMPLATE.SIZE=64",
]


@pytest.mark.soak
def test_an_epoch_of_the_coin_and_kite_experiment(cluster: None, shared_data: Path, tmp_path: Path) -> None:
    root = make_frames(shared_data / "lasot_annotations", tmp_path / "lasot")
    where = [f"DATA.ROOT={root}", f"RUN.STORAGE_PATH={tmp_path}/runs", "RUN.NAME=coin-kite", "TRAIN.EPOCH=1"]
    assert job.main(["--config", str(CONFIG), *TINY, *where]) == 0
    log = (tmp_path / "runs/coin-kite/train.log").read_text()
    print(log)
    assert "32 sequences, 81,120 frames, 27,040 samples and 2,254 steps an epoch, 1 epochs, seed 9" in log
    lines = re.findall(r"^Epoch 1 : (\d+) / 27040 samples , time .*Loss/total: [\d.]+, IoU: [\d.]+,", log, re.MULTILINE)
    assert [int(samples) for samples in lines] == [*range(108, 27_040, 108), 27_040]
    (checkpoint,) = (tmp_path / "runs/coin-kite").glob("checkpoint_epoch*")
    assert checkpoint.name == "checkpoint_epoch_0001"
    assert '"step": 2254' in (checkpoint / "meta.json").read_text()


def make_frames(annotations: Path, root: Path) -> Path:
    """A LaSOT tree of these annotations: all frames of a sequence are links to one made-up picture."""
    for sequence in sorted(annotations.glob("*/*-*")):
        folder = root / sequence.parent.name / sequence.name
        (folder / "img").mkdir(parents=True)
        for path in sequence.glob("*.txt"):
            (folder / path.name).write_bytes(path.read_bytes())
        boxes = np.loadtxt(sequence / "groundtruth.txt", delimiter=",")
        width, height = np.maximum((1280, 720), np.ceil((boxes[:, :2] + boxes[:, 2:]).max(axis=0))).astype(int)
        noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = root / f"{sequence.name}.jpg"
        cv2.imwrite(str(picture), cv2.resize(noise, (int(width), int(height))))
        for frame in range(1, len(boxes) + 1):
            (folder / f"img/{frame:08d}.jpg").hardlink_to(picture)
    return root
