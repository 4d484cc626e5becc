"""The benchmarks by name, and which of their sequences are at a place.

Copies are often partial, so a benchmark is opened with what is there, and says what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from seqtrack.data.datasets.lasot import natural_key, read_split
from seqtrack.data.datasets.layout import nearest, packed_archives
from seqtrack.data.packed import is_packed
from seqtrack.data.stamp import DIGITS
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, first_of, list_folder, open_root
from seqtrack.errors import InputError, did_you_mean
from seqtrack.evaluation.layouts import (
    Got10kPart,
    LasotTree,
    Layout,
    ListedSequences,
    PackedTree,
    Tnl2kTest,
    TrackingNetTest,
    read_table,
)
from seqtrack.evaluation.sequences import BenchmarkSequence, Incomplete
from seqtrack.evaluation.stamps import stamp_sequences
from seqtrack.failures import explain


@dataclass(frozen=True)
class Benchmark:
    """A set of sequences on which trackers are compared."""

    name: str
    title: str
    """The benchmark's name as people write it."""
    layout: Layout
    protocol: str = "pytracking"
    """The protocol in which papers print its numbers."""
    settings: str = "DEFAULT"
    """Its key in TEST.UPDATE_INTERVALS and TEST.UPDATE_THRESHOLD."""
    sequences: Callable[[], Sequence[str]] = field(default=tuple)
    """Names of all its sequences, if they are known here."""
    size: int | None = None
    """Number of its sequences, where their names are not known here."""


LASOT_EXTENSION = (
    "atv badminton cosplay dancingshoe footbag frisbee jianzi lantern misc opossum paddle raccoon rhino skatingshoe "
    "wingsuit"
)
"""Its classes, of ten sequences each."""


def _got10k(part: str) -> Callable[[], Sequence[str]]:
    return lambda: [f"GOT-10k_{part.capitalize()}_{number:06d}" for number in range(1, 181)]


def _listed(table: str) -> Callable[[], Sequence[str]]:
    return lambda: list(read_table(table))


BENCHMARKS = {
    one.name: one
    for one in (
        Benchmark(
            "lasot",
            "LaSOT test",
            LasotTree(attributes="lasot_attributes.csv"),
            settings="LASOT",
            sequences=lambda: read_split("lasot_test"),
        ),
        Benchmark(
            "lasot_ext",
            "LaSOT-ext",
            LasotTree(),
            settings="LASOT_EXTENSION_SUBSET",
            sequences=lambda: [f"{name}-{number}" for name in LASOT_EXTENSION.split() for number in range(1, 11)],
        ),
        Benchmark("got10k_val", "GOT-10k val", Got10kPart("val"), "got10k", sequences=_got10k("val")),
        Benchmark("got10k_test", "GOT-10k test", Got10kPart("test"), "got10k", "GOT10K_TEST", _got10k("test")),
        Benchmark("trackingnet", "TrackingNet test", TrackingNetTest(), "trackingnet", "TRACKINGNET", size=511),
        Benchmark(
            "otb100",
            "OTB100",
            ListedSequences("otb100.csv", "<Sequence>/groundtruth_rect.txt and <Sequence>/img/0001.jpg"),
            settings="OTB",
            sequences=_listed("otb100.csv"),
        ),
        Benchmark(
            "uav123",
            "UAV123",
            ListedSequences(
                "uav123.csv", "anno/UAV123/<sequence>.txt and data_seq/UAV123/<folder>/000001.jpg", prefix="uav_"
            ),
            settings="UAV",
            sequences=_listed("uav123.csv"),
        ),
        Benchmark(
            "nfs",
            "NFS (30 frames/s)",
            ListedSequences("nfs.csv", "<n>/30/<n>.txt and <n>/30/<n>/00001.jpg", prefix="nfs_", vatic=True),
            settings="NFS",
            sequences=_listed("nfs.csv"),
        ),
        Benchmark("tnl2k", "TNL2K test", Tnl2kTest(), settings="TNL2K", size=700),
    )
}


