"""The readers of files that may come from strangers, and small valid files for each of them to be damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pyarrow import fs
from safetensors.torch import save

from seqtrack.config import DataConfig, SyntheticConfig, parse_config
from seqtrack.data.datasets.cache import VARIABLE
from seqtrack.data.datasets.catalog import open_training_set
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.datasets.synthetic_sets import KINDS, write_synthetic_set
from seqtrack.data.decoding import BrokenFrame, FrameDecoder
from seqtrack.data.heads import read_head
from seqtrack.data.jpeg import NotAPicture, check_complete, read_header
from seqtrack.data.open import open_index
from seqtrack.data.packed import INDEX, check_shards_exist
from seqtrack.data.packing import pack_shard, plan_shards, write_index
from seqtrack.data.storage import Root, SpanReader
from seqtrack.data.tiles import TiledJpeg, find_row_offsets
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import benchmark_named, open_benchmark
from seqtrack.evaluation.protocols import PROTOCOLS, score
from seqtrack.evaluation.results import read_results
from seqtrack.evaluation.submissions import check_trackingnet, read_zip
from seqtrack.integrations.mirror_state import MIRROR_FILE, MirrorNote, MirrorState, StartSettings, shown_changes
from seqtrack.integrations.parent_run import read_parent, write_parent
from seqtrack.model.weights import read_weights
from seqtrack.runs.checkpoint import STATE_FILE, SUMS_FILE, generator_file, open_checkpoint
from seqtrack.runs.folder import read_settings, write_settings
from seqtrack.runs.log import METRICS_FILE, MetricsFile, NewRecords
from seqtrack.runs.record import read_phase
from seqtrack.sweeps.results import TRIAL_FILE, TrialNote, read_trials, write_note
from seqtrack.training.state import TrainState, load_generators
from tests.checkpoints import make_meta
from tests.checkpoints import save as save_checkpoint
from tests.evaluation.trees import BOX, write_got10k
from tests.evaluation.trees import write as put
from tests.folders import run_at, stored_at
from tests.settings import make_tiny_settings

ALL = DataConfig(SPLIT="all")
CANARY = "canary"
"""Name of the file that appears in the folder of a reader if code from a file was run."""


class Original(NamedTuple):
    """A valid content, and how a damaged one becomes the file that is read."""

    name: str
    content: bytes
    place: Callable[[bytes], None]
    valid: bytes | None = None
    """What is placed afterwards; None: the content itself."""

    def undo(self) -> None:
        self.place(self.content if self.valid is None else self.valid)


class Reader(NamedTuple):
    originals: list[Original]
    read: Callable[[], None]
    """Reads what was placed last. Returns, or raises InputError."""
    words: tuple[bytes, ...]
    """Parts of such files that a random damage would hardly hit upon."""


def weights(folder: Path) -> Reader:
    """Published weights: both formats of torch.save, safetensors, and pickles that would run code."""
    tensors = {"net": {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(3, dtype=torch.float16)}, "epoch": 3}
    file = folder / "weights"
    archive, stream = io.BytesIO(), io.BytesIO()
    torch.save(tensors, archive)
    torch.save(tensors, stream, _use_new_zipfile_serialization=False)
    safetensors = save(tensors["net"])
    header, data = split_safetensors(safetensors)
    parts = unzip(archive.getvalue())
    (described,) = (name for name in parts if name.endswith("/data.pkl"))
    program = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), program)
    originals = [
        Original("TorchScript", program.getvalue(), partial(write, file)),
        Original("archive", archive.getvalue(), partial(write, file)),
        Original("stream", stream.getvalue(), partial(write, file)),
        Original("safetensors", safetensors, partial(write, file)),
        Original("safetensors' header", header, lambda content: write(file, join_safetensors(content, data))),
    ]
    for name, content in attacked(parts[described], folder / CANARY).items():
        originals.append(Original(name, content, lambda content: write(file, zipped(parts | {described: content}))))
    return Reader(originals, lambda: consume(read_weights(file)), PICKLE_WORDS + JSON_WORDS)


def checkpoints(folder: Path) -> Reader:
    """Our own checkpoints, with sums that fit what was damaged."""
    config = parse_config(make_tiny_settings(folder / "tree", folder / "runs"), "tiny")
    path = save_checkpoint(config, folder / "runs/tiny", 0)
    state = TrainState.fresh(config, 0, torch.device("cpu"))
    header, data = split_safetensors((path / "model.safetensors").read_bytes())

    def place(name: str, content: bytes) -> None:
        write(path / name, content)
        write_sum(path, name)

    originals = [
        Original(SUMS_FILE, (path / SUMS_FILE).read_bytes(), partial(write, path / SUMS_FILE)),
        Original("meta.json", (path / "meta.json").read_bytes(), lambda content: place("meta.json", content)),
        Original("header", header, lambda content: place("model.safetensors", join_safetensors(content, data))),
    ]
    for name in (STATE_FILE, generator_file(0)):
        whole = (path / name).read_bytes()
        parts = unzip(whole)
        (described,) = (member for member in parts if member.endswith("/data.pkl"))

        def place_pickle(
            content: bytes, name: str = name, parts: dict[str, bytes] = parts, described: str = described
        ) -> None:
            place(name, zipped(parts | {described: content}))

        originals.append(Original(name, whole, lambda content, name=name: place(name, content)))  # type: ignore[misc]
        for kind, content in attacked(parts[described], folder / CANARY).items():
            originals.append(Original(f"{name}, {kind}", content, place_pickle, parts[described]))

    def read() -> None:
        opened = open_checkpoint(stored_at(path))
        state.load(path)
        load_generators(path, 0)
        read_phase("Phase 1", opened.stored.run, 10)

    return Reader(originals, read, PICKLE_WORDS + JSON_WORDS)


def shards(folder: Path) -> Reader:
    """A packed tree: its index as a file, by its marks and by its numbers, and a shard."""
    tree, target = synthetic(folder), Root(fs.LocalFileSystem(), str(folder / "packed"))
    index = build_index(ALL, tree)
    plan = plan_shards(index)
    write_index(index, target, plan, [pack_shard(index, tree, target, path, rows) for path, rows in plan.items()])
    file, (shard, *_) = folder / "packed" / INDEX, plan
    table = pq.read_table(file)
    numbers = [name for name in table.column_names if name not in ("class", "sequence", "shard")]

    def place_mark(content: bytes) -> None:
        pq.write_table(table.replace_schema_metadata({"seqtrack": content}), file)

    def place_numbers(content: bytes) -> None:
        changed, at = table, 0
        for name in numbers:
            lists = table[name].chunk(0)
            flat = lists.values.flatten() if name == "boxes_xywh" else lists.values
            kind = np.dtype(flat.type.to_pandas_dtype())
            size = len(flat) * kind.itemsize
            values = pa.array(np.frombuffer(content[at : at + size].ljust(size, b"\xff"), kind))
            at += size
            if name == "boxes_xywh":
                values = pa.FixedSizeListArray.from_arrays(values, 4)
            place_in = changed.schema.get_field_index(name)
            changed = changed.set_column(place_in, name, pa.LargeListArray.from_arrays(lists.offsets, values))
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)

    flat = [table[name].chunk(0).values for name in numbers]
    content = b"".join((part.flatten() if part.type.num_fields else part).to_numpy().tobytes() for part in flat)
    originals = [
        Original("index", file.read_bytes(), partial(write, file)),
        Original("mark", table.schema.metadata[b"seqtrack"], place_mark),
        Original("numbers", content, place_numbers),
        Original("shard", (folder / "packed" / shard).read_bytes(), partial(write, folder / "packed" / shard)),
    ]

    def read() -> None:
        opened = open_index(ALL, target)
        check_shards_exist(opened, target)
        reader = SpanReader(target)
        for row in range(len(opened.names)):
            spans = [opened.span(row, frame) for frame in range(int(opened.lengths[row]))]
            consume([reader.read(span) for span in spans if span is not None])
        pack_shard(index, tree, target, shard, plan[shard])  # which reads a shard that is there

    return Reader(originals, read, JSON_WORDS)


def lasot_annotations(folder: Path) -> Reader:
    """A LaSOT tree's text files."""
    root = synthetic(folder)
    files = sorted(Path(root.path).rglob("*.txt"))[:3]
    listed = folder / "split.txt"
    listed.write_text("\n".join(build_index(ALL, root).names))
    originals = [Original(path.name, path.read_bytes(), partial(write, path)) for path in (*files, listed)]

    def read() -> None:
        for split in ("all", str(listed)):
            consume(build_index(DataConfig(SPLIT=split), root).description)

    return Reader(originals, read, TEXT_WORDS)


