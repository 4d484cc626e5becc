"""COCO's annotated objects as sequences of one frame: which are taken, and what is said about a file that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqtrack.data.datasets.coco import ANNOTATIONS, match_images, open_index
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.storage import DataError, open_root

Content = dict[str, list[dict[str, Any]]]


def annotation(number: int, image: int = 1, **changes: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": 18, "iscrowd": 0, "bbox": [1.5, 2, 60, 70]}
    return {"segmentation": [[1, 2, 3, 4]], "area": 5.0} | entry | changes


def content(*annotations: dict[str, Any]) -> Content:
    return {
        "info": [],
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (1, 2)],
        "annotations": list(annotations or (annotation(7), annotation(8, 2))),
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }


def write(root: Path, what: Content | str, images: str = "images/train2017") -> Path:
    (root / images).mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        (root / images / f"{number:012d}.jpg").touch()
    (root / "annotations").mkdir(exist_ok=True)
    (root / ANNOTATIONS).write_text(what if isinstance(what, str) else json.dumps(what))
    return root


def index_of(root: Path) -> FrameIndex:
    return open_index(open_root(str(root)))


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as error:
        open_index(open_root(str(root)), setting="DATA.ROOTS.COCO17")
    return str(error.value)


def test_every_object_is_a_sequence_of_one_frame(tmp_path: Path) -> None:
    index = index_of(write(tmp_path, content(annotation(7), annotation(5, 2, category_id=1))))
    assert index.names == ["7", "5"] and index.classes == ["dog", "person"]
    assert index.lengths.tolist() == [1, 1] and index.stills.tolist() == [True, True]
    assert index.boxes_xywh(0).tolist() == [[1.5, 2, 60, 70]]
    assert index.frame_path(1, 0) == "images/train2017/000000000002.jpg"


def test_images_may_be_at_the_root_and_the_fingerprint_is_the_same(tmp_path: Path) -> None:
    here = index_of(write(tmp_path / "a", content()))
    there = index_of(write(tmp_path / "b", content(), "train2017"))
    assert there.frame_path(0, 0) == "train2017/000000000001.jpg"
    assert there.fingerprint == here.fingerprint


def test_images_that_were_moved_are_found_by_the_next_start(tmp_path: Path) -> None:
    index_of(write(tmp_path, content()))
    (tmp_path / "images/train2017").rename(tmp_path / "train2017")
    assert index_of(tmp_path).frame_path(0, 0) == "train2017/000000000001.jpg"


def test_crowds_are_left_out(tmp_path: Path) -> None:
    crowd = annotation(8, iscrowd=1, segmentation={"counts": [1], "size": [1, 1]})
    assert index_of(write(tmp_path, content(annotation(7), crowd))).names == ["7"]


@pytest.mark.parametrize("box", [[1, 2, 0, 5], [1, 2, 5, 0], [1, 2, -1, 5], [float("nan"), 2, 5, 5], [1, 2, 1e300, 5]])
def test_an_object_without_size_is_kept_and_not_visible(tmp_path: Path, box: list[float]) -> None:
    index = index_of(write(tmp_path, content(annotation(7, bbox=box), annotation(8))))
    assert index.visible_counts.tolist() == [0, 1]


def test_a_small_object_is_visible(tmp_path: Path) -> None:
    """The published reader marks objects of at most 50 pixels a side, and the published sampler takes them anyway."""
    assert index_of(write(tmp_path, content(annotation(7, bbox=[1, 2, 3, 4])))).visible_counts.tolist() == [1]


def test_lists_may_come_in_any_order(tmp_path: Path) -> None:
    usual = index_of(write(tmp_path / "a", content()))
    reverse = index_of(write(tmp_path / "b", dict(reversed(content().items()))))
    assert reverse.fingerprint == usual.fingerprint and reverse.classes == usual.classes


def without(key: str) -> Callable[[Content], Any]:
    return lambda made: made["annotations"][1].pop(key)


def other(place: str, key: str, value: Any) -> Callable[[Content], Any]:
    return lambda made: made[place][1].update({key: value})


FAULTS: list[tuple[Callable[[Content], Any], str]] = [
    (without("bbox"), "annotations: an entry has no bbox"),
    (without("iscrowd"), "annotations: an entry has no iscrowd"),
    (without("image_id"), "annotations: an entry has no image_id"),
    (other("annotations", "bbox", [1, 2, 3]), "annotations: bbox is not a list of four numbers"),
    (other("annotations", "bbox", [1, 2, 3, "4"]), "annotations: bbox is not a list of four numbers"),
    (other("annotations", "bbox", [1, 2, 3, 10**400]), "annotations: bbox has a number that is too large"),
    (other("annotations", "id", 1.5), "annotations: id is not a whole number"),
    (other("annotations", "id", 7), "has 1 annotations with an id that another one has"),
    (other("annotations", "image_id", 5), "annotation 8 has the image_id 5, which is not listed"),
    (other("annotations", "category_id", 5), "annotation 8 has the category_id 5, which is not listed"),
    (other("images", "file_name", "../../secret"), "images: file_name '../../secret' is not the name of a file"),
    (other("images", "file_name", 5), "images: file_name is not a name"),
    (lambda made: made.pop("categories"), "has no categories; COCO's instances_train2017.json has"),
    (lambda made: made.update(annotations=[]), "has no annotations of single objects"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_an_entry_that_cannot_be_used_is_named(tmp_path: Path, change: Callable[[Content], Any], message: str) -> None:
    made = content()
    change(made)
    said = refusal(write(tmp_path, made))
    assert said.startswith(f"{tmp_path}/{ANNOTATIONS}: ") and message in said


def test_json_that_cannot_be_read_is_named_with_the_byte(tmp_path: Path) -> None:
    whole = json.dumps(content())
    at = whole.index('"category_id"')
    assert refusal(write(tmp_path, whole[:at] + "\n!" + whole[at:])).startswith(
        f"{tmp_path}/{ANNOTATIONS}: byte {at + 1}: "
    )
    assert refusal(write(tmp_path, whole[:-1])).startswith(
        f"{tmp_path}/{ANNOTATIONS}: byte {len(whole) - 1}: is cut off"
    )
    assert refusal(write(tmp_path, "")) == f"{tmp_path}/{ANNOTATIONS}: is empty"
    assert "is a web page" in refusal(write(tmp_path, "<html><body>Log in</body></html>"))


@pytest.mark.parametrize("given", ["annotations", "images/train2017", "..", "../.."])
def test_a_root_too_low_or_too_high_is_answered_with_the_one_that_fits(tmp_path: Path, given: str) -> None:
    tree = write(tmp_path / "sets/coco", content())
    said = refusal((tree / given).resolve())
    assert f"{ANNOTATIONS}: no such file" in said and said.endswith(f"; DATA.ROOTS.COCO17={tree} would fit")


def test_what_is_still_packed_is_named(tmp_path: Path) -> None:
    write(tmp_path, content())
    (tmp_path / "images/train2017").rename(tmp_path / "elsewhere")
    (tmp_path / "images/train2017.zip").touch()
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path}: no folder images/train2017 or train2017 with the images")
    assert "; images: train2017.zip is still to be unpacked there" in said
    (tmp_path / ANNOTATIONS).unlink()
    (tmp_path / "annotations_trainval2017.zip").touch()
    assert "; annotations_trainval2017.zip is still to be unpacked there" in refusal(tmp_path)


def test_images_in_a_folder_too_many_are_named(tmp_path: Path) -> None:
    root = open_root(str(write(tmp_path, content())))
    index, folder = open_index(root), tmp_path / "images/train2017"
    folder.rename(tmp_path / "images/moved")
    folder.mkdir()
    with pytest.raises(DataError, match=r"2 of 2 images are missing, .*; the folder is empty"):
        match_images(index, root, "error", print)
    (tmp_path / "images/moved").rename(folder / "train2017")
    with pytest.raises(DataError, match="; images/train2017 holds another folder train2017: move what is in it up"):
        match_images(index, root, "error", print)


def test_missing_images_are_named_left_out_or_drawn_again(tmp_path: Path) -> None:
    root = open_root(str(write(tmp_path, content(annotation(7), annotation(8, 2), annotation(9, 2)))))
    index = open_index(root)
    assert match_images(index, root, "error", print) is index
    (tmp_path / "images/train2017/000000000002.jpg").unlink()
    with pytest.raises(DataError) as error:
        match_images(index, root, "error", print)
    what = f"{tmp_path}/images/train2017: 1 of 2 images are missing, the first: 000000000002.jpg"
    assert str(error.value).startswith(f"{what} (DATA.ON_MISMATCH=drop leaves their objects out")
    for on_mismatch, names in (("drop", ["7"]), ("redraw", ["7", "8", "9"])):
        notes: list[str] = []
        assert match_images(index, root, on_mismatch, notes.append).names == names  # type: ignore[arg-type]
        assert notes[0].startswith(what)
    (tmp_path / "images/train2017/000000000001.jpg").unlink()
    with pytest.raises(DataError, match="2 of 2 images are missing"):
        match_images(index, root, "drop", print)
