"""A packed tree gives the same samples as the tree, bit for bit, or an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from seqtrack.config import Config, DataConfig, DataTrainConfig
from seqtrack.data import packed
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.got10k import SETS, VIDEOS
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.layout import IncompleteSet
from seqtrack.data.open import open_index
from seqtrack.data.packed import open_packed_set
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, SpanReader
from seqtrack.locations import child
from tests.data.packs import ALL, LAYOUTS, assert_same_samples, index_of, local, pack, source_of

pytestmark = pytest.mark.usefixtures("small_shards")


def test_a_packed_tree_gives_the_trees_samples_and_warnings(tiny_config: Config, tree: Path, tmp_path: Path) -> None:
    """This holds if frames are missing or cut off, too."""
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
    reader = SpanReader(local(tmp_path))
    for row, name in enumerate(names):
        span = index.span(row, 4)
        assert span is not None
        frame = lasot_root / name.partition("-")[0] / name / "img/00000005.jpg"
        assert reader.read(span) == frame.read_bytes()


def test_a_class_that_was_not_packed_is_named_with_one_that_was(lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    with pytest.raises(DataError, match=r"class kit has no sequence in .*; did you mean kite\?"):
        open_index(DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=("kit",))), local(tmp_path))


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
    assert len([line for line in requests if line.startswith("HEAD")]) <= 4 * READS_AT_ONCE
    assert_same_samples(tiny_config, store, local(lasot_root))


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


@pytest.mark.parametrize("content", ["text", "table"])
def test_an_index_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    if content == "text":
        (tmp_path / "index.parquet").write_text("no Parquet")
    else:
        pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    message = "cannot be read" if content == "text" else "was not written by this version of `seqtrack pack`"
    with pytest.raises(DataError, match=f"index.parquet: {message}"):
        open_index(ALL, local(tmp_path))


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
        ("shard", lambda old: pa.array(["frames/\0.parquet"] * len(old)), "a shard lies outside of frames"),
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


@pytest.mark.parametrize(
    "mark",
    [b"{", b"[1]", b"[" * 100_000, b'{"format": 99}', b'{"format": 1, "set": []}', b'{"format": 1, "set": "VID"}'],
)
def test_an_index_with_other_marks_is_refused(tree: Path, tmp_path: Path, mark: bytes) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    file = tmp_path / "packed/index.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({"seqtrack": mark}), file)
    with pytest.raises(DataError, match="was not written by this version"):
        open_index(ALL, target)


def opened(name: str, root: Root, partial_set: bool = True) -> tuple[FrameIndex, list[str]]:
    """The index of a packed set, and the lines for the log."""
    notes: list[str] = []
    return open_packed_set(name, root, notes.append, partial_set), notes


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_packed_set_has_the_trees_index_and_every_files_bytes(
    name: str, synthetic_sets: Path, bucket: tuple[str, list[str]]
) -> None:
    """The same holds in an object store, into which it is packed at once."""
    tree, store = synthetic_sets / LAYOUTS[name], Root(*fs.FileSystem.from_uri(child(bucket[0], name.lower())))
    pack(tree, store, name=name)
    index, theirs = opened(name, store)[0], index_of(tree, name)
    assert index.table.select(theirs.table.column_names).equals(theirs.table)
    assert index.fingerprint == theirs.fingerprint
    reader = SpanReader(store)
    for row in range(len(index.names)):
        for frame in range(int(index.lengths[row])):
            span = index.span(row, frame)
            assert span is not None and reader.read(span) == (tree / index.frame_path(row, frame)).read_bytes()


@pytest.mark.parametrize("listed", ["all", "these"])
def test_a_packed_got10k_has_each_of_its_sets(listed: str, synthetic_sets: Path, tmp_path: Path) -> None:
    """Rows of a whole list say which videos are meant, whatever these are called."""
    tree = shutil.copytree(synthetic_sets / "GOT10K", tmp_path / "tree")
    if listed == "all":
        names = [f"GOT-10k_Train_{number:06d}" for number in range(1, VIDEOS + 1)]
        names[0], names[VIDEOS - 1] = names[VIDEOS - 1], names[0]
        (tree / "train/list.txt").write_text("\n".join(names))
    pack(tree, local(tmp_path / "packed"), name="GOT10K_train_full")
    held = set()
    for name in SETS:
        notes: list[str] = []
        try:
            theirs = open_training_set(name, local(tree), note=notes.append, partial_set=True)
        except IncompleteSet:
            with pytest.raises(IncompleteSet, match=f"sequences of {name} are missing"):
                opened(name, local(tmp_path / "packed"))
            continue
        index, said = opened(name, local(tmp_path / "packed"))
        assert (index.names, index.fingerprint) == (theirs.names, theirs.fingerprint)
        assert said == [note.replace(f"{tree}", f"{tmp_path}/packed") for note in notes]
        span = index.span(len(index.names) - 1, 3)
        assert span is not None
        frame = tree / index.frame_path(len(index.names) - 1, 3)
        assert SpanReader(local(tmp_path / "packed")).read(span) == frame.read_bytes()
        held.add(tuple(index.names))
    assert len(held) > 1


@pytest.mark.parametrize(
    ("packed_name", "name", "said"),
    [
        ("COCO17", "TRACKINGNET", "holds COCO17, not TRACKINGNET"),
        ("LASOT", "COCO17", "holds LASOT, not COCO17"),
        ("COCO17", "LASOT", "holds COCO17, not LASOT"),
        (
            "GOT10K_vottrain",
            "GOT10K_train_full",
            r"holds GOT10K_vottrain, not GOT10K_train_full \(a packed GOT10K_train_full has every set of GOT-10k\)",
        ),
        ("GOT10K_train_full", "TRACKINGNET", "holds GOT10K_train_full, not TRACKINGNET$"),
    ],
)
def test_a_tree_of_another_set_is_refused_by_name(
    packed_name: str, name: str, said: str, synthetic_sets: Path, lasot_root: Path, tmp_path: Path
) -> None:
    layout = LAYOUTS.get(packed_name, "GOT10K")
    pack(lasot_root if packed_name == "LASOT" else synthetic_sets / layout, local(tmp_path), name=packed_name)
    with pytest.raises(DataError, match=f"{tmp_path}/index.parquet: {said}"):
        open_index(ALL, local(tmp_path)) if name == "LASOT" else opened(name, local(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [("GOT10K_train_full", "9331 of the 9,335 sequences"), ("TRACKINGNET", "8 of 12 chunks are missing: TRAIN_4, ")],
)
def test_a_packed_part_of_a_set_says_so(name: str, said: str, synthetic_sets: Path, tmp_path: Path) -> None:
    pack(synthetic_sets / LAYOUTS[name], local(tmp_path), name=name)
    assert any(line.startswith(f"{tmp_path}: {said}") for line in opened(name, local(tmp_path))[1])
    with pytest.raises(IncompleteSet, match=f"{tmp_path}: {said}"):
        opened(name, local(tmp_path), partial_set=False)


def test_a_damaged_shard_of_a_set_is_named(synthetic_sets: Path, tmp_path: Path) -> None:
    pack(synthetic_sets / "COCO17", local(tmp_path), name="COCO17")
    shard = tmp_path / "frames/COCO17-000.parquet"
    shard.write_bytes(shard.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"1 of 1 shards are missing or cut off, the first: frames/COCO17-000.parquet"):
        opened("COCO17", local(tmp_path))


def test_a_set_without_what_it_must_have_is_refused(synthetic_sets: Path, tmp_path: Path) -> None:
    pack(synthetic_sets / "COCO17", local(tmp_path), name="COCO17")
    changed_index(local(tmp_path), "still", None)
    with pytest.raises(DataError, match="is damaged: it has no column still of bool"):
        opened("COCO17", local(tmp_path))
    pack(synthetic_sets / "GOT10K", local(tmp_path / "got"), name="GOT10K_votval")
    file = tmp_path / "got/index.parquet"
    table = pq.read_table(file).append_column("still", pa.array([True] * 1))
    pq.write_table(table, file)
    with pytest.raises(DataError, match="is damaged: an image is a sequence of more than one frame"):
        opened("GOT10K_votval", local(tmp_path / "got"))


@pytest.mark.parametrize("listed", ["[]", '"GOT-10k_Train_000001"', "[1]"])
def test_a_got10k_without_its_list_is_refused(listed: str, synthetic_sets: Path, tmp_path: Path) -> None:
    pack(synthetic_sets / "GOT10K", local(tmp_path), name="GOT10K_train_full")
    file = tmp_path / "index.parquet"
    mark = f'{{"format": 1, "fingerprint": "x", "set": "GOT10K_train_full", "listed": {listed}}}'
    pq.write_table(pq.read_table(file).replace_schema_metadata({"seqtrack": mark}), file)
    said = (
        "is damaged: it does not say what train/list.txt had" if listed == "[]" else "was not written by this version"
    )
    with pytest.raises(DataError, match=said):
        opened("GOT10K_train_full", local(tmp_path))
