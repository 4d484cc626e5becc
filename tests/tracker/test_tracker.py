from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracker import Tracker, TrackerSettings
from tests.data.pictures import smooth
from tests.model.formula import golden_model

TRACKS = json.loads((Path(__file__).parents[1] / "golden" / "tracker.json").read_text())
Golden = Callable[[str], Any]


def frames_of(track: dict[str, Any]) -> list[np.ndarray]:
    return [
        smooth(track["height"], track["width"], track["salt"] + track["frame_salt_step"] * number)
        for number in range(track["frames"])
    ]


def settings_of(track: dict[str, Any], **changes: Any) -> TrackerSettings:
    values = {
        "search_size": 64,
        "search_factor": 4.0,
        "template_size": 64,
        "template_factor": 4.0,
        "num_templates": 2,
        "window": track["window"],
        "update_interval": track["update_interval"],
        "update_threshold": track["update_threshold"],
        "bins": track["bins"],
        "seq_format": track["seq_format"],
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return TrackerSettings(**(values | changes))


def model_of(golden: Golden, track: dict[str, Any]) -> SeqTrack:
    suffix = "" if track["seq_format"] == "xywh" else f"_seq_{track['seq_format']}"
    return golden_model(golden(f"model_tiny{suffix}"))


@pytest.mark.parametrize("track", TRACKS, ids=lambda track: f"{track['seq_format']}-{track['window']}")
def test_boxes_are_those_of_the_published_tracker(golden: Golden, track: dict[str, Any]) -> None:
    """With template updates. `pytest -s` shows the largest deviation."""
    frames = frames_of(track)
    tracker = Tracker(model_of(golden, track), settings_of(track))
    tracker.initialize(frames[0], track["init"])
    boxes = [track["init"], *(tracker.track(frame).box_xywh for frame in frames[1:])]
    deviation = np.abs(np.array(boxes) - np.array(track["boxes"])).max()
    print(f"\nlargest deviation {deviation:.1e} px, {tracker.updates} updates", end="")
    assert deviation <= 1e-3
    assert tracker.updates == (track["frames"] - 1) // track["update_interval"]
