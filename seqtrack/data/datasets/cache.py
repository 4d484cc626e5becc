"""Keeps finished indexes of large data sets in the user's cache folder, so that each is built once.

The folder is `SEQTRACK_CACHE`, or `seqtrack` in `XDG_CACHE_HOME`, or `~/.cache/seqtrack`. A file holds one index as
Arrow IPC and is mapped into memory, not read. Its name has two digests. One is of all that the index was made from: the
place, and path, size and time of change of every annotation file. The other is of the file itself, so that a damaged
file is noticed and written anew. Without a folder that can be written, the index is built at every start.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.storage import Root, file_infos
from seqtrack.failures import explain

FORMAT = 1
"""Increase this when the same files give another index."""
VARIABLE = "SEQTRACK_CACHE"


def cache_folder() -> Path:
    """Where indexes are kept. It need not exist. Raises RuntimeError if there is no home folder."""
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser().absolute()
    if (standard := os.environ.get("XDG_CACHE_HOME")) and Path(standard).is_absolute():
        return Path(standard, "seqtrack")
    return Path.home() / ".cache/seqtrack"


def stamps(root: Root, paths: Sequence[str]) -> Iterable[str]:
    """A line for each file below the root, with its size and time of change; another one if the file changes."""
    return (f"{path} {info.size} {info.mtime_ns}" for path, info in zip(paths, file_infos(root, paths), strict=True))


def kept_index(
    name: str,
    root: Root,
    made_from: Callable[[], Iterable[str]],
    build: Callable[[], FrameIndex],
    note: Callable[[str], None] = lambda line: None,
) -> FrameIndex:
    """The index of the data set `name` at this root from the cache, or else what `build` gives, which is then kept.

    `made_from`: lines that differ when the index would. Raises what they raise. `note` gets a line if the index cannot
    be kept.
    """
    digest = hashlib.sha256()
    for line in made_from():
        digest.update(f"{line}\n".encode())
    place = hashlib.sha256(f"{root.filesystem.type_name} {root.path}".encode()).hexdigest()[:12]
    try:
        folder = cache_folder()
    except RuntimeError:  # without a home there is nothing to look into
        return build()
    stem = f"{name}-{place}-{FORMAT}-{digest.hexdigest()[:24]}"
    index = _read(folder, stem)
    if index is None:
        index = build()
        try:
            path = _write(folder, stem, index)
        except (OSError, pa.ArrowException) as error:
            note(f"the index of {name} is built anew at every start: {folder} cannot be written ({explain(error)})")
            return index
        for old in folder.glob(f"{name}-{place}-*.arrow"):
            if old != path:
                with suppress(OSError):  # another user's, in a folder that is shared
                    old.unlink(missing_ok=True)
    return index


def _read(folder: Path, stem: str) -> FrameIndex | None:
    """The index whose file's name begins with `stem`; None if there is no such file, or if it is damaged."""
    for path in folder.glob(f"{stem}-*.arrow"):
        try:
            with pa.memory_map(str(path)) as file:
                if _name(stem, hashlib.sha256(file.read_buffer())) == path.name:
                    return FrameIndex(pa.ipc.open_file(file).read_all())
        except (OSError, pa.ArrowException):
            continue
    return None


def _write(folder: Path, stem: str, index: FrameIndex) -> Path:
    """Writes the file, which appears only when it is complete. Returns its path. Raises OSError or ArrowException."""
    folder.mkdir(parents=True, exist_ok=True)
    table = index.table.combine_chunks()
    partial = folder / f".{stem}.{uuid.uuid4().hex}.partial"  # several processes may write the same file
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with partial.open("rb") as file:  # mapped into memory, it would count beside the index
            path = folder / _name(stem, hashlib.file_digest(file, "sha256"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _name(stem: str, content: hashlib._Hash) -> str:
    return f"{stem}-{content.hexdigest()[:24]}.arrow"