def results(folder: Path) -> Reader:
    """Small files in the folders of runs and sweeps."""
    config = parse_config(make_tiny_settings(folder / "tree", folder / "runs"), "tiny")
    run = run_at(folder / "runs/tiny")
    sweep = run_at(folder / "sweep")
    write_settings(config, run)
    write_note(sweep.child("trials").child("LR=1"), TrialNote({"TRAIN.LR": 1.0}, "failed", "why"))
    known = {"values": {"TRAIN.LR": "2.0"}, "changes": {"TRAIN.LR": [[0, "1.0"], [6, "2.0"]]}}
    tags = {"tags": {"a": "b"}, "params": {"c": 1}}
    run.write_json(MIRROR_FILE, {"run_id": "12", "status": "FINISHED"} | tags | known)
    write_parent(sweep, "sweep", "34")
    run.write(METRICS_FILE, "".join(json.dumps({"step": step, "time": 1.0, "loss": 0.5}) + "\n" for step in range(3)))
    files = [run.file(name) for name in ("config.yaml", MIRROR_FILE, METRICS_FILE)]
    files += [sweep.child("trials").child("LR=1").file(TRIAL_FILE), sweep.file("mlflow_sweep.json")]
    checkpoint = Path(sweep.path, "trials/LR=1/checkpoint_epoch_0001")
    checkpoint.mkdir()
    (checkpoint / SUMS_FILE).touch()
    (checkpoint / "meta.json").write_text(json.dumps(make_meta()))
    files.append(str(checkpoint / "meta.json"))
    originals = [Original(Path(file).name, Path(file).read_bytes(), partial(write, Path(file))) for file in files]

    def read() -> None:
        read_settings(run)
        shown_changes(MirrorState.read(run).changes)
        MirrorNote(run).start({}, None, StartSettings(config.flat(), 7))
        read_parent(sweep, "sweep")
        list(NewRecords(run, 1).read())
        MetricsFile(run, 1)
        read_trials(sweep)

    return Reader(originals, read, JSON_WORDS + YAML_WORDS)