@dataclass(frozen=True)
class BenchmarkData:
    """The sequences of a benchmark that are at a place."""

    benchmark: Benchmark
    root: Root
    sequences: tuple[BenchmarkSequence, ...]
    missing: dict[str, str]
    """Name of a sequence that is not there, or not complete -> why."""
    size: int | None
    """Number of sequences of the whole benchmark, if it is known."""

    @cached_property
    def stamps(self) -> dict[str, str]:
        """Name of each sequence -> the stamp of its boxes and frames. Raises DataError if these cannot be read."""
        return stamp_sequences(self.root, self.sequences)

    @cached_property
    def stamp(self) -> str:
        """One for all sequences. Raises DataError as `stamps`."""
        return hashlib.sha256(json.dumps(self.stamps).encode()).hexdigest()[:DIGITS]

    @property
    def coverage(self) -> str:
        """`278 of 280 sequences`."""
        return coverage(len(self.sequences), self.size)

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each: which sequences are missing, and what others lack."""
        lines = []
        if self.size is not None and len(self.sequences) < self.size:
            names = [f"{name} ({why})" for name, why in self.missing.items()]
            which = f"; {len(names)} are missing, {first_of(names)}" if names else ""
            lines.append(f"{self.benchmark.title}: {self.coverage} at {self.root.path}{which}")
        lacking: dict[str, list[str]] = {}
        for one in self.sequences:
            for note in one.notes:
                lacking.setdefault(note, []).append(one.name)
        for note, names in lacking.items():
            lines.append(f"{len(names)} of {len(self.sequences)} sequences have {note}, {first_of(names)}")
        return lines

    def only(self, names: Sequence[str]) -> BenchmarkData:
        """A part of the sequences, in the order of `names`. Raises InputError if one is not there."""
        there = {one.name: one for one in self.sequences}
        for name in names:
            if name not in there:
                why = f" ({self.missing[name]})" if name in self.missing else did_you_mean(name, there)
                raise InputError(f"{self.benchmark.title} at {self.root.path}: no sequence {name}{why}")
        chosen = tuple(there[name] for name in dict.fromkeys(names))
        return replace(self, sequences=chosen, size=self.size or len(self.sequences))


def coverage(there: int, size: int | None) -> str:
    """How many sequences were found, of how many."""
    return f"{there} sequences (all that were found)" if size is None else f"{there} of {size} sequences"


def benchmark_named(name: str) -> Benchmark:
    """Raises InputError if there is none of this name."""
    if name not in BENCHMARKS:
        raise InputError(
            f"benchmark {name}: known are {', '.join(BENCHMARKS)}{did_you_mean(name, BENCHMARKS)}; a folder in LaSOT's "
            "layout can have any name where its place is given"
        )
    return BENCHMARKS[name]


def folder_of_sequences(name: str) -> Benchmark:
    """A benchmark of one's own: any folder in LaSOT's layout, whose flags may be missing."""
    return Benchmark(name, name, LasotTree(may_lack_flags=True))


def open_benchmark(benchmark: Benchmark, location: str, with_frames: bool = True) -> BenchmarkData:
    """Reads the annotations at a folder or URI and, if asked for, finds the frames.

    Raises DataError if an annotation cannot be read, or if no sequence is there; then it says what was expected, what
    was found, and which folder above or below would fit.
    """
    root = open_root(location, f"{benchmark.title}:")
    try:
        return _open(benchmark, root, with_frames)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{root.path}: cannot be read ({explain(error)})") from error


def _open(benchmark: Benchmark, root: Root, with_frames: bool) -> BenchmarkData:
    layout = benchmark.layout
    if isinstance(layout, LasotTree) and is_packed(root):
        layout = PackedTree.open(root, layout, with_frames)
    known = list(benchmark.sequences())
    there = set(layout.names(root))
    wanted = known or sorted(there, key=natural_key)
    found = [name for name in wanted if name in there]
    if not found:
        raise DataError(_nothing_there(benchmark, layout, root, set(known)))

    def read(name: str) -> BenchmarkSequence | str:
        try:
            return layout.read(root, name, with_frames)
        except Incomplete as lack:
            return str(lack)

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        answers = dict(zip(found, pool.map(read, found), strict=True))
    sequences = tuple(answer for answer in answers.values() if isinstance(answer, BenchmarkSequence))
    said = {name: answers.get(name, "not there") for name in wanted}
    missing = {name: why for name, why in said.items() if isinstance(why, str)}
    if not sequences:
        lacks = [f"{name} ({missing[name]})" for name in found]
        what = f"none of the {len(found)} sequences of {benchmark.title} there is complete"
        raise DataError(f"{root.path}: {what}, {first_of(lacks)}")
    size = len(known) or benchmark.size or (len(found) if missing else None)
    return BenchmarkData(benchmark, root, sequences, missing, size)


def _nothing_there(benchmark: Benchmark, layout: Layout, root: Root, known: set[str]) -> str:
    def fits(path: str) -> bool:
        try:
            names = layout.names(Root(root.filesystem, path))
        except (DataError, OSError):  # what is being looked for is only a hint
            return False
        return bool(known.intersection(names) if known else names)

    names = [entry.name for entry in list_folder(root, root.path)]
    hints = packed_archives(root)
    if not isinstance(layout, PackedTree) and (fitting := nearest(root, fits)) is not None:
        hints.append(f"{fitting} would fit")
    found = f"found {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "the folder is empty"
    return "; ".join([f"{root.path}: no sequence of {benchmark.title}; expected {layout.expected}", found, *hints])
