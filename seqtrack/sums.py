"""Checkpoints by their names and sums: which of a run's are finished, and whether every byte of one is as it was.

`checkpoint_epoch_0003` is after epoch 3, `checkpoint_epoch_0003_step_000500` 500 steps later. The `SHA256SUMS` of all
its files (`runs/checkpoint.py`) is written last, so a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.meta import META_FILE, MetaError, parse_meta

if TYPE_CHECKING:
    from pyarrow import fs

MODEL_FILE = "model.safetensors"
"""Weights in a run's checkpoint folder, and in repositories on the Hub."""
SETTINGS_FILE = "config.yaml"
"""File with the settings of a run: in its folder, its repository on the Hub, and its MLflow artifacts."""
STATE_FILE = "state.pt"
GENERATOR_FILE = re.compile(r"rng_rank_\d+\.pt")
SUMS_FILE = "SHA256SUMS"
NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?")
REQUESTS_AT_ONCE = 32


class CheckpointError(InputError):
    """A checkpoint or model that cannot be found, used or written. The message names it and what is wrong."""


def checkpoint_name(epoch: int, step: int) -> str:
    """Name of the folder after `epoch` whole epochs and `step` steps of the next one."""
    return f"checkpoint_epoch_{epoch:04d}" + (f"_step_{step:06d}" if step else "")


def find_name(names: Sequence[str], wanted: str, shown: str) -> str:
    """Resolves `wanted` (a checkpoint's name, `latest`, or an epoch's number) to one of a run's checkpoint names.

    `names`: the oldest first; `shown`: how errors name the place. Raises CheckpointError listing the names that exist.
    """
    if not names:
        raise CheckpointError(f"{shown}: no finished checkpoint there")
    name = checkpoint_name(int(wanted), 0) if wanted.isdecimal() else names[-1] if wanted == "latest" else wanted
    if name not in names:
        raise CheckpointError(f"{shown}: no {name} there, but {', '.join(names[-5:])}")
    return name


def in_order(names: Iterable[str]) -> list[str]:
    """Those that are names of checkpoints, the one with the fewest steps first."""
    matches = [match for name in names if (match := NAME.fullmatch(name))]
    return [match[0] for match in sorted(matches, key=lambda match: (int(match[1]), int(match[2] or 0)))]


def whole_names(filesystem: fs.FileSystem, folder: str, known: Collection[str] = ()) -> list[str]:
    """Names of the finished checkpoints in a folder, the oldest first.

    `known`: those that the caller found before. But for the newest of them, they are only looked for, and not asked
    for their `SHA256SUMS`. So one that is just being written again counts, as it may be at any time after this answer:
    opening a checkpoint verifies it. Raises OSError.
    """
    from pyarrow import fs

    # Beside checkpoints there may be an evaluation's tens of thousands of result files: they are not listed. But
    # pyarrow's client of Google's store shows a folder there only if it has an entry of its own; copied ones have none.
    recursive = filesystem.type_name == "gcs"
    infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))
    if recursive:
        sums = (PurePosixPath(info.path).relative_to(folder).parts for info in infos)
        return in_order(name for name, *file in sums if file == [SUMS_FILE])
    names = in_order(info.base_name for info in infos)
    before = set(known)
    settled = set([name for name in names if name in before][:-1])  # the newest is asked again
    asked = [name for name in names if name not in settled]
    files = [f"{folder}/{name}/{SUMS_FILE}" for name in asked]
    if isinstance(filesystem, fs.LocalFileSystem):
        found = filesystem.get_file_info(files)
    else:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:  # a store is asked for one file after the other
            found = list(pool.map(filesystem.get_file_info, files))
    unfinished = {name for name, info in zip(asked, found, strict=True) if info.type != fs.FileType.File}
    return [name for name in names if name not in unfinished]


def verify_checkpoint(directory: Path, shown: str) -> dict[str, Any]:
    """Compares every file with SHA256SUMS and returns `meta.json`, whose entries are checked.

    Raises CheckpointError naming the file that is missing, differs or is not listed; `shown`: how the message names the
    folder.
    """
    sums = read_sums(directory / SUMS_FILE, f"{shown}/{SUMS_FILE}")
    if not {MODEL_FILE, STATE_FILE, META_FILE} <= sums.keys():
        raise CheckpointError(f"{shown}/{SUMS_FILE} is damaged: not a list of the checkpoint's files")
    for name in sums:
        _compare(directory / name, sums[name], f"{shown}/{name}")
    unlisted = sorted(path.name for path in directory.iterdir() if GENERATOR_FILE.fullmatch(path.name))
    for name in unlisted:
        if name not in sums:  # a worker would take its random state from there
            raise CheckpointError(f"{shown}/{name}: is not in {SUMS_FILE}, so it does not belong to the checkpoint")
    return read_meta((directory / META_FILE).read_bytes(), shown)


def verify_file(path: Path, shown: str) -> None:
    """Compares a file with the SHA256SUMS of its folder, if it is in a checkpoint. Raises CheckpointError."""
    sums_file = path.with_name(SUMS_FILE)
    if not (sums_file.exists() or NAME.fullmatch(path.parent.name)):
        return
    sums = read_sums(sums_file, f"{shown}: its {SUMS_FILE}")
    if path.name not in sums:
        raise CheckpointError(f"{shown}: is not in {SUMS_FILE}, so it does not belong to the checkpoint")
    _compare(path, sums[path.name], shown)


def read_meta(content: str | bytes, shown: str) -> dict[str, Any]:
    """The entries of a checkpoint's `meta.json`. Raises CheckpointError; `shown`: how it names the checkpoint."""
    try:
        return parse_meta(content)
    except MetaError as error:
        raise CheckpointError(f"{shown}/{META_FILE}: {error}") from error


def read_sums(path: Path, shown: str) -> dict[str, str]:
    """Name -> SHA-256 of each file of a checkpoint. Raises CheckpointError; `shown`: how it names the file."""
    try:
        lines = [re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line) for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError as error:
        raise CheckpointError(f"{shown} is missing: not a checkpoint, or an unfinished or damaged one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{shown} cannot be read ({explain(error)})") from error
    if None in lines:
        raise CheckpointError(f"{shown} is damaged: not a list of the checkpoint's files")
    return {line[2]: line[1] for line in lines if line is not None}


def digest(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, expected: str, shown: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{shown} is missing")
    if digest(path) != expected:
        raise CheckpointError(f"{shown} is damaged: its SHA-256 is not the one in {SUMS_FILE}")
