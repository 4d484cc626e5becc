"""Which set, sequence and frames each sample is from, where there are several sets."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import fs

from seqtrack.config import Config
from seqtrack.data.datasets.index import STILL, FrameIndex, make_index
from seqtrack.data.mixture import Mixture, TrainingSet
from seqtrack.data.open import open_data
from seqtrack.data.sampling import draw_sample, usable_sequences
from seqtrack.data.storage import DataError, Root
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import child
from tests.data.packs import local, pack
from tests.object_stores import s3_bucket
from tests.settings import SETS

NOWHERE = Root(fs.LocalFileSystem(), "/nowhere")
LIMITS = {2: 13.82, 4: 18.47, 6: 22.46}
"""Degrees of freedom -> the chi-square that one fair trial in a thousand exceeds."""


def index_of(visible: list[list[int]], still: bool = False) -> FrameIndex:
    flags = np.concatenate([np.array(row, np.uint8) for row in visible])
    offsets = np.cumsum([0] + [len(row) for row in visible], dtype=np.int64)
    names = [f"coin-{number}" for number in range(len(visible))]
    columns = {STILL: pa.repeat(True, len(visible))} if still else {}
    boxes = np.tile(np.array([[10, 10, 20, 20]], np.float32), (len(flags), 1))
    return make_index(["coin"] * len(visible), names, offsets, boxes, flags, **columns)


def source_of(config: Config, *sets: tuple[FrameIndex, float]) -> TripletSource:
    named = tuple(TrainingSet(f"SET{place}", index, NOWHERE) for place, (index, _) in enumerate(sets))
    return TripletSource.from_config(config, Mixture(named, tuple(ratio for _, ratio in sets)))


def chi_square(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


def test_sets_are_drawn_by_their_ratio_and_their_sequences_equally_often(tiny_config: Config) -> None:
    """Neither the number of a set's sequences nor their lengths count, and what is too short is never drawn."""
    lengths = (20, 500, 19, 30, 40, 1000)  # the third is too short
    videos = index_of([[1] * length for length in lengths])
    images, others = index_of([[1]] * 7, still=True), index_of([[1] * 25] * 3)
    source = source_of(tiny_config, (videos, 5), (images, 3), (others, 2))
    drawn = [source.draw(number, 0) for number in range(100_000)]
    of_sets = np.array([which for which, _ in drawn])
    rows = np.array([draws.sequence for _, draws in drawn])
    assert chi_square(np.bincount(of_sets), np.array([0.5, 0.3, 0.2])) < LIMITS[2]
    counts = np.bincount(rows[of_sets == 0], minlength=6)
    assert counts[2] == 0
    assert chi_square(np.delete(counts, 2), np.full(5, 1 / 5)) < LIMITS[4]
    assert chi_square(np.bincount(rows[of_sets == 1]), np.full(7, 1 / 7)) < LIMITS[6]
    assert chi_square(np.bincount(rows[of_sets == 2]), np.full(3, 1 / 3)) < LIMITS[2]


def test_sets_are_drawn_apart_from_what_is_drawn_in_them(tiny_config: Config) -> None:
    """So that a sample of one set alone is the one that was always drawn."""
    videos, images = index_of([[1] * 100] * 5), index_of([[1]] * 7, still=True)
    alone, mixed = source_of(tiny_config, (videos, 1)), source_of(tiny_config, (videos, 1), (images, 1))
    usable = usable_sequences(videos, tiny_config.DATA)
    for number in range(50):
        plain = draw_sample(videos, usable, tiny_config.SEED, number, 0, tiny_config.DATA)
        for which, draws in (alone.draw(number, 0), mixed.draw(number, 0)):
            if which == 0:
                assert (draws.sequence, draws.frames) == (plain.sequence, plain.frames)
                np.testing.assert_array_equal(draws.normal, plain.normal)


def test_one_set_is_not_drawn(tiny_config: Config) -> None:
    assert {source_of(tiny_config, (index_of([[1] * 30]), 3)).draw(number, 0)[0] for number in range(50)} == {0}


