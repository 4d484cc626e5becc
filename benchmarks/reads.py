"""Measures how fast frames are read: packed and not, from a disk and an object store, one at a time and in parallel.

    python benchmarks/reads.py

The object store is a server on this machine that speaks S3. It delays each answer, like a real store. The frames are
small, because this server reads a whole object to answer with a part of it. The packages for tests must be installed.
Only the ratios matter.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pyarrow import fs

from seqtrack.config import DataConfig, SyntheticConfig
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.open import open_index
from seqtrack.data.packing import pack_shard, plan_shards, write_index
from seqtrack.data.storage import READS_AT_ONCE, Root, SpanReader, open_root, read_bytes
from seqtrack.locations import child
from tests.object_stores import s3_bucket

ROUNDS, FRAMES, FIRST_BYTE = 5, 64, 0.03
"""FIRST_BYTE: seconds that a store takes to answer."""


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    everything = DataConfig(SPLIT="all")
    with tempfile.TemporaryDirectory() as folder, s3_bucket(delay=FIRST_BYTE) as uri:
        tree = Path(folder) / "tree"
        write_synthetic(tree, SyntheticConfig(SEQUENCES=4, FRAMES=60, HEIGHT=180, WIDTH=320))
        local = open_root(str(tree))
        index = build_index(everything, local)
        packed = Root(fs.LocalFileSystem(), f"{folder}/packed")
        plan = plan_shards(index)
        shards = [pack_shard(index, local, packed, path, rows) for path, rows in plan.items()]
        write_index(index, packed, plan, shards)
        roots: dict[str, Root] = {}
        for name, root in (("tree", local), ("packed", packed)):
            store = Root(*fs.FileSystem.from_uri(child(uri, name)))
            fs.copy_files(root.path, store.path, root.filesystem, store.filesystem)
            roots |= {f"disk, {name}": root, f"store, {name}": store}
        readers = {name: reader_of(open_index(everything, root), root) for name, root in roots.items()}
        rates: dict[str, list[float]] = {}
        for turn in range(ROUNDS):
            places = np.random.default_rng(turn).choice(index.num_frames, FRAMES, replace=False).tolist()
            for name, read in readers.items():
                for threads in (1, READS_AT_ONCE):
                    with ThreadPoolExecutor(threads) as pool:
                        began = time.perf_counter()
                        list(pool.map(read, places))
                        rate = FRAMES / (time.perf_counter() - began)
                    rates.setdefault(f"{name}, {threads} at a time", []).append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = medians["store, tree, 1 at a time"]
    for name, rate in medians.items():
        print(f"{name:<30} {rate:8.0f} frames/s, {rate / first:6.1f} × the store's tree, 1 at a time")


def reader_of(index: FrameIndex, root: Root) -> Callable[[int], bytes]:
    """Returns a function that reads a frame by its number among all frames of the index."""
    spans = SpanReader(root)

    def read(place: int) -> bytes:
        row = int(np.searchsorted(index.offsets, place, side="right")) - 1
        frame = place - int(index.offsets[row])
        if not index.packed:
            return read_bytes(root, index.frame_path(row, frame))
        span = index.span(row, frame)
        assert span is not None
        return spans.read(span)

    return read


if __name__ == "__main__":
    main()
