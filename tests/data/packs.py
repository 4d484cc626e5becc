"""Packs small trees without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pyarrow import fs

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets import got10k
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_index
from seqtrack.data.packing import pack_shard, plan_shards, stored_once, write_index
from seqtrack.data.shards import PackedShard
from seqtrack.data.storage import Root, open_root
from seqtrack.data.triplets import TripletSource

ALL = DataConfig(SPLIT="all")
LAYOUTS = {"GOT10K_train_full": "GOT10K", "COCO17": "COCO17", "TRACKINGNET": "TRACKINGNET"}
"""Set -> the folder of `synthetic_sets` that has it."""
REDRAW = DataConfig(SPLIT="all", ON_MISMATCH="redraw")
FRAMES = 24
"""Frames of each sequence of `wide_root`."""
LOCAL = fs.LocalFileSystem()


def local(folder: Path) -> Root:
    return Root(LOCAL, str(folder))


def index_of(tree: Path, name: str = "LASOT") -> FrameIndex:
    root = open_root(str(tree))
    return build_index(ALL, root) if name == "LASOT" else open_training_set(name, root, "redraw", partial_set=True)


def pack(
    tree: Path, target: Root, allow_missing: bool = False, name: str = "LASOT", tiled: bool = False
) -> list[PackedShard]:
    root = open_root(str(tree))
    index = index_of(tree, name)
    stored = stored_once(index).index
    plan = plan_shards(stored, name)
    shards = [pack_shard(stored, root, target, path, rows, allow_missing, name, tiled) for path, rows in plan.items()]
    write_index(index, target, plan, shards, name, got10k.read_list(root) if name in got10k.SETS else ())
    return shards


def source_of(config: Config, root: Root) -> TripletSource:
    return TripletSource.from_config(config, Mixture.of_lasot(open_index(REDRAW, root), root))


def assert_same_samples(config: Config, one: Root, other: Root) -> None:
    samples = [source_of(config, root).samples(range(60)) for root in (one, other)]
    for (ours, our_problems), (theirs, their_problems) in zip(*samples, strict=True):
        assert our_problems == their_problems
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
