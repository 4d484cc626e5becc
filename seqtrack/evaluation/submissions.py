"""The zip files that the servers of GOT-10k and TrackingNet take.

Most complaints about these servers are about the format, so a zip is checked before it is written: names, number of
lines, commas, times. The same check reads a zip that was made elsewhere.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from seqtrack.data.datasets.annotations import FaultyText
from seqtrack.data.storage import DataError, first_of
from seqtrack.data.zips import files_in
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.results import Track, parse_times, parse_track
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.failures import explain
from seqtrack.files import write_atomically
from seqtrack.locations import filesystem_at

Files = Mapping[str, bytes]
"""Name in a zip -> content."""
_BOX = re.compile(r"-?\d+(\.\d+)?(,-?\d+(\.\d+)?){3}")
LARGEST_ZIP = 1 << 30
"""Bytes in all that a zip may unpack to: TrackingNet's results are about 10 MB."""


def write_got10k_zip(location: str, tracker: str, data: BenchmarkData, tracks: Mapping[str, Track]) -> None:
    """`<tracker>/<sequence>/<sequence>_001.txt` and `_time.txt` for all sequences. Raises InputError, OSError."""
    files = {}
    for name, track in tracks.items():
        place = f"{tracker}/{name}/{name}"
        files[f"{place}_001.txt"] = _boxes(track, decimals=3)
        if track.seconds is not None:
            files[f"{place}_time.txt"] = "".join(f"{value:.8f}\n" for value in track.seconds.tolist()).encode()
    _check_complete(data)
    check_got10k(files, data.sequences, location)
    _write(location, files)


def write_trackingnet_zip(location: str, data: BenchmarkData, tracks: Mapping[str, Track]) -> None:
    """`<sequence>.txt` for all sequences. Raises InputError, OSError."""
    files = {f"{name}.txt": _boxes(track, decimals=2) for name, track in tracks.items()}
    _check_complete(data)
    check_trackingnet(files, data.sequences, location)
    _write(location, files)


def read_zip(location: str) -> dict[str, bytes]:
    """What is in a zip, without folders. Raises DataError."""
    try:
        filesystem, path = filesystem_at(location)
        with filesystem.open_input_file(path) as file, zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            infos = files_in(archive.infolist(), lambda fault: DataError(f"{location}: {fault}")).values()
            if sum(info.file_size for info in infos) > LARGEST_ZIP:
                raise DataError(f"{location}: would unpack to more than {LARGEST_ZIP >> 30} GB")
            return {info.filename: archive.read(info) for info in infos}
    except InputError:
        raise
    except Exception as error:  # zipfile and pyarrow raise many types for a file that is damaged
        raise DataError(f"{location}: cannot be read as a zip ({explain(error)})") from error


def check_got10k(files: Files, sequences: Sequence[BenchmarkSequence], location: str) -> None:
    """Raises DataError, which names the file and the line, unless GOT-10k's server takes it."""
    roots = {name.partition("/")[0] for name in files}
    if len(roots) != 1 or any("/" not in name for name in files):
        raise DataError(
            f"{location}: must hold one folder, named after the tracker; found {', '.join(sorted(roots)[:5])}"
        )
    (tracker,) = roots
    if re.search(r"\s", tracker) or not tracker:
        raise DataError(f"{location}: the tracker's name {tracker!r} must not have spaces")
    wanted = {}
    for one in sequences:
        wanted[f"{tracker}/{one.name}/{one.name}_001.txt"] = one
        wanted[f"{tracker}/{one.name}/{one.name}_time.txt"] = one
    _check_names(files, list(wanted), location)
    for name, one in wanted.items():
        if name.endswith("_001.txt"):
            _check_boxes(files[name], len(one), f"{location}: {name}")
        else:
            _check_times(files[name], len(one), f"{location}: {name}")


def check_trackingnet(files: Files, sequences: Sequence[BenchmarkSequence], location: str) -> None:
    """Raises DataError, which names the file and the line, unless TrackingNet's server takes it."""
    names = {name: name.rpartition("/")[2] for name in files}
    doubled = sorted(base for base in set(names.values()) if list(names.values()).count(base) > 1)
    if doubled:
        raise DataError(f"{location}: {len(doubled)} names are there more than once, {first_of(doubled)}")
    contents = {base: files[name] for name, base in names.items()}
    _check_names(contents, [f"{one.name}.txt" for one in sequences], location)
    for one in sequences:
        _check_boxes(contents[f"{one.name}.txt"], len(one), f"{location}: {one.name}.txt")


def _check_complete(data: BenchmarkData) -> None:
    if data.size is not None and len(data.sequences) != data.size:
        raise InputError(f"{data.benchmark.title}: {data.coverage}; its server takes results of all sequences only")


def _check_names(files: Files, wanted: Sequence[str], location: str) -> None:
    if missing := [name for name in wanted if name not in files]:
        raise DataError(f"{location}: {len(missing)} of {len(wanted)} files are missing, {first_of(missing)}")
    if more := sorted(set(files) - set(wanted)):
        raise DataError(f"{location}: {len(more)} files do not belong there, {first_of(more)}")


def _check_boxes(content: bytes, frames: int, where: str) -> None:
    try:
        _, surplus = parse_track(content, frames)
    except FaultyText as fault:
        raise DataError(f"{where}: {fault}") from fault
    if surplus:
        raise DataError(f"{where}: has {frames + surplus} boxes, and the sequence has {frames} frames")
    for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
        if not _BOX.fullmatch(line):
            raise DataError(f"{where}: line {number} is {line[:60]!r}, not four numbers with commas and without spaces")


def _check_times(content: bytes, frames: int, where: str) -> None:
    try:
        parse_times(content, frames)
    except FaultyText as fault:
        raise DataError(f"{where}: {fault}") from fault


def _boxes(track: Track, decimals: int) -> bytes:
    rounded = np.round(track.boxes_xywh, decimals) + 0.0  # + 0.0: no -0
    return "".join(",".join(f"{value:.{decimals}f}" for value in box) + "\n" for box in rounded.tolist()).encode()


def _write(location: str, files: Files) -> None:
    """The same results give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)  # of 1980
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, files[name])
    filesystem, path = filesystem_at(location)
    write_atomically(filesystem, path, buffer.getvalue())
