"""Writes made-up data sets in the layouts of GOT-10k, COCO and TrackingNet, drawn as those of `synthetic.py`.

They are small parts of such sets: a few sequences, of the first few numbers or chunks. Same settings, same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqtrack.config import SyntheticConfig
from seqtrack.data.datasets.synthetic import CLASSES, DrawnFrame, draw_frames, unfinished_folder
from seqtrack.data.datasets.trackingnet import CHUNKS

FORMAT = 1
"""Increase this when the files change. It is part of the folder's name, so old data are not mistaken for new."""
IMAGES_PER_SEQUENCE = 4
"""Images of the made-up COCO for each sequence that other sets have."""


def ensure_synthetic_set(kind: str, settings: SyntheticConfig) -> Path:
    """Folder of the data set of this kind (one of KINDS) with these settings. Writes it first if it does not exist."""
    key = hashlib.sha256(f"{FORMAT} {kind} {settings.model_dump_json(exclude={'PATH'})}".encode()).hexdigest()[:10]
    folder = Path(settings.PATH).absolute() / f"synthetic-{kind.lower()}-{key}"
    if not folder.exists():
        write_synthetic_set(kind, folder, settings)
    return folder


def write_synthetic_set(kind: str, folder: Path, settings: SyntheticConfig) -> None:
    """Writes the data set of this kind (one of KINDS) as `folder`, which appears only when complete. Raises OSError."""
    with unfinished_folder(folder) as unfinished:
        KINDS[kind](unfinished, settings)


def _write_got10k(folder: Path, settings: SyntheticConfig) -> None:
    names = [f"GOT-10k_Train_{number + 1:06d}" for number in range(settings.SEQUENCES)]
    for number, name in enumerate(names):
        sequence = folder / "train" / name
        sequence.mkdir(parents=True)
        lines: dict[str, list[str]] = {
            "groundtruth.txt": [],
            "absence.label": [],
            "cover.label": [],
            "cut_by_image.label": [],
        }
        for place, frame in enumerate(_frames("GOT10K", number, settings), start=1):
            (sequence / f"{place:08d}.jpg").write_bytes(frame.jpeg)
            x, y, w, h = frame.box or (0, 0, 0, 0)
            at_the_edge = x == 0 or y == 0 or x + w == settings.WIDTH or y + h == settings.HEIGHT
            lines["groundtruth.txt"].append(",".join(f"{value:.4f}" for value in (x, y, w, h)))
            lines["absence.label"].append(str(int(frame.box is None)))
            lines["cover.label"].append(str(round(8 * frame.seen)))
            lines["cut_by_image.label"].append(str(int(at_the_edge)))
        for file, content in lines.items():
            (sequence / file).write_text("\n".join(content) + "\n", "utf-8")
        (sequence / "meta_info.ini").write_text(
            f"[METAINFO]\nobject_class: {CLASSES[number % 2]}\nresolution: ({settings.WIDTH}, {settings.HEIGHT})\n",
            "utf-8",
        )
    (folder / "train/list.txt").write_text("\n".join(names) + "\n", "utf-8")


def _write_trackingnet(folder: Path, settings: SyntheticConfig) -> None:
    for number in range(settings.SEQUENCES):
        chunk, name = folder / CHUNKS[number % len(CHUNKS)], f"{CLASSES[number % 2]}{number:04d}_0"
        frames = chunk / "frames" / name
        frames.mkdir(parents=True)
        (chunk / "anno").mkdir(exist_ok=True)
        boxes = []
        for place, frame in enumerate(_frames("TRACKINGNET", number, settings)):
            (frames / f"{place}.jpg").write_bytes(frame.jpeg)
            boxes.append(",".join(f"{value:.2f}" for value in frame.box or (0, 0, 0, 0)))
        (chunk / f"anno/{name}.txt").write_text("\n".join(boxes) + "\n", "utf-8")


def _write_coco(folder: Path, settings: SyntheticConfig) -> None:
    """An object in each image, and what real annotations have too: a crowd, and an object without a size."""
    (folder / "annotations").mkdir()
    (folder / "images/train2017").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def annotate(image: int, kind: int, box: tuple[float, float, float, float], crowd: int = 0) -> None:
        x, y, w, h = box
        outline = {"counts": [0, 1], "size": [1, 1]} if crowd else [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(
            {
                "segmentation": outline,
                "area": w * h,
                "iscrowd": crowd,
                "image_id": image,
                "bbox": [x, y, w, h],
                "category_id": kind,
                "id": 1000 + len(annotations),
            }
        )

    for number in range(settings.SEQUENCES * IMAGES_PER_SEQUENCE):
        image, kind = 10 * number + 9, number % 2
        frame = next(frame for frame in _frames("COCO17", number, settings) if frame.seen > 0 and frame.box)
        name = f"{image:012d}.jpg"
        (folder / "images/train2017" / name).write_bytes(frame.jpeg)
        images.append({"file_name": name, "height": settings.HEIGHT, "width": settings.WIDTH, "id": image})
        assert frame.box is not None
        annotate(image, kind + 1, frame.box)
    annotate(images[0]["id"], 1, (3.5, 4.5, 20.25, 10.5), crowd=1)
    annotate(images[-1]["id"], 2, (8.0, 9.0, 0.0, 5.0))
    content = {
        "info": {"description": "made up"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": "thing", "id": kind + 1, "name": name} for kind, name in enumerate(CLASSES)],
    }
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content), "utf-8")


KINDS: dict[str, Callable[[Path, SyntheticConfig], None]] = {
    "GOT10K": _write_got10k,
    "COCO17": _write_coco,
    "TRACKINGNET": _write_trackingnet,
}
"""Layout -> what fills a folder in it. All sets of GOT-10k share one layout."""


def _frames(kind: str, number: int, settings: SyntheticConfig) -> Iterator[DrawnFrame]:
    """The frames of a sequence. The third part of the seed makes them others than those of LaSOT and of other kinds."""
    rng = np.random.default_rng([settings.SEED, number, 1 + list(KINDS).index(kind)])
    return draw_frames(CLASSES[number % 2], rng, settings)
