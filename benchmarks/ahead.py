"""Frames that are decoded ahead of a tracker: whole, or only a region around the target; from a slow object store.

    python -m benchmarks.ahead TREE

TREE has sequences of 1280 × 720 JPEGs in LaSOT's layout. The crop of a frame is cut around the box of the frame before.
When a frame is decoded AHEAD frames early, the box that is known is older, so the region around it is grown by a
margin, and a crop that reaches beyond it has to be decoded again, while the model waits. For true boxes, prints how
often that is, and what a frame costs on one core: whole with OpenCV, and the region with nvidia-nvimgcodec. Then tracks
a drawn tree with a tracker that takes no time, from a store that takes 30 ms to answer. Only the ratios matter.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from pyarrow import fs

from seqtrack.config import SyntheticConfig
from seqtrack.data.crops import crop_region
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.decoding import Frame, FrameDecoder
from seqtrack.data.storage import Root, read_bytes
from seqtrack.evaluation.benchmarks import BenchmarkData, folder_of_sequences, open_benchmark
from seqtrack.locations import child
from seqtrack.tracker.lanes import AHEAD, Lanes
from seqtrack.tracker.tracker import BatchTracker, Tracked
from tests.object_stores import s3_bucket

FACTOR, MARGINS = 4.0, (1.0, 1.25, 1.5, 1.75, 2.0)
"""TEST.SEARCH_FACTOR, and how many times the crop the region is."""
SAMPLES, SEED = 400, 0
FIRST_BYTE = 0.03
"""Seconds that the store takes to answer."""
Corners = tuple[int, int, int, int]


def corners(box_xywh: np.ndarray, factor: float, width: int, height: int) -> Corners | None:
    """Left, top, right, bottom of the part of the frame that a crop shows; None if it shows none of it."""
    left, top, side = crop_region(box_xywh, factor)
    part = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    return part if part[0] < part[2] and part[1] < part[3] else None


def measure_regions(data: BenchmarkData) -> None:
    whole, by_region = FrameDecoder(by_region=False), FrameDecoder()
    cv2.setNumThreads(1)
    generator = np.random.default_rng(SEED)
    outside = dict.fromkeys(MARGINS, 0)
    costs: dict[str, list[float]] = {}
    samples = 0
    while samples < SAMPLES:
        sequence = data.sequences[generator.integers(len(data.sequences))]
        number = int(generator.integers(len(sequence) - AHEAD - 1))
        known, needed = sequence.truth.boxes_xywh[[number, number + AHEAD]]
        if sequence.frames is None or sequence.truth.absent[[number, number + AHEAD]].any():
            continue
        place = sequence.frames[number + AHEAD + 1]
        assert isinstance(place, str)
        content = read_bytes(data.root, place)
        began = time.process_time()
        frame = whole.open(place, content)
        costs.setdefault("whole", []).append(time.process_time() - began)
        crop = corners(needed, FACTOR, frame.width, frame.height)
        regions = {margin: corners(known, FACTOR * margin, frame.width, frame.height) for margin in MARGINS}
        if crop is None or None in regions.values():
            continue
        samples += 1
        for margin, region in regions.items():
            assert region is not None
            low, high = np.less(crop[:2], region[:2]), np.greater(crop[2:], region[2:])
            outside[margin] += bool(low.any() or high.any())
            began = time.process_time()
            by_region.open(place, content).pixels(*region)
            costs.setdefault(f"margin {margin:g}", []).append(time.process_time() - began)
    for name, seconds in costs.items():
        print(f"{name:12} {1000 * float(np.mean(seconds)):.2f} ms a frame")
    for margin, count in outside.items():
        print(f"margin {margin:<5g} {count / samples:.1%} of the crops reach beyond the region")


class Instant(BatchTracker):
    """A tracker that takes no time."""

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def start(self, slot: int, frame: object, box_xywh: object) -> None: ...

    def stop(self, slot: int) -> None: ...

    def track(self, frames: Mapping[int, Frame | np.ndarray]) -> dict[int, Tracked]:
        return {slot: Tracked((0, 0, 10, 10), 1) for slot in frames}


def measure_store() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with tempfile.TemporaryDirectory() as folder, s3_bucket(delay=FIRST_BYTE) as uri:
        tree = Path(folder, "tree")
        write_synthetic(tree, SyntheticConfig(SEQUENCES=8, FRAMES=30, HEIGHT=180, WIDTH=320))
        store = Root(*fs.FileSystem.from_uri(child(uri, "tree")))
        fs.copy_files(str(tree), store.path, fs.LocalFileSystem(), store.filesystem)
        sequences = open_benchmark(folder_of_sequences("drawn"), str(tree)).sequences
        for slots in (1, 8):
            lanes, frames = Lanes(Instant(slots), store), sum(map(len, sequences[:slots]))
            began = time.perf_counter()
            for sequence in sequences[:slots]:
                lanes.begin(sequence)
            while lanes.free < slots:
                lanes.step()
            print(f"from the store, {slots} at a time: {frames / (time.perf_counter() - began):.0f} frames/s")
            lanes.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", metavar="TREE")
    measure_regions(open_benchmark(folder_of_sequences("tree"), parser.parse_args().tree))
    measure_store()


if __name__ == "__main__":
    main()
