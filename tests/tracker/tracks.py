"""Whole tracks that the published tracker made, and what it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracker import TrackerSettings
from tests.data.pictures import smooth
from tests.model.formula import golden_model

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_TRACKS = json.loads((GOLDEN / "tracker.json").read_text())


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


def model_of(track: dict[str, Any]) -> SeqTrack:
    suffix = "" if track["seq_format"] == "xywh" else f"_seq_{track['seq_format']}"
    return golden_model(json.loads((GOLDEN / f"model_tiny{suffix}.json").read_text()))