def tracks(folder: Path) -> Reader:
    """Annotations of other benchmarks, result files that others made, and a zip of them."""
    root, found = folder / "sets", folder / "found"
    val = write_got10k(root, "val", 1)
    put(root / "bee/30/bee.txt", '0 10 20 40 60 0 0 0 0 "bee"\n' * 9)
    for name in (val.name, "nfs_bee"):
        put(found / f"{name}.txt", BOX * 3)
        put(found / f"{name}_time.txt", "0.25\n" * 3)
    with zipfile.ZipFile(folder / "found.zip", "w") as archive:
        archive.writestr(f"{val.name}.txt", BOX * 3)
    files = [path for path in (*root.rglob("*"), *found.rglob("*")) if path.is_file() and path.suffix != ".jpg"]
    files = [*sorted(files), folder / "found.zip"]
    originals = [Original(path.name, path.read_bytes(), partial(write, path)) for path in files]

    def read() -> None:
        sequences = [
            one
            for name in ("got10k_val", "nfs")
            for one in open_benchmark(benchmark_named(name), str(root), with_frames=False).sequences
        ]
        tracks = read_results(str(found), sequences).tracks
        truths = [one.truth for one in sequences if one.name in tracks]
        for protocol in PROTOCOLS:
            score(protocol, "nfs", truths, [track.boxes_xywh for track in tracks.values()])
        check_trackingnet(read_zip(str(folder / "found.zip")), sequences[:1], "found.zip")

    return Reader(originals, read, TEXT_WORDS)


