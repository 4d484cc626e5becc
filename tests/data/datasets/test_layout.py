"""A data root that is not quite the right folder: what is said, and which folder would fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seqtrack.config import DataConfig, DataTrainConfig
from seqtrack.data.open import open_index
from seqtrack.data.storage import DataError, open_root


@pytest.fixture
def tree(lasot_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return shutil.copytree(lasot_root, tmp_path / "sets" / "lasot")


def refusal(root: Path, settings: DataConfig | None = None) -> str:
    with pytest.raises(DataError) as error:
        open_index(settings or DataConfig(SPLIT="all"), open_root(str(root)))
    return str(error.value)


@pytest.mark.parametrize("given", ["coin", "coin/coin-1", "coin/coin-1/img", "..", "../.."])
def test_a_root_too_low_or_too_high_is_answered_with_the_one_that_fits(tree: Path, given: str) -> None:
    assert refusal((tree / given).resolve()).endswith(f"; DATA.ROOT={tree} would fit")


def test_the_root_that_fits_is_named_where_the_split_is_looked_for_too(tree: Path) -> None:
    assert refusal(tree.parent, DataConfig()).endswith(f"; DATA.ROOT={tree} would fit")
    coins = DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=("coin",)))
    assert refusal(tree.parent, coins).endswith(f"; DATA.ROOT={tree} would fit")


def test_folders_that_are_doubled_are_named(tree: Path) -> None:
    for name in ("coin", "kite"):
        (tree / name).rename(tree / "moved")
        (tree / name).mkdir()
        (tree / "moved").rename(tree / name / name)
    assert "; 2 folders hold another one of the same name, such as coin/coin; move what is" in refusal(tree)


def test_a_sequence_that_is_doubled_is_named(tree: Path) -> None:
    (tree / "coin/coin-1").rename(tree / "coin/moved")
    (tree / "coin/coin-1").mkdir()
    (tree / "coin/moved").rename(tree / "coin/coin-1/coin-1")
    assert "coin/coin-1 holds another folder coin-1: move what is in it up" in refusal(tree)


def test_archives_that_are_still_packed_are_named(tree: Path) -> None:
    for name in ("coin", "kite"):
        shutil.rmtree(tree / name)
        (tree / f"{name}.zip").write_bytes(b"PK")
    assert "; 2 archives are still to be unpacked there, such as coin.zip" in refusal(tree)
    (tree / "coin/coin-1").mkdir(parents=True)
    (tree / "coin/coin-1/coin-1.zip").write_bytes(b"PK")
    assert "; coin-1.zip is still to be unpacked there" in refusal(tree)


def test_an_empty_folder_of_a_sequence_is_named(tree: Path) -> None:
    (tree / "coin/coin-9").mkdir()
    assert "coin/coin-9/groundtruth.txt: cannot be read" in refusal(tree)
    assert refusal(tree).endswith("; the folder of the sequence is empty")


@pytest.mark.parametrize("link", ["bird", "coin/coin-9"])
def test_a_link_to_nothing_is_named(tree: Path, link: str) -> None:
    (tree / link).symlink_to("nowhere")
    assert refusal(tree) == f"{tree / link}: is a link to something that is not there"
