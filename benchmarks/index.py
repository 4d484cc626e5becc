"""Measures time and memory for building the index of each training set from made-up annotations of its real size.

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

import numpy as np

from seqtrack.config import Config
from seqtrack.data.datasets.cache import VARIABLE
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.trackingnet import CHUNKS, SEQUENCES
from seqtrack.data.storage import open_root

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
    "GOT10K_train_full": write_got10k,
    "COCO17": write_coco,
    "TRACKINGNET": write_trackingnet,
}


def open_set(name: str, folder: str) -> FrameIndex:
    root = open_root(folder)
    if name == "LASOT":
        return build_index(Config().with_settings({"DATA.SPLIT": "all"}).DATA, root)
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
