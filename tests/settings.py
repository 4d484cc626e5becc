"""Settings of a model and an epoch that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SETS = {"LASOT": 3, "GOT10K_vottrain": 2, "COCO17": 2, "TRACKINGNET": 1}
"""The sets of the published recipes, with ratios that are not equal."""


def make_tiny_settings(lasot_root: Path, storage: Path) -> dict[str, Any]:
    """Settings as YAML would give them: two epochs of 22 samples in 6 steps."""
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


def make_mixture_settings(lasot_root: Path, synthetic_sets: Path, storage: Path) -> dict[str, Any]:
    """The same, on small trees of four layouts."""
    settings = make_tiny_settings(lasot_root, storage)
    del settings["DATA"]["ROOT"]
    settings["DATA"] |= {
        "ROOTS": {
            "LASOT": str(lasot_root),
            "GOT10K": str(synthetic_sets / "GOT10K"),
            "COCO17": str(synthetic_sets / "COCO17"),
            "TRACKINGNET": str(synthetic_sets / "TRACKINGNET"),
        },
        "PARTIAL": ["GOT10K_vottrain", "GOT10K_train_full", "TRACKINGNET"],
    }
    settings["DATA"]["TRAIN"] |= {"DATASETS_NAME": list(SETS), "DATASETS_RATIO": list(SETS.values())}
    return settings
