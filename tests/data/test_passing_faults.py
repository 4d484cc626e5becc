"""A fault that passes changes no sample, wherever it happens on the way to one; only a file that is not there does."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyarrow import fs

from seqtrack import patience
from seqtrack.config import Config
from seqtrack.data import storage
from seqtrack.data.batches import StreamPlan, make_block
from seqtrack.data.crops import Sample
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.decoding import FrameDecoder
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_index
from seqtrack.data.storage import DataError, Root, Span, SpanReader, StoreError, list_folder, read_bytes, read_file
from seqtrack.data.triplets import TripletSource
from seqtrack.evaluation.benchmarks import folder_of_sequences, open_benchmark
from seqtrack.tracker.lanes import opener
from seqtrack.tracker.sources import open_source
from tests.data.packs import ALL, local, pack

PASSING = (
    *("ESTALE", "EIO", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "ENOTCONN", "EHOSTDOWN"),
    *("EREMOTEIO", "ENOBUFS", "ENODEV", "EACCES", "EPERM", "memory"),
)
"""Error numbers that say nothing of the file, and Python's own error for want of memory."""
FEW = ("ESTALE", "EMFILE", "EACCES", "memory")
NO_FILE = ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG")


def fault(name: str) -> BaseException:
    if name == "memory":
        return MemoryError("malloc of size 1 failed")
    number = getattr(errno, name)
    return OSError(number, os.strerror(number))


class Faulty(fs.LocalFileSystem):
    """A disk on which some calls fail once."""

    def __init__(self, what: str, every: int = 3) -> None:
        """`every`: how many calls there are to one that fails."""
        super().__init__()
        self.what, self.every, self.calls, self.met = what, every, 0, 0

    def meet(self) -> None:
        self.calls += 1
        if self.calls % self.every == 0:
            self.met += 1
            raise fault(self.what)

    def open_input_stream(self, path: str, **options: Any) -> Any:
        self.meet()
        return super().open_input_stream(path, **options)

    def open_input_file(self, path: str) -> Any:
        self.meet()
        return Stale(self, super().open_input_file(path))

    def get_file_info(self, paths: Any) -> Any:
        self.meet()
        return super().get_file_info(paths)


