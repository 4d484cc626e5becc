"""Measures how many samples a second are made from whole frames, by region and from tiles, alone and through Ray Data.

    python -m benchmarks.samples [--boxes ANNOTATIONS --video VIDEO …]

`--boxes` is a folder of LaSOT annotations (`coin/coin-1/groundtruth.txt` …). Every sequence shows frames of the videos,
as JPEGs of quality 50, whatever its own frames are. Without arguments, boxes and frames are made up.

The ways take turns in one process. Then each is streamed through Ray Data, as a training without a model would take it,
with one data task for each core of this machine; "of all cores" compares that with as many such processes as there are
cores. The first column of ratios compares with whole frames decoded by OpenCV, as published loaders do it. Only ratios
matter, because rates are those of a machine and what else it does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import ray
from pyarrow import fs

from seqtrack.config import Config, SyntheticConfig, load_config
from seqtrack.data.batches import StreamPlan, make_block
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.decoding import FrameDecoder
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_index
from seqtrack.data.packing import pack_shard, plan_shards, write_index
from seqtrack.data.storage import Root, open_root
from seqtrack.data.stream import Placement, StreamSource, stream_batches
from seqtrack.data.tiling import tile
from seqtrack.data.triplets import TripletSource

SIZES = (256, 384)
FRAMES_OF_VIDEO, FRAMES_OF_SEQUENCE, QUALITY = 12, 200, 50
ROUNDS, SECONDS = 5, 2.0
"""Turns of each way in one process, and how long each takes."""
STREAMED = 40.0
"""Seconds that a stream should take. It is timed after the first quarter, in which tasks are shorter."""
STORE_BYTES = 2**31


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=Path, help="a folder of LaSOT annotations; unset: made-up ones")
    parser.add_argument("--video", type=Path, nargs="+", default=[], help="videos whose frames are shown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tree, tiled = Path(folder) / "tree", Path(folder) / "tiled"
        if options.boxes:
            write_tree(tree, options.boxes, list(read_frames(options.video)))
        else:
            write_synthetic(tree, SyntheticConfig(SEQUENCES=4, FRAMES=60, HEIGHT=720, WIDTH=1280))
        pack_tiled(tree, tiled)
        cores = len(os.sched_getaffinity(0))
        print(f"{cores} cores; samples/s\n")
        print("| crops | from | one process | ratio | streamed | ratio | of all cores |\n|---|---|---|---|---|---|---|")
        for size in SIZES:
            measure(size, tree, tiled, cores)


def measure(size: int, tree: Path, tiled: Path, cores: int) -> None:
    """Prints the rows of the table for crops of this size."""
    ways = {
        "whole frames, OpenCV": replace(open_source(size, tree), decoder=FrameDecoder(by_region=False)),
        "regions": open_source(size, tree),
        "tiles": open_source(size, tiled),
    }
    plan = StreamPlan.from_config(settings(size, tree), 1)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for turn, (way, source) in itertools.product(range(ROUNDS + 1), ways.items()):
        rate = rate_alone(source, plan, 1000 * turn)
        if turn:  # after a first one that warms up
            rates[way].append(rate)
    alone = {way: statistics.median(values) for way, values in rates.items()}
    streamed = {way: rate_streamed(source, plan, cores, alone[way]) for way, source in ways.items()}
    first = next(iter(ways))
    for way in ways:
        print(
            f"| {size} | {way} | {alone[way]:.0f} | {alone[way] / alone[first]:.1f} | {streamed[way]:.0f} | "
            f"{streamed[way] / streamed[first]:.1f} | {streamed[way] / cores / alone[way]:.0%} |",
            flush=True,
        )


def settings(size: int, root: Path) -> Config:
    lasot = ["DATA.TRAIN.DATASETS_NAME=[LASOT]", "DATA.TRAIN.DATASETS_RATIO=[1]", "DATA.SPLIT=all"]
    return load_config(f"configs/seqtrack_b{size}.yaml", [*lasot, f"DATA.ROOT={root}", "TRAIN.BATCH_SIZE=8"])


def open_source(size: int, root: Path) -> TripletSource:
    config, opened = settings(size, root), open_root(str(root))
    return TripletSource.from_config(config, Mixture.of_lasot(open_index(config.DATA, opened), opened))


def rate_alone(source: TripletSource, plan: StreamPlan, first: int) -> float:
    """Samples a second of this process, which makes blocks from this one on."""
    began, made = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < SECONDS:
        step = (first + made) * plan.steps_per_block
        make_block(source, plan, range(step, step + plan.steps_per_block), 0)
        made += 1
    return made * plan.steps_per_block * plan.batch_size / seconds


def rate_streamed(source: TripletSource, plan: StreamPlan, cores: int, alone: float) -> float:
    """Samples a second that arrive from Ray Data, after the first quarter."""
    ray.init("local", num_cpus=cores, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    placement = Placement(1.0, float(cores), {}, cores, STORE_BYTES)
    steps = int(STREAMED * alone * cores / plan.batch_size)
    quarter = steps // 4 // plan.steps_per_block * plan.steps_per_block
    arrived: list[float] = []
    for batch in stream_batches(
        StreamSource.of(source, ray.put(source.mixture), placement), plan, 0, 0, steps, most_steps=steps
    ):
        if batch.step in (quarter, steps - 1):
            arrived.append(time.perf_counter())
    ray.shutdown()
    return (steps - quarter) * plan.batch_size / (arrived[1] - arrived[0])


def read_frames(videos: list[Path]) -> Iterator[bytes]:
    """JPEGs of FRAMES_OF_VIDEO frames of each video."""
    for path in videos:
        video = cv2.VideoCapture(str(path))
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        for number in range(FRAMES_OF_VIDEO):
            video.set(cv2.CAP_PROP_POS_FRAMES, number * count // FRAMES_OF_VIDEO)
            found, frame = video.read()
            if found:
                yield cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_tree(tree: Path, boxes: Path, frames: list[bytes]) -> None:
    """A LaSOT tree with the first FRAMES_OF_SEQUENCE annotations of each sequence, and these frames in turn."""
    stock = []
    for number, content in enumerate(frames):
        stock.append(tree.parent / f"{number}.jpg")
        stock[-1].write_bytes(content)
    turn = itertools.cycle(stock)
    for annotation in sorted(boxes.rglob("groundtruth.txt")):
        source, folder = annotation.parent, tree / annotation.parent.relative_to(boxes)
        (folder / "img").mkdir(parents=True)
        lines = annotation.read_text().splitlines()[:FRAMES_OF_SEQUENCE]
        (folder / annotation.name).write_text("\n".join(lines))
        for name in ("full_occlusion.txt", "out_of_view.txt"):
            flags = (source / name).read_text().replace("\n", ",").split(",")
            (folder / name).write_text(",".join(flags[: len(lines)]))
        for number in range(len(lines)):
            os.link(next(turn), folder / "img" / f"{number + 1:08d}.jpg")


def pack_tiled(tree: Path, target: Path) -> None:
    """Packs a tree with tiles. Files that are the same one are tiled once."""
    done: dict[int, bytes] = {}
    copy = target.parent / "copy"
    for path in sorted(tree.rglob("*")):
        place = copy / path.relative_to(tree)
        if path.is_dir():
            place.mkdir(parents=True)
        elif path.suffix == ".jpg":
            inode = path.stat().st_ino
            if inode not in done:
                done[inode] = tile(path.read_bytes()).content
            place.write_bytes(done[inode])
        else:
            place.write_bytes(path.read_bytes())
    root, packed = open_root(str(copy)), Root(fs.LocalFileSystem(), str(target))
    index = build_index(settings(SIZES[0], copy).DATA, root)
    plan = plan_shards(index)
    shards = [pack_shard(index, root, packed, path, rows, tiled=True) for path, rows in plan.items()]
    write_index(index, packed, plan, shards)


if __name__ == "__main__":
    main()
