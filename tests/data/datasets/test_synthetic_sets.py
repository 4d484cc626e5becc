from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.config import SyntheticConfig
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.synthetic_sets import KINDS, ensure_synthetic_set, write_synthetic_set
from seqtrack.data.storage import open_root

SMALL = SyntheticConfig(SEQUENCES=2, FRAMES=24, HEIGHT=64, WIDTH=80)
NAMES = {"GOT10K": "GOT10K_train_full", "COCO17": "COCO17", "TRACKINGNET": "TRACKINGNET"}


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [str(path.relative_to(folder)).encode() + path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_write_the_same_bytes(kind: str, tmp_path: Path) -> None:
    for name, settings in (("a", SMALL), ("b", SMALL), ("c", SMALL.model_copy(update={"SEED": 1}))):
        write_synthetic_set(kind, tmp_path / name, settings)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_seen_in_most_frames_and_their_boxes_surround_them(kind: str, synthetic_sets: Path) -> None:
    """A coin is the only yellow thing in its pictures, and fills its box."""
    root = synthetic_sets / kind
    index = open_training_set(NAMES[kind], open_root(str(root)), partial_set=True)
    assert (index.visible_counts > 0.6 * index.lengths).mean() > 0.9
    image = cv2.imread(str(root / index.frame_path(0, 0)))
    assert image is not None
    gold = image[..., 2].astype(int) - image[..., 0] > 60
    ys, xs = np.nonzero(gold)
    x, y, w, h = index.boxes_xywh(0)[0]
    assert abs(xs.min() - x) <= 2 and abs(ys.min() - y) <= 2
    assert abs(np.ptp(xs) + 1 - w) <= 3 and abs(np.ptp(ys) + 1 - h) <= 3


def test_kinds_have_other_pictures_than_each_other(synthetic_sets: Path) -> None:
    pictures = {kind: {path.read_bytes() for path in (synthetic_sets / kind).rglob("*.jpg")} for kind in KINDS}
    assert not pictures["GOT10K"] & pictures["TRACKINGNET"] and not pictures["GOT10K"] & pictures["COCO17"]


def test_got10ks_labels_say_when_a_target_is_hidden_or_away(synthetic_sets: Path) -> None:
    for folder in (synthetic_sets / "GOT10K/train").glob("GOT*"):
        absent, cover = (np.loadtxt(folder / f"{name}.label") for name in ("absence", "cover"))
        assert 0 < absent.sum() < 8 and (cover[absent == 1] == 0).all()
        assert cover.max() == 8 and len(np.unique(cover)) > 1


def test_coco_has_a_crowd_and_an_object_without_size(synthetic_sets: Path) -> None:
    content = json.loads((synthetic_sets / "COCO17/annotations/instances_train2017.json").read_text())
    assert sum(entry["iscrowd"] for entry in content["annotations"]) == 1
    assert sum(0 in entry["bbox"][2:] for entry in content["annotations"]) == 1


def test_a_data_set_is_written_once_and_anew_for_other_settings(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"PATH": str(tmp_path)})
    first = ensure_synthetic_set("COCO17", settings)
    stamp = (first / "annotations").stat().st_mtime_ns
    assert ensure_synthetic_set("COCO17", settings) == first
    assert (first / "annotations").stat().st_mtime_ns == stamp
    assert len({first, ensure_synthetic_set("GOT10K", settings)}) == 2
    assert ensure_synthetic_set("COCO17", settings.model_copy(update={"FRAMES": 21})) != first