def test_draws_of_sets_do_not_change_between_versions() -> None:
    """Saved runs continue with the sets that they would have drawn."""
    mixture = Mixture(tuple(TrainingSet(f"{place}", index_of([[1]]), NOWHERE) for place in range(4)), (1, 1, 1, 1))
    assert [mixture.draw_set(9, number, 0) for number in range(12)] == [0, 3, 0, 3, 3, 0, 1, 2, 3, 2, 2, 3]
    assert [mixture.draw_set(9, 3, attempt) for attempt in range(6)] == [3, 0, 3, 0, 1, 3]


def test_an_unusable_draw_draws_the_set_anew(mixture_config: Config) -> None:
    """The images of one set are all gone, so its samples come from the others."""
    mixture = open_data(mixture_config).mixture
    source = TripletSource.from_config(mixture_config, mixture)
    gone = replace(mixture.sets[2], root=Root(fs.LocalFileSystem(), "/nowhere"))
    lacking = TripletSource.from_config(
        mixture_config, replace(mixture, sets=(*mixture.sets[:2], gone, mixture.sets[3]))
    )
    instead = set()
    for number in range(60):
        sample, problems = lacking.sample(number)
        first = source.draw(number, 0)[0]
        if first == 2:
            assert all(re.fullmatch(r"COCO17 images/train2017/\d+\.jpg is missing", problem) for problem in problems)
            instead.add(sample.set_number)
        else:
            assert sample.set_number == first
            np.testing.assert_array_equal(sample.search, source.sample(number)[0].search)
    assert instead == {0, 1, 3}


def test_a_sample_of_an_image_set_shows_one_image_that_is_jittered_differently(mixture_config: Config) -> None:
    """Without jitter, and apart from mirroring, the search crop would be the template."""
    plain = mixture_config.with_settings({"DATA.SEARCH.SCALE_JITTER": 0.0, "DATA.SEARCH.CENTER_JITTER": 0.0})
    same = different = 0
    for config in (plain, mixture_config):
        source = TripletSource.from_config(config, open_data(config).mixture)
        for number in range(40):
            which, draws = source.draw(number, 0)
            if which != 2:
                continue
            assert draws.frames == (0, 0, 0)
            sample, problems = source.sample(number)
            if sample.set_number != 2:
                continue  # an object without a size
            assert problems == []
            crops = [
                crop[:, ::-1] if flip else crop
                for crop, flip in zip((*sample.template, sample.search), draws.flips, strict=True)
            ]
            np.testing.assert_array_equal(crops[0], crops[1])
            same += config is plain and np.array_equal(crops[0], crops[2])
            different += config is mixture_config and not np.array_equal(crops[0], crops[2])
    assert same > 3 and different > 3


def test_all_images_may_be_drawn_and_only_long_and_visible_videos(tiny_config: Config) -> None:
    images = index_of([[1], [0], [1]], still=True)
    assert usable_sequences(images, tiny_config.DATA).tolist() == [0, 1, 2]
    videos = index_of([[1] * 19, [1] * 20, [1] * 6 + [0] * 20, [1] * 7 + [0] * 20])
    assert usable_sequences(videos, tiny_config.DATA).tolist() == [1, 3]


