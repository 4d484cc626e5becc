from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from seqtrack.config import Config, parse_config
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.mixture import Mixture
from seqtrack.data.storage import DataError, open_root
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import child
from tests.object_stores import s3_bucket


def source_of(config: Config) -> TripletSource:
    root = open_root(str(config.DATA.ROOT))
    return TripletSource.from_config(config, Mixture.of_lasot(build_index(config.DATA, root), root))


@pytest.fixture
def broken_root(lasot_root: Path, tmp_path: Path) -> Path:
    """A tree in which one frame in three is missing or cut off."""
    root = shutil.copytree(lasot_root, tmp_path / "broken")
    for path in sorted(root.rglob("*.jpg"))[::3]:
        path.unlink() if path.name.endswith("1.jpg") else path.write_bytes(path.read_bytes()[:50])
    return root


def test_a_sample_has_crops_of_the_asked_sizes_and_a_box(tiny_config: Config) -> None:
    sample, problems = source_of(tiny_config).sample(0)
    assert sample.template.shape == (2, 32, 32, 3)
    assert sample.search.shape == (32, 32, 3)
    assert sample.search.dtype == np.uint8
    assert sample.box_xywh.dtype == np.float32
    assert sample.brightness.shape == (3,)
    assert problems == []


def test_any_process_makes_the_same_sample(tiny_config: Config) -> None:
    first, second = source_of(tiny_config), source_of(tiny_config)
    for number in (7, 0, 123_456_789):
        for a, b in zip(first.sample(number)[0], second.sample(number)[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_template_shows_the_target_in_the_middle(tiny_config: Config) -> None:
    """Coins and kites are colourful and their backgrounds are not."""
    config = tiny_config.with_settings({"DATA.TEMPLATE.FACTOR": 2.0})
    for number in range(20):
        template = source_of(config).sample(number)[0].template.astype(int)
        colourfulness = np.ptp(template, axis=-1).mean(0)
        if colourfulness.max() > 60:  # not a grayscale sample
            assert colourfulness[12:20, 12:20].mean() > colourfulness[:4].mean()


def test_a_broken_frame_is_named_and_the_sample_drawn_again_the_same_way(
    tiny_settings: dict[str, Any], broken_root: Path
) -> None:
    tiny_settings["DATA"]["ROOT"] = str(broken_root)
    source = source_of(parse_config(tiny_settings, "tiny"))
    made = [source.sample(number) for number in range(30)]
    problems = [problem for _, found in made for problem in found]
    assert any(problem.endswith(".jpg is missing") for problem in problems)
    assert any(problem.endswith("cannot be read (the JPEG is cut off)") for problem in problems)
    for number, (sample, found) in enumerate(made):
        again, found_again = source.sample(number)
        np.testing.assert_array_equal(sample.search, again.search)
        assert found == found_again


def test_a_broken_frame_changes_no_other_sample(
    tiny_config: Config, tiny_settings: dict[str, Any], broken_root: Path
) -> None:
    tiny_settings["DATA"]["ROOT"] = str(broken_root)
    whole, broken = source_of(tiny_config), source_of(parse_config(tiny_settings, "tiny"))
    untouched = 0
    for number in range(30):
        sample, problems = broken.sample(number)
        if not problems:
            np.testing.assert_array_equal(sample.search, whole.sample(number)[0].search)
            untouched += 1
    assert untouched > 5


def test_a_tree_without_any_frame_ends_with_an_error(tiny_settings: dict[str, Any], broken_root: Path) -> None:
    for path in broken_root.rglob("*.jpg"):
        path.unlink()
    tiny_settings["DATA"]["ROOT"] = str(broken_root)
    with pytest.raises(DataError, match=r"sample 5: no valid draw in 100 attempts; broken frames: .*is missing"):
        source_of(parse_config(tiny_settings, "tiny")).sample(5)


def test_a_box_too_large_to_be_cut_out_is_named_with_its_frame_and_the_sample_drawn_again(
    tiny_settings: dict[str, Any], lasot_root: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(lasot_root, tmp_path / "tree")
    for file in root.glob("coin/*/groundtruth.txt"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(["1,1,16000,15000", *lines[1:]]))
    tiny_settings["DATA"]["ROOT"] = str(root)
    source = source_of(parse_config(tiny_settings, "tiny"))
    problems = [problem for number in range(40) for problem in source.sample(number)[1]]
    assert problems
    for problem in problems:
        assert re.fullmatch(
            r"coin/coin-\d/img/00000001.jpg: a box of 16,000 × 15,000 pixels asks for a crop of [\d,]+ pixels a side",
            problem,
        )


def test_a_tree_without_a_usable_sequence_is_refused(tiny_config: Config) -> None:
    root = open_root(str(tiny_config.DATA.ROOT))
    index = build_index(tiny_config.DATA, root)
    hidden = index.table.set_column(3, "visible", [[[0] * 30] * 4])
    with pytest.raises(DataError, match="none of the 4 sequences has 20 frames and enough of them visible"):
        TripletSource.from_config(tiny_config, Mixture.of_lasot(type(index)(hidden.cast(index.table.schema)), root))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials for the tests' own S3 server, which accepts any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def upload(folder: Path, uri: str) -> str:
    location = child(uri, "lasot")
    filesystem, path = fs.FileSystem.from_uri(location)
    fs.copy_files(str(folder), path, fs.LocalFileSystem(), filesystem)
    return location


def test_a_store_that_fails_and_stalls_gives_the_samples_that_a_disk_gives(
    keys: None, tiny_settings: dict[str, Any], broken_root: Path
) -> None:
    """Samples of missing or cut-off frames are drawn again in the same way. The store's own faults change nothing."""
    tiny_settings["DATA"]["ROOT"] = str(broken_root)
    disk = source_of(parse_config(tiny_settings, "tiny")).samples(range(100))
    with s3_bucket(faulty=True) as uri:
        tiny_settings["DATA"]["ROOT"] = upload(broken_root, uri)
        store = source_of(parse_config(tiny_settings, "tiny")).samples(range(100))
    for (ours, our_problems), (theirs, their_problems) in zip(store, disk, strict=True):
        assert our_problems == their_problems
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_frame_that_a_store_does_not_give_ends_the_run_and_is_not_replaced_by_another(
    keys: None, tiny_settings: dict[str, Any], lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_bucket() as uri:
        tiny_settings["DATA"]["ROOT"] = upload(lasot_root, uri)
        source = source_of(parse_config(tiny_settings, "tiny"))
    monkeypatch.setattr("seqtrack.data.storage.PATIENCE", 0.0)
    with pytest.raises(DataError, match=r"bucket-\S+/lasot/(coin|kite)/\S+/img/\d{8}.jpg: cannot be read"):
        source.samples([0])  # the server is gone
