"""The program that packs a data set with Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqtrack.config import Config, DataConfig
from seqtrack.data.datasets.index import MISSING
from seqtrack.data.open import open_index, open_set
from seqtrack.data.shards import PackedShard, Tiles
from seqtrack.experiments.pack import describe_untiled
from tests.data.packs import LAYOUTS, assert_same_samples, index_of, local
from tests.training.runs import load_job

job, any_set = load_job("pack_lasot"), load_job("pack")

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.mark.usefixtures("cluster")
def test_the_program_packs_a_tree_once(
    lasot_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_config: Config
) -> None:
    command = [f"DATA.ROOT={lasot_root}", "DATA.SPLIT=all", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 0
    shown = capfd.readouterr()
    assert "4 sequences, 120 frames, 4 files" in shown.out
    assert f"Ready: DATA.ROOT={tmp_path / 'packed'}" in shown.out
    assert "120/120" in shown.err
    assert_same_samples(tiny_config, local(tmp_path / "packed"), local(lasot_root))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert job.main(command) == 0
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert job.main([f"DATA.ROOT={tmp_path / 'packed'}", "DATA.SPLIT=all", "--to", str(tmp_path / "again")]) == 2
    assert "is packed already" in capfd.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_a_packed_tree_whose_frames_were_replaced_is_not_done(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither once it is whole, nor where a start of the program was interrupted."""
    command = [f"DATA.ROOT={tree}", "DATA.SPLIT=all", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 0
    for path in sorted((tree / "coin/coin-1/img").iterdir())[1:]:
        shutil.copy(tree / "coin/coin-1/img/00000001.jpg", path)
    capfd.readouterr()
    assert job.main(command) == 2
    said = f"error: {tmp_path}/packed: holds other frames than {tree} has now: LASOT: 29 of 120 drawn frames are not "
    assert said in capfd.readouterr().err
    (tmp_path / "packed/index.parquet").unlink()
    (tmp_path / "packed/frames/kite-000.parquet").unlink()
    assert job.main(command) == 2
    shown = capfd.readouterr().err
    assert "error: 1 of 4 files are not packed" in shown
    assert f"packed/frames/coin-000.parquet: 29 of 30 drawn frames are not those that {tree} has now" in shown
    assert not (tmp_path / "packed/index.parquet").exists()


@pytest.mark.usefixtures("cluster")
def test_the_program_says_what_it_could_not_pack_and_packs_the_rest(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "packed/frames/coin-001.parquet"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"PAR1")
    (tree / "kite/kite-1/img/00000001.jpg").write_bytes(b"")
    command = [f"DATA.ROOT={tree}", "DATA.SPLIT=all", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 2
    shown = capfd.readouterr()
    assert "error: 1 of 4 files are not packed" in shown.err
    assert f"{damaged}: cannot be packed" in shown.err
    assert "kite/kite-1/img/00000001.jpg is cut off or empty" in shown.out
    damaged.unlink()
    assert job.main(command) == 0
    monkeypatch.setattr("seqtrack.data.storage.LOCAL_PATIENCE", 0.0)
    (tree / "coin/coin-2/img/00000001.jpg").unlink()
    (tree / "coin/coin-2/img/00000001.jpg").symlink_to("/proc/self/mem")  # reading fails, as on a faulty disk
    assert job.main(command) == 2
    assert f"error: {tree}/coin/coin-2/img/00000001.jpg: cannot be read ([Errno 5]" in capfd.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_the_program_is_not_ready_where_shards_are_on_another_machine(
    lasot_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [f"DATA.ROOT={lasot_root}", "DATA.SPLIT=all", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 0
    (tmp_path / "packed/frames/kite-001.parquet").unlink()
    capfd.readouterr()
    assert job.main(command) == 2
    shown = capfd.readouterr()
    assert "1 of 4 shards are missing or cut off, the first: frames/kite-001.parquet" in shown.err
    assert "Ready" not in shown.out


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("name", ["LASOT", *LAYOUTS])
def test_each_set_is_packed_once(
    name: str, lasot_root: Path, synthetic_sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = lasot_root if name == "LASOT" else synthetic_sets / LAYOUTS[name]
    settings = [f"DATA.ROOTS={{{name}: {tree}}}", "DATA.SPLIT=all", f"DATA.PARTIAL=[{name}]"]
    command = ["--set", name, *settings, "--to", str(tmp_path)]
    assert any_set.main(command) == 0
    assert f"Ready: DATA.ROOTS={{{name}: {tmp_path}}}" in capfd.readouterr().out
    packed = DataConfig(ROOTS={name: str(tmp_path)}, SPLIT="all", PARTIAL=(name,))
    assert open_set(name, packed).index.fingerprint == index_of(tree, name).fingerprint
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert any_set.main(command) == 0
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}


@pytest.mark.parametrize(
    ("name", "below", "said"),
    [
        ("COCO17", "annotations", "; DATA.ROOTS.COCO17={root} would fit"),
        ("GOT10K_train_full", "train", "train/train/list.txt: no such file; DATA.ROOTS.GOT10K_train_full={root} would"),
        ("TRACKINGNET", "TRAIN_0", "; DATA.ROOTS.TRACKINGNET={root} would fit"),
        ("TRACKINGNET", "", "chunks are missing: TRAIN_4, "),
        ("GOT10K_vottrain", "", "of the 7,086 sequences of GOT10K_vottrain are missing"),
    ],
)
def test_what_the_reader_says_of_a_copy_is_passed_on(
    name: str, below: str, said: str, synthetic_sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = synthetic_sets / LAYOUTS.get(name, "GOT10K")
    place = f"DATA.ROOTS={{{name}: {root / below}}}"
    assert any_set.main(["--set", name, place, "--to", str(tmp_path / "packed")]) == 2
    shown = capfd.readouterr().err
    error = next(line for line in shown.splitlines() if line.startswith("error: "))
    assert said.format(root=root) in error and shown.endswith(f"{error}\n")
    assert not (tmp_path / "packed").exists()


def test_zips_that_are_still_to_be_unpacked_are_named(
    synthetic_sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = shutil.copytree(synthetic_sets / "TRACKINGNET", tmp_path / "tree")
    shutil.rmtree(tree / "TRAIN_0/frames")
    (tree / "TRAIN_0/zips").mkdir()
    (tree / "TRAIN_0/zips/a.zip").touch()
    settings = [f"DATA.ROOTS={{TRACKINGNET: {tree}}}", "DATA.PARTIAL=[TRACKINGNET]"]
    assert any_set.main(["--set", "TRACKINGNET", *settings, "--to", str(tmp_path / "packed")]) == 2
    assert "TRAIN_0/zips: a.zip is still to be unpacked there" in capfd.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_a_tree_is_packed_with_tiles_and_says_what_could_not_be_tiled(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_config: Config
) -> None:
    if shutil.which("jpegtran") is None:
        pytest.skip("jpegtran is not installed")
    for path in (tree / "kite/kite-1/img").glob("*2.jpg"):
        path.write_bytes(path.read_bytes()[:50])
    command = [f"DATA.ROOT={tree}", "DATA.SPLIT=all", "--tiles", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 0
    said = "3 of 120 frames could not be tiled and are decoded as before (3: the JPEG is cut off)"
    assert said in capfd.readouterr().out
    assert open_index(DataConfig(SPLIT="all"), local(tmp_path / "packed")).tiles(0, 0) is not None
    assert_same_samples(tiny_config, local(tmp_path / "packed"), local(tree))
    assert job.main([word for word in command if word != "--tiles"]) == 2
    assert "was packed with --tiles; the same command goes on" in capfd.readouterr().err


def test_without_jpegtran_packing_with_tiles_ends_at_once(
    lasot_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job.main([f"DATA.ROOT={lasot_root}", "DATA.SPLIT=all", "--tiles", "--to", str(tmp_path / "packed")]) == 2
    assert "error: jpegtran is not installed, and tiles are made with it (Debian" in capfd.readouterr().err
    assert not (tmp_path / "packed").exists()


def test_frames_that_could_not_be_tiled_are_counted_by_reason() -> None:
    rows = pa.array([b"", b"12", b"", b""], pa.large_binary())
    tiles = Tiles(pa.array([b"", b"head", b"", b""]).dictionary_encode(), rows)
    sizes = np.array([10, 10, 10, MISSING], np.int32)
    before = PackedShard(np.zeros(4, np.int64), sizes, [], tiles)
    now = before._replace(reasons={"not a JPEG": 2})
    assert describe_untiled([now, before, now]) == (
        "6 of 9 frames could not be tiled and are decoded as before (4: not a JPEG; 2: packed earlier)"
    )
    assert describe_untiled([before._replace(tiles=None)]) == ""
