from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.config import DataConfig, SyntheticConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import ensure_synthetic, write_synthetic
from seqtrack.data.storage import open_root

SMALL = SyntheticConfig(SEQUENCES=2, FRAMES=24, HEIGHT=64, WIDTH=80)


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def read_image(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def test_the_same_settings_write_the_same_bytes(tmp_path: Path) -> None:
    for name, settings in (("a", SMALL), ("b", SMALL), ("c", SMALL.model_copy(update={"SEED": 1}))):
        write_synthetic(tmp_path / name, settings)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_the_tree_is_a_lasot_tree_of_the_size_asked_for(lasot_root: Path) -> None:
    index = build_index(DataConfig(SPLIT="all"), open_root(str(lasot_root)))
    assert index.names == ["coin-1", "coin-2", "kite-1", "kite-2"]
    assert index.lengths.tolist() == [30] * 4
    frames = sorted((lasot_root / "coin/coin-1/img").iterdir())
    assert [frame.name for frame in frames[:2]] == ["00000001.jpg", "00000002.jpg"]
    assert len(frames) == 30
    assert read_image(frames[0]).shape == (96, 128, 3)


def test_targets_are_hidden_and_leave_the_view_for_a_while(lasot_root: Path) -> None:
    for name in ("coin/coin-1", "kite/kite-1"):
        occluded = np.loadtxt(lasot_root / name / "full_occlusion.txt", delimiter=",")
        absent = np.loadtxt(lasot_root / name / "out_of_view.txt", delimiter=",")
        boxes = np.loadtxt(lasot_root / name / "groundtruth.txt", delimiter=",")
        assert 0 < occluded.sum() < 10
        assert 0 < absent.sum() < 10
        assert (boxes[absent == 1] == 0).all()
        assert (boxes[absent == 0][:, 2:] > 0).all()


def test_the_box_surrounds_the_target(lasot_root: Path) -> None:
    """A coin is the only yellow thing in its pictures, and fills its box."""
    boxes = np.loadtxt(lasot_root / "coin/coin-1/groundtruth.txt", delimiter=",").astype(int)
    for frame in (0, 3):
        image = read_image(lasot_root / f"coin/coin-1/img/{frame + 1:08d}.jpg").astype(int)
        gold = image[..., 2] - image[..., 0] > 60
        ys, xs = np.nonzero(gold)
        x, y, w, h = boxes[frame]
        assert abs(xs.min() + 1 - x) <= 2
        assert abs(ys.min() + 1 - y) <= 2
        assert abs(np.ptp(xs) + 1 - w) <= 3
        assert abs(np.ptp(ys) + 1 - h) <= 3


def test_a_data_set_is_written_once_and_anew_for_other_settings(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"PATH": str(tmp_path)})
    first = ensure_synthetic(settings)
    stamp = (first / "coin/coin-1/groundtruth.txt").stat().st_mtime_ns
    assert ensure_synthetic(settings) == first
    assert (first / "coin/coin-1/groundtruth.txt").stat().st_mtime_ns == stamp
    assert ensure_synthetic(settings.model_copy(update={"FRAMES": 21})) != first


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OSError, match="could not encode frame 1"):
        write_synthetic(tmp_path / "set", SMALL)
    assert list(tmp_path.iterdir()) == []