@pytest.mark.parametrize("box", [[8, 9, 0, 5], [8, 9, -4, 5], [8, 9, 1e39, 5]])
def test_an_object_without_a_size_is_drawn_again_and_is_no_broken_frame(
    mixture_config: Config, tmp_path: Path, box: list[float]
) -> None:
    tree = shutil.copytree(mixture_config.DATA.ROOTS["COCO17"], tmp_path / "tree")
    file = tree / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][-1]["bbox"] = box
    file.write_text(json.dumps(content))
    mixture_config = mixture_config.with_settings({"DATA.ROOTS.COCO17": str(tree)})
    mixture = open_data(mixture_config).mixture
    source = TripletSource.from_config(mixture_config, mixture)
    index = mixture.sets[2].index
    unseen = {row for row in range(len(index.names)) if not len(index.visible_frames(row))}
    assert unseen, "the made-up set has no such object, so nothing is tested"
    numbers = [number for number in range(3000) if source.draw(number, 0)[0] == 2]
    drawn = [number for number in numbers if source.draw(number, 0)[1].sequence in unseen]
    assert drawn
    for number in drawn:
        sample, problems = source.sample(number)
        assert problems == [] and np.isfinite(sample.box_xywh).all() and (sample.box_xywh[2:] > 0).all()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (index_of([[0]] * 3, still=True), "none of the 3 objects has a box with a size"),
        (index_of([[1] * 19] * 2), "none of the 2 sequences has 20 frames and enough of them visible"),
    ],
)
def test_a_set_that_nothing_can_be_drawn_from_is_refused(tiny_config: Config, index: FrameIndex, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source_of(tiny_config, (index_of([[1] * 30]), 1), (index, 1))


@pytest.mark.parametrize("stored", ["LASOT", "COCO17"])
def test_sets_from_an_object_store_give_the_samples_that_a_disk_gives(
    mixture_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """One set is in a store and the others on a disk. Its broken frames are drawn again in the same way."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    tree = shutil.copytree(mixture_config.DATA.ROOTS[stored], tmp_path / "tree")
    for path in sorted(tree.rglob("*.jpg"))[::3]:
        path.write_bytes(path.read_bytes()[:50])

    def made(root: str) -> list[Any]:
        config = mixture_config.with_settings({f"DATA.ROOTS.{stored}": root})
        return TripletSource.from_config(config, open_data(config).mixture).samples(range(60))

    disk = made(str(tree))
    with s3_bucket() as uri:
        location = child(uri, "set")
        filesystem, path = fs.FileSystem.from_uri(location)
        fs.copy_files(str(tree), path, fs.LocalFileSystem(), filesystem)
        store = made(location)
    assert any(problems for _, problems in disk)
    for (ours, our_problems), (theirs, their_problems) in zip(store, disk, strict=True):
        assert our_problems == their_problems
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_packed_sets_are_the_data_and_give_the_samples_of_their_trees(mixture_config: Config, tmp_path: Path) -> None:
    packed = mixture_config
    for name in mixture_config.DATA.TRAIN.DATASETS_NAME:
        _, place = mixture_config.DATA.place_of(name)
        pack(Path(str(place)), local(tmp_path / name), name=name)
        packed = packed.with_settings({f"DATA.ROOTS.{name}": str(tmp_path / name)})
    mixtures = [open_data(config).mixture for config in (mixture_config, packed)]
    assert mixtures[0].description == mixtures[1].description
    trees, shards = (
        TripletSource.from_config(config, mixture).samples(range(60))
        for config, mixture in zip((mixture_config, packed), mixtures, strict=True)
    )
    for (ours, _), (theirs, _) in zip(shards, trees, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_lasot_alone_is_described_as_ever(tiny_config: Config) -> None:
    data = open_data(tiny_config)
    index = data.mixture.sets[0].index
    assert data.mixture.description == index.description
    assert data.mixture.fingerprint == index.fingerprint
    assert (data.mixture.lines(), data.mixture.params()) == ([], {})


def test_a_mixture_is_described_by_its_sets_shares_and_what_is_partial(mixture_config: Config) -> None:
    mixture = open_data(mixture_config).mixture
    found = mixture.description["sets"]
    assert list(found) == list(SETS)
    assert [one["share"] for one in found.values()] == [3 / 8, 2 / 8, 2 / 8, 1 / 8]
    assert [one["partial"] for one in found.values()] == [False, True, False, True]
    assert mixture.description["sequences"] == sum(one["sequences"] for one in found.values())
    assert mixture.params()["found/COCO17/sequences"] == found["COCO17"]["sequences"]
    assert mixture.lines()[1].startswith("Set GOT10K_vottrain : ")
    assert mixture.lines()[1].endswith(", an incomplete copy (DATA.PARTIAL)")
    assert f"25.0% of the samples, from {mixture_config.DATA.ROOTS['COCO17']}" in mixture.lines()[2]


@pytest.mark.parametrize("change", ["ratio", "order", "partial", "a set less"])
def test_another_mixture_has_another_fingerprint(mixture_config: Config, change: str) -> None:
    mixture = open_data(mixture_config).mixture
    sets, ratios = mixture.sets, mixture.ratios
    other = {
        "ratio": Mixture(sets, (3, 2, 2, 2)),
        "order": Mixture((sets[0], sets[2], sets[1], sets[3]), ratios),
        "partial": Mixture((*sets[:3], replace(sets[3], partial=False)), ratios),
        "a set less": Mixture(sets[:3], ratios[:3]),
    }[change]
    assert other.fingerprint != mixture.fingerprint
    assert Mixture(sets, tuple(2 * ratio for ratio in ratios)).fingerprint == mixture.fingerprint


def test_where_a_set_is_does_not_count(mixture_config: Config, tmp_path: Path) -> None:
    shutil.copytree(mixture_config.DATA.ROOTS["TRACKINGNET"], tmp_path / "moved")
    moved = mixture_config.with_settings({"DATA.ROOTS.TRACKINGNET": str(tmp_path / "moved")})
    assert open_data(moved).mixture.description == open_data(mixture_config).mixture.description


@pytest.mark.parametrize(
    ("name", "setting"), [("GOT10K_vottrain", "DATA.ROOTS.GOT10K"), ("TRACKINGNET", "DATA.ROOTS.TRACKINGNET")]
)
def test_an_incomplete_copy_is_refused_unless_it_is_asked_for(mixture_config: Config, name: str, setting: str) -> None:
    rest = tuple(other for other in ("GOT10K_vottrain", "TRACKINGNET") if other != name)
    with pytest.raises(DataError) as error:
        open_data(mixture_config.with_settings({"DATA.PARTIAL": list(rest)}))
    assert str(error.value).endswith(f"(DATA.PARTIAL=[{','.join((*rest, name))}] trains on what is there)")
    assert any(
        mixture_config.DATA.ROOTS[setting.rpartition(".")[2]] in line for line in open_data(mixture_config).notes
    )


@pytest.mark.parametrize("key", ["LASOT", "GOT10K", "COCO17", "TRACKINGNET"])
def test_a_root_that_does_not_fit_is_named_with_its_setting(mixture_config: Config, tmp_path: Path, key: str) -> None:
    """Where the folder is too high, the one that would fit is named."""
    shutil.copytree(mixture_config.DATA.ROOTS[key], tmp_path / "outer" / "tree")
    for root, message in (
        ("outer", f"DATA.ROOTS.{key}={tmp_path}/outer/tree would fit"),
        ("missing", f"DATA.ROOTS.{key} {tmp_path}/missing: no such folder"),
    ):
        with pytest.raises(DataError) as error:
            open_data(mixture_config.with_settings({f"DATA.ROOTS.{key}": str(tmp_path / root)}))
        assert message in str(error.value) and "\n" not in str(error.value)


def test_classes_and_split_choose_among_lasot_only(mixture_config: Config) -> None:
    mixture = open_data(mixture_config).mixture
    kites = open_data(mixture_config.with_settings({"DATA.TRAIN.CLASSES": ["kite"]})).mixture
    assert kites.sets[0].index.names == ["kite-1", "kite-2"]
    assert [one.index.fingerprint for one in kites.sets[1:]] == [one.index.fingerprint for one in mixture.sets[1:]]


@pytest.mark.parametrize("interval", [3, 400])
def test_the_interval_between_frames_is_that_of_every_set_of_videos(mixture_config: Config, interval: int) -> None:
    config = mixture_config.with_settings({"DATA.MAX_SAMPLE_INTERVAL": interval})
    source = TripletSource.from_config(config, open_data(config).mixture)
    spans: dict[int, int] = {}
    for number in range(300):
        which, draws = source.draw(number, 0)
        spans[which] = max(spans.get(which, 0), max(draws.frames) - min(draws.frames))
    for which in (0, 1, 3):
        assert (spans[which] <= 5) == (interval == 3)
