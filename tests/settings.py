"""Settings of a model and an epoch that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_tiny_settings(lasot_root: Path, storage: Path) -> dict[str, Any]:
    """As YAML would give them: two epochs of 22 samples in 6 steps."""
    return {
        "SEED": 3,
        "DATA": {
            "ROOT": str(lasot_root),
            "SPLIT": "all",
            "TRAIN": {"DATASETS_NAME": ["LASOT"], "DATASETS_RATIO": [1], "SAMPLE_PER_EPOCH": 22},
            "SEARCH": {"SIZE": 32},
            "TEMPLATE": {"SIZE": 32, "NUMBER": 2},
        },
        "MODEL": {
            "BINS": 16,
            "HIDDEN_DIM": 32,
            "ENCODER": {"TYPE": "vit_demo_patch16", "PRETRAIN_TYPE": "scratch"},
            "DECODER": {"NHEADS": 2, "DIM_FEEDFORWARD": 32, "DEC_LAYERS": 1},
        },
        "TRAIN": {"BATCH_SIZE": 4, "EPOCH": 2, "LR": 0.001, "LR_DROP_EPOCH": 1, "PRINT_INTERVAL": 8},
        "RUN": {"NAME": "tiny", "STORAGE_PATH": str(storage)},
    }