def training_sets(folder: Path) -> Reader:
    """Annotations of GOT-10k, COCO and TrackingNet, and what the cache keeps of them."""
    os.environ[VARIABLE] = str(folder / "cache")
    drawn = SyntheticConfig(SEQUENCES=2, FRAMES=20, HEIGHT=64, WIDTH=64)
    for kind in KINDS:
        write_synthetic_set(kind, folder / kind, drawn)
    names = {"GOT10K": "GOT10K_train_full", "COCO17": "COCO17", "TRACKINGNET": "TRACKINGNET"}
    roots = {name: Root(fs.LocalFileSystem(), str(folder / kind)) for kind, name in names.items()}

    def read() -> None:
        for name, root in roots.items():
            consume(open_training_set(name, root, "redraw", partial_set=True).description)

    read()
    found = [path for path in folder.rglob("*") if path.suffix in (".txt", ".label", ".ini", ".json", ".arrow")]
    files = [path for path in sorted(found) if "000002" not in str(path)]
    originals = [Original(path.name, path.read_bytes(), partial(write, path)) for path in files]
    return Reader(originals, read, TEXT_WORDS + JSON_WORDS)


def tiles(folder: Path) -> Reader:
    """A JPEG with restart markers, and what an index has of it: its head, and the sizes of its rows of tiles."""
    image = np.random.RandomState(0).randint(0, 256, (60, 160, 3)).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 5])[1].tobytes()
    header = read_header(jpeg)
    head = read_head(jpeg, header).content
    sizes = np.diff(find_row_offsets(jpeg, header)).astype("<u2").tobytes()
    frame, rows, before = folder / "frame.jpg", folder / "row_sizes", folder / "head"
    for path, content in ((frame, jpeg), (rows, sizes), (before, head)):
        write(path, content)

    def read() -> None:
        data, row_sizes = frame.read_bytes(), rows.read_bytes()
        try:
            check_complete(data, read_header(data))
            tiled = TiledJpeg.of_sizes(
                before.read_bytes(),
                np.frombuffer(row_sizes[: len(row_sizes) // 2 * 2], "<u2"),
                len(data),
            )
            part = tiled.pixels(data, 70, 10, 100, 30)
            find_row_offsets(data, read_header(data))  # only then has a damaged file the same pixels as a whole
        except NotAPicture as error:
            raise InputError(str(error)) from error
        if before.read_bytes() == read_head(data, read_header(data)).content:
            np.testing.assert_array_equal(part, FrameDecoder(by_region=False).open("a", data).pixels(70, 10, 100, 30))

    originals = [Original(path.name, path.read_bytes(), partial(write, path)) for path in (frame, rows, before)]
    return Reader(originals, read, (b"\xff\xd0", b"\xff\xd7", b"\xff\xd9", b"\xff\xff", b"\xff\xdd\x00\x04\x00\x01"))


def pictures(folder: Path) -> Reader:
    """Frames of each common kind, whose size is read from their headers before OpenCV decodes them."""
    picture = np.random.RandomState(0).randint(0, 256, (40, 50, 3)).astype(np.uint8)
    originals, file = [], folder / "frame"
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM"):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, kind)
        originals.append(Original(kind, content.getvalue(), partial(write, file)))
    for ending, values in ((".pam", picture), (".hdr", picture.astype(np.float32)), (".pfm", picture[..., 0] / 255)):
        encoded = cv2.imencode(ending, values.astype(np.float32) if ending == ".pfm" else values)[1]
        originals.append(Original(ending, encoded.tobytes(), partial(write, file)))
    decoder = FrameDecoder(by_region=False, max_pixels=1 << 22)

    def read() -> None:
        try:
            frame = decoder.open("frame", file.read_bytes())
        except BrokenFrame as error:
            raise InputError(str(error)) from error
        assert frame.width * frame.height <= 1 << 22

    originals[0].undo()
    return Reader(
        originals, read, (b"\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"IHDR", b"VP8X", b"99999", b"\xff\xc0")
    )


READERS: Mapping[str, Callable[[Path], Reader]] = {
    "weights": weights,
    "checkpoints": checkpoints,
    "shards": shards,
    "annotations": lasot_annotations,
    "results": results,
    "tracks": tracks,
    "sets": training_sets,
    "tiles": tiles,
    "pictures": pictures,
}
"""Name -> what makes the reader, with its valid files, in an empty folder."""

PICKLE_WORDS = (
    b"cos\nmkdir\n",
    b"cbuiltins\ngetattr\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"ccollections\nCounter\n",
    b"\x85" * 5000,  # nested tuples
    b"2" * 50 + b"t",
    b"(" * 100,
    b"r\xff\xff\xff\xff",  # numbers an object 2**32 - 1
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",  # a text of 2**63 - 1 bytes
    b"\x96\x00\x00\x00\x00\x00\x01\x00\x00",  # a bytearray of 2**40 bytes
    b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x7f",  # a large number
    *(bytes([code]) for code in b"R\x81\x92obsuae\x90\x91\x93(}])\x85\x86\x87tld0120jqh\x94Q\x88N.KJ"),
)
JSON_WORDS = (b"[" * 20_000, b'{"a":', b"NaN", b"1e999", b"-1", b"null", b"{}", b"[]", b'""', b'"\\ud800"', b"9" * 5000)
YAML_WORDS = (
    b"&a [*a, *a]",
    b"<<: *a",
    b"!!python/object/apply:os.getcwd []",
    b"? ",
    b"\t",
    b"1_0",
    b".inf",
    b"RUN:\n",
)
TEXT_WORDS = (
    b"nan",
    b"inf",
    b"1e999",
    b",",
    b"\r",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"#",
    b"-1",
    b"0x1",
    b" ",
    b"\n\n",
)


def attacked(valid: bytes, canary: Path) -> dict[str, bytes]:
    """Name -> the pickle of a dict with one more entry, which creates the file `canary` if Python itself unpickles it.

    The first one, `pickle`, is the valid one without.
    """
    path, program = text(str(canary)), text(f"open({str(canary)!r}, 'w')")  # damaged, they would do little harm
    calls = {
        "REDUCE": b"cos\nmkdir\n(" + path + b"tR",
        "INST": f"(S'{canary}'\nios\nmkdir\n".encode(),
        "OBJ": b"(cos\nmkdir\n" + path + b"o",
        "STACK_GLOBAL": text("os") + text("mkdir") + b"\x93(" + path + b"tR",
        "exec": b"cbuiltins\nexec\n(" + program + b"tR",
        "open": b"cio\nopen\n(" + path + text("w") + b"tR",
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
        + (text("os") + b"tR" + text("mkdir") + b"tR(" + path + b"tR"),
    }
    start = b"\x80\x02}q\x00("
    assert valid.startswith(start)
    rest = valid.removeprefix(start)
    return {"pickle": valid} | {name: start + text("x") + call + rest for name, call in calls.items()}


def text(value: str) -> bytes:
    """A text within a pickle."""
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def consume(_: Any) -> None:
    """Says that a result is made and not used."""


def split_safetensors(content: bytes) -> tuple[bytes, bytes]:
    """A safetensors file -> its header, without the length before it, and its data."""
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def join_safetensors(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def unzip(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return target.getvalue()


def write_sum(checkpoint: Path, name: str) -> None:
    """Makes the sum of one file of a checkpoint fit it."""
    file = checkpoint / SUMS_FILE
    others = [line for line in file.read_text().splitlines(keepends=True) if not line.endswith(f"  {name}\n")]
    digest = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    file.write_text("".join([*others, f"{digest}  {name}\n"]))


def synthetic(folder: Path) -> Root:
    """A tree of two sequences of twenty frames."""
    tree = folder / "tree"
    if not tree.exists():
        write_synthetic(tree, SyntheticConfig(SEQUENCES=2, FRAMES=20, HEIGHT=64, WIDTH=64))
    return Root(fs.LocalFileSystem(), str(tree))
