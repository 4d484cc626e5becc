#!/usr/bin/env bash
# Annotation tools write COCO's `iscrowd` as 0, false, "0", 0.0, or not at all. What do readers of the field make of
# it?
#
# Guessed: pycocotools needs no `iscrowd` for boxes and takes every falsy or zero value for "no crowd"; datumaro
# reads all.
# Seen (pycocotools 2.0.11, datumaro 1.13.12):
# - COCOeval ends with KeyError 'iscrowd' where it is missing. The text "0" counts as a crowd: the box is ignored,
#   and AP is -1, although the prediction of this one box is perfect. false and 0.0 are no crowd.
# - datumaro reads 0 and false; 0.0 and a missing field end its import.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pycocotools==2.0.11 datumaro==1.13.12
venv/bin/python - <<'PYTHON'
import contextlib, io, json, os

from datumaro.components.dataset import Dataset
from datumaro.components.errors import DatasetImportError
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

os.makedirs("set/annotations")
os.makedirs("set/images/train")
Image.new("RGB", (100, 80)).save("set/images/train/a.jpg")
FILE = "set/annotations/instances_train.json"

def write(extra):
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "segmentation": []}
    content = {
        "info": {}, "licenses": [],
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "kite", "supercategory": ""}],
        "annotations": [box | extra],
    }
    with open(FILE, "w") as file:
        json.dump(content, file)

def average_precision():
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(FILE)
        perfect = truth.loadRes([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 1.0}])
        measure = COCOeval(truth, perfect, "bbox")
        try:
            measure.evaluate()
        except KeyError as error:
            return f"KeyError {error}"
        measure.accumulate()
        measure.summarize()
    return round(float(measure.stats[0]), 6)

def datumaro():
    try:
        return len(next(iter(Dataset.import_from("set", "coco"))).annotations)
    except DatasetImportError:
        return "DatasetImportError"

seen = {}
for extra in ({"iscrowd": 0}, {"iscrowd": False}, {"iscrowd": 0.0}, {"iscrowd": "0"}, {}):
    write(extra)
    seen[json.dumps(extra)] = average_precision(), datumaro() if extra != {"iscrowd": "0"} else None
    print(json.dumps(extra), "-> AP, boxes that datumaro reads:", seen[json.dumps(extra)])
assert seen['{"iscrowd": 0}'] == seen['{"iscrowd": false}'] == (1.0, 1)
assert seen['{"iscrowd": 0.0}'] == (1.0, "DatasetImportError")
assert seen['{"iscrowd": "0"}'][0] == -1.0
assert seen["{}"] == ("KeyError 'iscrowd'", "DatasetImportError")
PYTHON
