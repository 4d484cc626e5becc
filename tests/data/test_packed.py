"""A packed tree gives the same samples as the tree, bit for bit, or an error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from seqtrack.config import Config, DataConfig, DataTrainConfig
from seqtrack.data import packed
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_index
from seqtrack.data.packed import PackedShard, check_done, pack_shard, plan_shards, write_index
from seqtrack.data.storage import DataError, Root, open_root
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import child
from tests.object_stores import s3_bucket
from tests.training.runs import load_job

ALL = DataConfig(SPLIT="all")
REDRAW = DataConfig(SPLIT="all", ON_MISMATCH="redraw")
LOCAL = fs.LocalFileSystem()
job = load_job("pack_lasot")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shards so small that each sequence has its own, with several row groups."""
    monkeypatch.setattr(packed, "FRAMES_PER_SHARD", 20)
    monkeypatch.setattr(packed, "ROW_GROUP_BYTES", 20_000)


@pytest.fixture
def tree(lasot_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return shutil.copytree(lasot_root, tmp_path / "tree")


def pack(tree: Path, target: Root, allow_missing: bool = False) -> list[PackedShard]:
    root = open_root(str(tree))
    index = build_index(ALL, root)
    plan = plan_shards(index)
    shards = [pack_shard(index, root, target, path, rows, allow_missing) for path, rows in plan.items()]
    write_index(index, target, plan, shards)
    return shards


def local(folder: Path) -> Root:
    return Root(LOCAL, str(folder))


def source_of(config: Config, root: Root) -> TripletSource:
    return TripletSource.from_config(config, Mixture.of_lasot(open_index(REDRAW, root), root))


def assert_same_samples(config: Config, one: Root, other: Root) -> None:
    samples = [source_of(config, root).samples(range(60)) for root in (one, other)]
    for (ours, our_problems), (theirs, their_problems) in zip(*samples, strict=True):
        assert our_problems == their_problems
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_packed_tree_gives_the_trees_samples_and_warnings(tiny_config: Config, tree: Path, tmp_path: Path) -> None:
    """Also if frames are missing or cut off."""
    for path in sorted(tree.rglob("*.jpg"))[::3]:
        path.unlink() if path.name.endswith("1.jpg") else path.write_bytes(path.read_bytes()[:50])
    shards = pack(tree, local(tmp_path / "packed"), allow_missing=True)
    assert [len(shard.cut_off) for shard in shards] == [9, 9, 9, 9]
    assert_same_samples(tiny_config, local(tmp_path / "packed"), local(tree))


def test_the_annotations_are_the_trees(lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    ours, theirs = open_index(ALL, local(tmp_path)), build_index(ALL, local(lasot_root))
    assert ours.fingerprint == theirs.fingerprint
    assert ours.names == theirs.names


def test_any_parquet_reader_finds_the_files_as_they_were(lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    rows = pq.read_table(tmp_path / "frames/kite-001.parquet").to_pylist()
    assert [row["frame"] for row in rows] == list(range(1, 31))
    for row in rows:
        frame = lasot_root / f"kite/{row['sequence']}/img/{row['frame']:08d}.jpg"
        assert row["jpeg"] == frame.read_bytes()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=("kite",))), ["kite-1", "kite-2"]),
        (DataConfig(SPLIT="kite_and_coin.txt"), ["coin-1", "kite-2"]),
    ],
    ids=["class", "split"],
)
def test_a_part_of_what_is_packed_can_be_trained_on(
    settings: DataConfig, names: list[str], lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kite_and_coin.txt").write_text("kite-2\ncoin-1\n")
    pack(lasot_root, local(tmp_path))
    index = open_index(settings, local(tmp_path))
    assert index.names == names
    assert index.fingerprint == build_index(settings, local(lasot_root)).fingerprint
    reader = TripletSource.from_config(Config(), Mixture.of_lasot(index, local(tmp_path)))
    for row, name in enumerate(names):
        span = index.span(row, 4)
        assert span is not None
        frame = lasot_root / name.partition("-")[0] / name / "img/00000005.jpg"
        assert reader.shards[0].read(span) == frame.read_bytes()


def test_a_class_that_was_not_packed_is_named_with_one_that_was(lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    with pytest.raises(DataError, match=r"class kit has no sequence in .*; did you mean kite\?"):
        open_index(DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=("kit",))), local(tmp_path))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """URI of a bucket, and the requests that it has received."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    requests: list[str] = []
    with s3_bucket(requests=requests) as uri:
        yield uri, requests


def test_a_frame_is_one_request_to_an_object_store(
    tiny_config: Config, lasot_root: Path, bucket: tuple[str, list[str]]
) -> None:
    uri, requests = bucket
    store = Root(*fs.FileSystem.from_uri(child(uri, "packed")))
    pack(lasot_root, store)
    source = source_of(tiny_config, store)
    requests.clear()
    source.samples(range(200))
    frames = {(row, frame) for row in range(4) for frame in range(30)}
    assert 100 < len([line for line in requests if line.startswith("GET") and "bytes=" in line]) <= len(frames)
    assert len([line for line in requests if line.startswith("HEAD")]) <= 4 * packed.READS_AT_ONCE
    assert_same_samples(tiny_config, store, local(lasot_root))


def test_packing_goes_on_where_it_was_interrupted(lasot_root: Path, tmp_path: Path) -> None:
    whole, target = local(tmp_path / "whole"), local(tmp_path / "packed")
    pack(lasot_root, whole)
    root = open_root(str(lasot_root))
    index = build_index(ALL, root)
    first, *_ = plan_shards(index)
    pack_shard(index, root, target, first, [0])
    (tmp_path / "packed/frames/.coin-001.parquet.unfinished").write_bytes(b"PAR1 and no more")
    written = (tmp_path / "packed" / first).stat().st_mtime_ns
    with pytest.raises(DataError, match=r"has frames but no index.parquet: `seqtrack pack-lasot` has not finished"):
        open_index(ALL, target)
    assert not check_done(index, target)
    pack(lasot_root, target)
    assert (tmp_path / "packed" / first).stat().st_mtime_ns == written
    assert check_done(index, target)
    files = sorted(path.relative_to(whole.path) for path in (tmp_path / "whole").rglob("*.parquet"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "packed" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "packed/frames").iterdir()) == sorted(
        file.name for file in files if file.parent.name == "frames"
    )


def test_packing_that_ends_within_its_index_goes_on(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write_bytes = local(tmp_path / "packed"), Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_bytes", half)
        pack(lasot_root, target)
    index = build_index(ALL, open_root(str(lasot_root)))
    assert not check_done(index, target)
    pack(lasot_root, target)
    assert check_done(index, target)


def test_a_frame_that_is_missing_stops_its_shard_unless_allowed(tree: Path, tmp_path: Path) -> None:
    (tree / "kite/kite-2/img/00000007.jpg").unlink()
    target = local(tmp_path / "packed")
    with pytest.raises(DataError, match=r"1 of 30 frames of kite are missing, the first: kite/kite-2/img/00000007.jpg"):
        pack(tree, target)
    assert not (tmp_path / "packed/frames/kite-001.parquet").exists()
    pack(tree, target, allow_missing=True)
    index = open_index(ALL, target)
    assert index.span(3, 6) is None
    (tmp_path / "packed/index.parquet").unlink()
    with pytest.raises(DataError, match=r"kite-001.parquet: was packed with --allow-missing and lacks frames"):
        pack(tree, target)


def test_a_shard_that_is_not_as_it_was_written_does_not_appear(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = packed._write_shard

    def write_and_damage(index: FrameIndex, tree: Root, filesystem: fs.FileSystem, name: str, *rest: Any) -> list[str]:
        result = write(index, tree, filesystem, name, *rest)
        content = bytearray(Path(name).read_bytes())
        content[len(content) // 2] ^= 1
        Path(name).write_bytes(content)
        return result

    monkeypatch.setattr(packed, "_write_shard", write_and_damage)
    with pytest.raises(DataError, match=r"coin-000.parquet: cannot be packed \(.*[Cc][Rr][Cc].*\)"):
        pack(lasot_root, local(tmp_path))
    assert not (tmp_path / "frames/coin-000.parquet").exists()


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_damaged_shard_is_named_before_training(damage: str, lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    shard = tmp_path / "frames/kite-000.parquet"
    shard.unlink() if damage == "gone" else shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"1 of 4 shards are missing or cut off, the first: frames/kite-000.parquet"):
        open_index(ALL, local(tmp_path))


@pytest.mark.parametrize(("damage", "message"), [("gone", "cannot be read"), ("cut off", "is cut off before byte")])
def test_a_shard_that_breaks_during_training_ends_it_and_no_other_frame_is_drawn_instead(
    damage: str, message: str, tiny_config: Config, lasot_root: Path, tmp_path: Path
) -> None:
    pack(lasot_root, local(tmp_path))
    source = source_of(tiny_config, local(tmp_path))
    for shard in tmp_path.glob("frames/*"):
        shard.unlink() if damage == "gone" else shard.write_bytes(b"")
    with pytest.raises(DataError, match=rf"frames/(coin|kite)-00\d.parquet: {message}"):
        source.sample(0)


def test_other_annotations_are_not_mixed_in(tree: Path, tmp_path: Path) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    (tree / "coin/coin-1/groundtruth.txt").write_text("1,1,9,9\n" * 30)
    with pytest.raises(DataError, match=r"coin-000.parquet: holds other sequences or annotations"):
        pack(tree, target)
    with pytest.raises(DataError, match=r"index.parquet: holds other sequences or annotations"):
        check_done(build_index(ALL, local(tree)), target)


@pytest.mark.parametrize("content", ["text", "table"])
def test_an_index_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    if content == "text":
        (tmp_path / "index.parquet").write_text("no Parquet")
    else:
        pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    message = "cannot be read" if content == "text" else "was not written by this version of `seqtrack pack-lasot`"
    with pytest.raises(DataError, match=f"index.parquet: {message}"):
        open_index(ALL, local(tmp_path))


def test_shards_hold_whole_sequences_of_one_class(monkeypatch: pytest.MonkeyPatch, lasot_root: Path) -> None:
    index = build_index(ALL, local(lasot_root))
    monkeypatch.setattr(packed, "FRAMES_PER_SHARD", 31)
    assert plan_shards(index) == {"frames/coin-000.parquet": [0, 1], "frames/kite-000.parquet": [2, 3]}


def changed_index(target: Root, name: str, values: pa.Array | None) -> None:
    """Replaces a column of the index, or removes it."""
    file = Path(target.path) / packed.INDEX
    table = pq.read_table(file)
    place = table.schema.get_field_index(name)
    table = table.remove_column(place) if values is None else table.set_column(place, name, values)
    pq.write_table(table, file)


def test_a_column_that_need_not_be_there_is_checked_where_it_is(tree: Path, tmp_path: Path) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    file = tmp_path / "packed/index.parquet"
    pq.write_table(pq.read_table(file).append_column("first_frame", pa.array([1, 2, 3, 4])), file)
    with pytest.raises(DataError, match="is damaged: it has no column first_frame of string"):
        open_index(ALL, target)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("shard", None, "it has no column shard of string"),
        ("sequence", lambda old: pa.array(["coin-1"] * len(old)), "a sequence appears twice"),
        ("sequence", lambda old: pa.array([None] * len(old), pa.string()), "it has gaps"),
        ("shard", lambda old: pa.array(["frames/../../x"] * len(old)), "a shard lies outside of frames"),
        ("frame_start", lambda old: pa.array([[-1]] * len(old), old.type), "frame_start and visible are of different"),
    ],
)
def test_a_damaged_index_is_refused_with_what_is_wrong(
    tree: Path, tmp_path: Path, name: str, change: Any, said: str
) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    old = pq.read_table(tmp_path / "packed/index.parquet")[name].combine_chunks()
    changed_index(target, name, change and change(old))
    with pytest.raises(DataError, match=f"packed/index.parquet: is damaged: {said}"):
        open_index(ALL, target)


@pytest.mark.parametrize("mark", [b"{", b"[1]", b"[" * 100_000, b'{"format": 99}'])
def test_an_index_with_other_marks_is_refused(tree: Path, tmp_path: Path, mark: bytes) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    file = tmp_path / "packed/index.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({"seqtrack": mark}), file)
    with pytest.raises(DataError, match="was not written by this version"):
        open_index(ALL, target)


def test_a_shard_with_other_frames_than_the_index_is_refused_by_name(tree: Path, tmp_path: Path) -> None:
    target, root = local(tmp_path / "packed"), open_root(str(tree))
    pack(tree, target)
    index = build_index(ALL, root)
    (path, rows), *_ = plan_shards(index).items()
    shard = pq.read_table(tmp_path / "packed" / path)
    numbers = pa.array(range(1000, 1000 + len(shard)), pa.int32())
    place = shard.schema.get_field_index("frame")
    pq.write_table(shard.set_column(place, shard.schema.field(place), numbers), tmp_path / "packed" / path)
    with pytest.raises(DataError, match=f"{path}: is damaged: it has a frame 1000 of coin-1"):
        pack_shard(index, root, target, path, rows)


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
def test_the_program_says_what_it_could_not_pack_and_packs_the_rest(
    tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tree / "coin/coin-2/img/00000001.jpg").unlink()
    (tree / "coin/coin-2/img/00000001.jpg").symlink_to("/proc/self/mem")  # reading fails, as on a faulty disk
    (tree / "kite/kite-1/img/00000001.jpg").write_bytes(b"")
    command = [f"DATA.ROOT={tree}", "DATA.SPLIT=all", "--to", str(tmp_path / "packed")]
    assert job.main(command) == 2
    shown = capfd.readouterr()
    assert "error: 1 of 4 files are not packed" in shown.err
    assert f"{tree}/coin/coin-2/img/00000001.jpg: cannot be read" in shown.err
    assert "kite/kite-1/img/00000001.jpg is cut off or empty" in shown.out
    (tree / "coin/coin-2/img/00000001.jpg").unlink()
    shutil.copy(tree / "coin/coin-1/img/00000001.jpg", tree / "coin/coin-2/img")
    assert job.main(command) == 0


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