class Stale:
    """An open file that fails for good after some reads; opened again, it would be a new one."""

    def __init__(self, disk: Faulty, file: Any) -> None:
        self.disk, self.file, self.reads = disk, file, 0

    def read_at(self, size: int, start: int) -> bytes:
        self.reads += 1
        if self.reads > 4:
            self.disk.met += 1
            raise fault(self.disk.what)
        return self.file.read_at(size, start)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses take no time. Returns those that were made."""
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    return pauses


@pytest.fixture(scope="module")
def packed_root(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(lasot_root, local(folder))
    return folder


def samples(config: Config, root: Root) -> list[tuple[Sample, list[str]]]:
    return TripletSource.from_config(config, Mixture.of_lasot(open_index(ALL, root), root)).samples(range(12))


def assert_same(ours: list[tuple[Sample, list[str]]], theirs: list[tuple[Sample, list[str]]]) -> None:
    for (one, problems), (other, other_problems) in zip(ours, theirs, strict=True):
        assert problems == other_problems == []
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("form", "what"), [*(("tree", what) for what in PASSING), *(("packed", what) for what in FEW)])
def test_samples_are_those_of_a_disk_without_faults(
    what: str, form: str, tiny_config: Config, lasot_root: Path, packed_root: Path
) -> None:
    root = lasot_root if form == "tree" else packed_root
    disk = Faulty(what)
    assert_same(samples(tiny_config, Root(disk, str(root))), samples(tiny_config, local(root)))
    assert disk.met > 5


@contextmanager
def once(monkeypatch: pytest.MonkeyPatch, target: str, what: Callable[..., Any]) -> Iterator[list[int]]:
    """The function `target` does what it should, but instead of its second call `what` is done first."""
    module, _, name = target.rpartition(".")
    real = {"cv2": cv2, "os": os}[module].__dict__[name]
    calls: list[int] = []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls))
        return what() if len(calls) == 2 else real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(target, call)
        yield calls
    assert len(calls) > 2


def raise_(error: BaseException) -> Any:
    raise error


def no_memory_in_opencv() -> Any:
    error = cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 1 bytes")
    error.code = cv2.Error.StsNoMem
    raise error


@pytest.mark.parametrize("what", [no_memory_in_opencv, lambda: raise_(MemoryError())], ids=["opencv", "python"])
def test_want_of_memory_while_decoding_changes_no_sample(
    what: Callable[..., Any], tiny_config: Config, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqtrack.data.decoding._import_nvimgcodec", lambda: None)
    with once(monkeypatch, "cv2.imdecode", what):
        ours = samples(tiny_config, local(lasot_root))
    assert_same(ours, samples(tiny_config, local(lasot_root)))


def test_a_decoder_that_gives_nothing_for_want_of_memory_is_asked_again(
    tiny_config: Config, lasot_root: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    """As those of TIFF, AVIF and JPEG 2000 do."""
    data = (lasot_root / "coin/coin-1/img/00000001.jpg").read_bytes()
    real, answers = cv2.imdecode, [None]
    monkeypatch.setattr("cv2.imdecode", lambda *given: answers.pop() if answers else real(*given))
    monkeypatch.setattr("seqtrack.data.decoding.np.empty", lambda *_: raise_(MemoryError()))
    assert FrameDecoder(by_region=False).open("a.jpg", data).width == 128
    assert len(no_pauses) == 1


@pytest.mark.parametrize("what", FEW)
def test_listing_and_annotations_are_read_in_spite_of_it(
    what: str, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Faulty(what)
    with once(monkeypatch, "os.scandir", lambda: raise_(fault(what))):
        index = open_index(ALL, Root(disk, str(lasot_root)))
    assert index.fingerprint == open_index(ALL, local(lasot_root)).fingerprint
    assert disk.met > 2


@pytest.mark.parametrize("what", FEW)
def test_frames_of_a_benchmark_and_of_a_folder_are_read_in_spite_of_it(
    what: str, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Faulty(what)
    open_frame = opener(Root(disk, str(lasot_root)))
    assert {open_frame(f"coin/coin-1/img/{number:08d}.jpg").width for number in range(1, 7)} == {128}
    assert disk.met == 2
    read, faults = Path.read_bytes, [fault(what)]
    monkeypatch.setattr(Path, "read_bytes", lambda self: raise_(faults.pop()) if faults else read(self))
    assert len(list(open_source(str(lasot_root / "coin/coin-1")).shots())) == 30
    assert not faults


def test_a_benchmark_is_opened_in_spite_of_it(lasot_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with once(monkeypatch, "os.scandir", lambda: raise_(fault("ESTALE"))):
        assert len(open_benchmark(folder_of_sequences("mine"), str(lasot_root)).sequences) == 4


@pytest.mark.parametrize("what", FEW)
def test_a_fault_that_lasts_ends_the_run_with_file_and_reason(
    what: str, tiny_config: Config, lasot_root: Path, packed_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCAL_PATIENCE", 0.0)
    monkeypatch.setattr(storage, "DENIED_PATIENCE", 0.0)
    monkeypatch.setattr(Faulty, "meet", lambda self: raise_(fault(self.what)))
    name = os.strerror(errno.ENOMEM if what == "memory" else getattr(errno, what))
    for folder, file in ((lasot_root, r"img/\d{8}\.jpg"), (packed_root, r"frames/(coin|kite)-000\.parquet")):
        index, root = open_index(ALL, local(folder)), Root(Faulty(what), str(folder))
        source = TripletSource.from_config(tiny_config, Mixture.of_lasot(index, root))
        with pytest.raises(StoreError, match=rf"{folder}/\S*{file}: cannot be read \(.*{name}"):
            make_block(source, StreamPlan.from_config(tiny_config, 1), [0], 0)
    with pytest.raises(DataError, match=f"{lasot_root}.*cannot be read"):
        build_index(ALL, Root(Faulty(what), str(lasot_root)))


@pytest.mark.parametrize("what", NO_FILE)
def test_that_there_is_no_file_is_known_at_once(
    what: str, tiny_config: Config, lasot_root: Path, no_pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, disk = open_index(ALL, local(lasot_root)), Faulty(what, every=7)
    found = TripletSource.from_config(tiny_config, Mixture.of_lasot(index, Root(disk, str(lasot_root)))).samples(
        range(4)
    )
    assert any(line.endswith(".jpg is missing") for _, problems in found for line in problems)
    assert not no_pauses


@pytest.mark.parametrize("kind", ["folder", "link to a folder", "link to itself", "below a file", "nothing"])
def test_what_is_no_file_on_a_real_disk(kind: str, tmp_path: Path, no_pauses: list[float]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link to a folder").symlink_to(tmp_path / "folder")
    (tmp_path / "link to itself").symlink_to(tmp_path / "link to itself")
    place = "file/below" if kind == "below a file" else kind
    with pytest.raises(FileNotFoundError):
        read_bytes(local(tmp_path), place)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / place)
    with pytest.raises(DataError, match="cannot be read"):
        SpanReader(local(tmp_path)).read(Span(place, 0, 1))
    assert not no_pauses


def test_permission_that_is_denied_is_not_waited_for_as_long_as_a_disk_that_fails(
    lasot_root: Path, no_pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(second) / 10 for second in range(1000))
    monkeypatch.setattr(patience.time, "monotonic", lambda: next(clock))
    counts = []
    for what in ("EACCES", "EIO"):
        no_pauses.clear()
        monkeypatch.setattr("os.scandir", lambda path, what=what: raise_(fault(what)))
        with pytest.raises(DataError, match="cannot be read"):
            list_folder(local(lasot_root), str(lasot_root))
        counts.append(len(no_pauses))
    assert counts[0] < counts[1] / 2


def test_a_process_that_may_open_no_more_files_goes_on_when_it_may(
    tiny_config: Config, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real error of this system."""
    source = TripletSource.from_config(
        tiny_config, Mixture.of_lasot(open_index(ALL, local(lasot_root)), local(lasot_root))
    )
    whole = source.samples(range(4))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    opened: list[int] = []
    with suppress(OSError):
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    met = threading.Event()

    def release(_: float) -> None:
        met.set()
        while opened:
            os.close(opened.pop())

    monkeypatch.setattr(patience.time, "sleep", release)
    try:
        assert_same(source.samples(range(4)), whole)
    finally:
        release(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert met.is_set()
