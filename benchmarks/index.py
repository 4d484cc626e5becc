"""Measures time and memory for building the index of each training set from made-up annotations of its real size.

LASOT_TILED is LaSOT packed with tiles: 45 rows of tiles in each frame, as 1280×720 pixels have.

python benchmarks/index.py                       # all of them: about 1.5 GB in the temporary folder, 150,000 files
python benchmarks/index.py --sets COCO17 --scale 0.01

Memory is the largest that the process had, and what of it was there before; every set has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from pyarrow import fs

from seqtrack.config import Config
from seqtrack.data.datasets.cache import VARIABLE
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.index import FrameIndex, make_index
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.trackingnet import CHUNKS, SEQUENCES
from seqtrack.data.heads import read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.open import open_index
from seqtrack.data.packing import plan_shards, write_index
from seqtrack.data.shards import PackedShard, Tiles
from seqtrack.data.storage import Root, open_root

VIDEOS, FRAMES = 9335, 150  # of GOT-10k
IMAGES, OBJECTS, CORNERS = 118_287, 860_001, 23  # of COCO; so many corners make 450 MB
BOXES = 465  # of a sequence of TrackingNet


def boxes_text(rng: np.random.Generator, frames: int, digits: int) -> str:
    boxes = rng.uniform(1, 500, (frames, 4)).round(digits)
    return "\n".join(",".join(f"{value:.{digits}f}" for value in box) for box in boxes.tolist()) + "\n"


def write_lasot(root: Path, scale: float) -> None:
    """1,400 sequences of 2,500 frames."""
    frames = 2500
    text, flags = boxes_text(np.random.default_rng(0), frames, 0), ",".join("0" * frames)
    for number in range(round(1400 * scale)):
        name = f"class{number // 20}"
        sequence = root / name / f"{name}-{number % 20 + 1}"
        sequence.mkdir(parents=True)
        (sequence / "groundtruth.txt").write_text(text)
        (sequence / "full_occlusion.txt").write_text(flags)
        (sequence / "out_of_view.txt").write_text(flags)


def write_tiled_lasot(root: Path, scale: float) -> None:
    """The index of a packed tree, and shards of the right size without content."""
    frames, rows = 2500, 45
    names = [f"class{number // 20}-{number % 20 + 1}" for number in range(round(1400 * scale))]
    rng = np.random.default_rng(0)
    boxes = rng.uniform(1, 500, (frames * len(names), 4)).round().astype(np.float32)
    index = make_index(
        [name.partition("-")[0] for name in names],
        names,
        np.arange(len(names) + 1) * frames,
        boxes,
        np.ones(len(boxes), np.uint8),
    )
    jpeg = cv2.imencode(".jpg", np.zeros((720, 1280, 3), np.uint8), [cv2.IMWRITE_JPEG_RST_INTERVAL, 10])[1].tobytes()
    head = read_head(jpeg, read_header(jpeg)).content
    plan, shards = plan_shards(index), []
    for path, held in plan.items():
        count = frames * len(held)
        sizes = rng.integers(1000, 2500, (count, rows)).astype("<u2")
        of_frames = sizes.sum(1, dtype=np.int32) + len(head)
        heads = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([head], pa.binary()))
        of_rows = pa.array([one.tobytes() for one in sizes], pa.large_binary())
        shards.append(PackedShard(np.cumsum(of_frames) - of_frames, of_frames, [], Tiles(heads, of_rows)))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with (root / path).open("wb") as file:
            file.truncate(int(of_frames.sum()))
    write_index(index, Root(fs.LocalFileSystem(), str(root)), plan, shards)


def write_got10k(root: Path, scale: float) -> None:
    text, count = boxes_text(np.random.default_rng(0), FRAMES, 4), round(VIDEOS * scale)
    names = [f"GOT-10k_Train_{number + 1:06d}" for number in range(count)]
    for name in names:
        sequence = root / "train" / name
        sequence.mkdir(parents=True)
        (sequence / "groundtruth.txt").write_text(text)
        (sequence / "absence.label").write_text("0\n" * FRAMES)
        (sequence / "cover.label").write_text("8\n" * FRAMES)
        (sequence / "meta_info.ini").write_text("[METAINFO]\nobject_class: bear\n")
        for number in (1, FRAMES):
            (sequence / f"{number:08d}.jpg").touch()
    (root / "train/list.txt").write_text("\n".join(names) + "\n")


def write_coco(root: Path, scale: float) -> None:
    rng = np.random.default_rng(0)
    images, objects = round(IMAGES * scale), round(OBJECTS * scale)
    outlines = [[rng.uniform(0, 640, 2 * CORNERS).round(2).tolist()] for _ in range(1000)]
    folder = root / "images/train2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    with (root / "annotations/instances_train2017.json").open("w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number in range(images):
            name = f"{number:012d}.jpg"
            (folder / name).touch()
            url = f"http://images.cocodataset.org/train2017/{name}"
            image = {"license": 3, "file_name": name, "coco_url": url, "height": 480, "width": 640, "id": number}
            file.write((", " if number else "") + json.dumps(image))
        file.write('], "annotations": [')
        for number in range(objects):
            annotation = {
                "segmentation": outlines[number % 1000],
                "area": 702.1057499999998,
                "iscrowd": 0,
                "image_id": number % images,
                "bbox": [473.07, 395.93, 38.65, 28.67],
                "category_id": number % 80,
                "id": number,
            }
            file.write((", " if number else "") + json.dumps(annotation))
        categories = [{"supercategory": "thing", "id": number, "name": f"thing {number}"} for number in range(80)]
        file.write(f'], "categories": {json.dumps(categories)}}}')


def write_trackingnet(root: Path, scale: float) -> None:
    text = boxes_text(np.random.default_rng(0), BOXES, 2)
    for chunk in CHUNKS:
        (root / chunk / "anno").mkdir(parents=True)
        for number in range(round(SEQUENCES * scale)):
            (root / chunk / f"anno/{chunk}_{number}_0.txt").write_text(text)
            frames = root / chunk / f"frames/{chunk}_{number}_0"
            frames.mkdir(parents=True)
            for frame in (0, BOXES - 1):
                (frames / f"{frame}.jpg").touch()


SETS: dict[str, Callable[[Path, float], None]] = {
    "LASOT": write_lasot,
    "LASOT_TILED": write_tiled_lasot,
    "GOT10K_train_full": write_got10k,
    "COCO17": write_coco,
    "TRACKINGNET": write_trackingnet,
}


def open_set(name: str, folder: str) -> FrameIndex:
    root = open_root(folder)
    settings = Config().with_settings({"DATA.SPLIT": "all"}).DATA
    if name == "LASOT":
        return build_index(settings, root)
    if name == "LASOT_TILED":
        return open_index(settings, root)
    return open_training_set(name, root, partial_set=True)


def memory(kind: str) -> float:
    """MB that this process has (RSS) or had at most (HWM)."""
    found = re.search(rf"^Vm{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1e3


def measure(name: str, folder: str) -> None:
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forgets the maximum
    before, began = memory("RSS"), time.perf_counter()
    index = open_set(name, folder)
    built, most = time.perf_counter() - began, memory("HWM")
    sequences, frames, size = len(index.table), index.num_frames, index.table.nbytes / 1e6
    del index
    print(
        f"{name}: {sequences:,} sequences, {frames:,} frames, index {size:.0f} MB: {built:.1f} s, at most {most:.0f} MB"
        f" ({before:.0f} MB before)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the real size")
    options = parser.parse_args()
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[VARIABLE] = f"{folder}/cache"
            SETS[name](Path(folder, "set"), options.scale)
            for _ in range(2):  # the second start finds the index in the cache, but for LaSOT
                process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, f"{folder}/set"))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
