"""Brings folders of files to another filesystem and back, so that nothing is lost without a word.

pyarrow's `copy_files` drops the error that a stream's close raises, and closing is when an object store takes a file,
or refuses it. So every stream here is closed explicitly, what the store then lists is compared with what was sent, and
what fails is tried again, because a store may fail or stall for minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path

from pyarrow import fs

from seqtrack.files import replacing, write_atomically
from seqtrack.patience import patiently

CHUNK = 8 << 20
"""Bytes that are read and sent at a time."""


def send(folder: Path, filesystem: fs.FileSystem, target: str, last: Collection[str] = ()) -> None:
    """Sends every file below a folder of this machine to a folder of any filesystem, and compares names and sizes.

    `last`: names of small files that follow when all others are there, and are read back. Files that the target has
    beside these stay. Raises OSError when a store refused a file for `patience.PATIENCE` seconds.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sent = {f"{target}/{name}": path for name, path in paths.items() if name not in last}
    for around in sorted({place.rpartition("/")[0] for place in sent} | {target}):
        patiently(partial(filesystem.create_dir, around, recursive=True), around)
    for place, path in sent.items():
        patiently(partial(send_file, path, filesystem, place), place)
    patiently(partial(_send_what_lacks, sent, filesystem, target), target)
    for name in last:
        write_atomically(filesystem, f"{target}/{name}", paths[name].read_bytes())


def send_file(source: Path, filesystem: fs.FileSystem, target: str) -> None:
    """Sends one file, once. It replaces the target whole. Raises OSError, also for what a store says at the end."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with replacing(Path(target)) as unfinished:
            shutil.copyfile(source, unfinished)
        return
    sink = filesystem.open_output_stream(target)
    with source.open("rb") as file:
        shutil.copyfileobj(file, sink, CHUNK)
    sink.close()


def fetch(filesystem: fs.FileSystem, source: str, folder: Path) -> None:
    """Copies every file below a folder of any filesystem to this machine, and compares sizes. Raises OSError."""
    selector = fs.FileSelector(source, recursive=True)
    for info in patiently(lambda: filesystem.get_file_info(selector), source):
        if info.type == fs.FileType.File:
            path = folder / info.path.removeprefix(source).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            patiently(partial(_fetch_file, filesystem, info, path), info.path)


def fetch_file(filesystem: fs.FileSystem, source: str, target: Path) -> None:
    """Copies one file to this machine, and compares its size. Raises OSError."""
    info = patiently(lambda: filesystem.get_file_info(source), source)
    patiently(partial(_fetch_file, filesystem, info, target), source)


def _fetch_file(filesystem: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    try:
        with filesystem.open_input_stream(info.path) as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)
    except FileNotFoundError as error:  # which would not be asked again
        raise OSError(f"{info.path}: was listed, and cannot be found ({error})") from error
    if path.stat().st_size != info.size:
        raise OSError(f"{info.path}: {path.stat().st_size} bytes arrived of {info.size}")


def _send_what_lacks(sent: dict[str, Path], filesystem: fs.FileSystem, target: str) -> None:
    """Compares what the filesystem lists with what was sent. Sends again what lacks, and raises OSError if it did."""
    infos = filesystem.get_file_info(fs.FileSelector(target, recursive=True, allow_not_found=True))
    sizes = {info.path: info.size for info in infos if info.type == fs.FileType.File}
    lacking = [place for place, path in sent.items() if sizes.get(place) != path.stat().st_size]
    for place in lacking:
        send_file(sent[place], filesystem, place)
    if lacking:
        there = f"{sizes[lacking[0]]} bytes" if lacking[0] in sizes else "nothing"
        raise OSError(f"{lacking[0]}: {sent[lacking[0]].stat().st_size} bytes were sent, and {there} is there")
