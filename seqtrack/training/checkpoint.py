"""A checkpoint on disk: a folder that is written whole or not at all, found again, and verified before it is used.

    checkpoint_epoch_0003/                  after epoch 3; checkpoint_epoch_0003_step_000500: 500 steps later
      model.safetensors                     weights
      state.pt                              optimizer, LR scheduler, position, the epoch's meter, every step's metrics
      rng_rank_0000.pt …                    each worker's random generators
      meta.json                             the readable part: settings, position, data set, versions
      SHA256SUMS                            of all these files, written last: a folder without it is unfinished

Everything is loaded as plain data: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from pyarrow import fs
from safetensors import SafetensorError

from seqtrack.model.weights import META_FILE, MODEL_FILE, Weights, save_safetensors

STATE_FILE = "state.pt"
SUMS_FILE = "SHA256SUMS"
NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written. The message names it and what is wrong."""


class Contents(NamedTuple):
    """What a checkpoint holds, in host memory."""

    model: Weights
    training: dict[str, Any]
    """Plain values and tensors."""
    generators: Sequence[dict[str, Any]]
    """By rank."""
    meta: dict[str, Any]
    """What JSON can hold."""


def checkpoint_name(epoch: int, step: int) -> str:
    """The folder's name: `epoch` whole epochs and `step` steps of the next are done."""
    return f"checkpoint_epoch_{epoch:04d}" + (f"_step_{step:06d}" if step else "")


def write_checkpoint(contents: Contents, filesystem: fs.FileSystem, folder: str) -> None:
    """Writes the folder, whole or not at all, replacing one of that name. Raises CheckpointError."""
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            _write_local(contents, Path(folder))
        else:
            _write_remote(contents, filesystem, folder)
    except (OSError, RuntimeError, SafetensorError) as error:  # on a full disk each library raises its own kind
        raise CheckpointError(f"checkpoint {folder} cannot be written: {error}") from error


def _write_local(contents: Contents, folder: Path) -> None:
    """Under another name first: renaming makes it whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_files(contents, partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except RuntimeError as error:  # torch's words for a full disk do not say so
        free = shutil.disk_usage(partial).free / 2**20
        raise OSError(f"{str(error).splitlines()[0]} ({free:.1f} MiB are free there)") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_remote(contents: Contents, filesystem: fs.FileSystem, folder: str) -> None:
    """Object stores cannot rename: SHA256SUMS, the last to come, makes it whole."""
    with tempfile.TemporaryDirectory() as directory:
        _write_files(contents, Path(directory))
        if filesystem.get_file_info(folder).type == fs.FileType.Directory:
            filesystem.delete_dir(folder)
        filesystem.create_dir(folder, recursive=True)
        for path in sorted(Path(directory).iterdir(), key=lambda path: path.name == SUMS_FILE):
            fs.copy_files(str(path), f"{folder}/{path.name}", fs.LocalFileSystem(), filesystem)


@contextmanager
def local_copy(filesystem: fs.FileSystem, folder: str) -> Iterator[Path]:
    """A checkpoint's folder as one on this machine: itself, or a copy for the time of the block."""
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as directory:
        fs.copy_files(folder, directory, filesystem, fs.LocalFileSystem())
        yield Path(directory)


def _write_files(contents: Contents, directory: Path) -> None:
    save_safetensors(contents.model, directory / MODEL_FILE)
    torch.save(contents.training, directory / STATE_FILE)
    for rank, states in enumerate(contents.generators):
        torch.save(states, directory / generator_file(rank))
    (directory / META_FILE).write_text(json.dumps(contents.meta, indent=1) + "\n")
    sums = [f"{_digest(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / SUMS_FILE).write_text("".join(sums))


def verify_checkpoint(directory: Path, shown: str) -> dict[str, Any]:
    """Compares every file with SHA256SUMS and returns `meta.json`.

    Raises CheckpointError naming the file that is missing or differs; `shown` is what the message calls the folder.
    """
    sums_file = directory / SUMS_FILE
    try:
        lines = [re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line) for line in sums_file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{shown}/{SUMS_FILE} cannot be read: not a checkpoint, or an unfinished one") from error
    sums = {line[2]: line[1] for line in lines if line is not None}
    if None in lines or not {MODEL_FILE, STATE_FILE, META_FILE} <= sums.keys():
        raise CheckpointError(f"{shown}/{SUMS_FILE} is damaged: not a list of the checkpoint's files")
    for name, expected in sums.items():
        if not (directory / name).is_file():
            raise CheckpointError(f"{shown}/{name} is missing")
        if _digest(directory / name) != expected:
            raise CheckpointError(f"{shown}/{name} is damaged: its SHA-256 is not the one in {SUMS_FILE}")
    return json.loads((directory / META_FILE).read_text())


def load_plain(path: Path) -> dict[str, Any]:
    """A file of plain values and tensors. Raises CheckpointError naming it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through what zip, pickle and storage code raise
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def generator_file(rank: int) -> str:
    return f"rng_rank_{rank:04d}.pt"


def whole_checkpoints(filesystem: fs.FileSystem, run_folder: str) -> list[str]:
    """Names of the finished checkpoints in a run's folder, in the order of their positions."""
    found: dict[tuple[int, int], str] = {}
    # One listing of everything: object stores need not know a folder as such.
    for info in filesystem.get_file_info(fs.FileSelector(run_folder, allow_not_found=True, recursive=True)):
        folder = PurePosixPath(info.path).parent
        match = NAME.fullmatch(folder.name)
        if match and info.base_name == SUMS_FILE and folder.parent == PurePosixPath(run_folder):
            found[int(match[1]), int(match[2] or 0)] = folder.name
    return [found[position] for position in sorted(found)]


def find_checkpoint(filesystem: fs.FileSystem, path: str, shown: str) -> str:
    """The folder that `path` means: a checkpoint; a run's folder, or `<run>/latest`; `<run>/3`, its epoch 3.

    Raises CheckpointError naming what there is; `shown` is what the message calls the path.
    """
    path = path.rstrip("/")
    if NAME.fullmatch(path.rpartition("/")[2]) or _is_file(filesystem, f"{path}/{SUMS_FILE}"):
        return path
    run_folder, _, last = path.rpartition("/")
    if not last.isdigit() and last != "latest":
        run_folder, last = path, "latest"
    return f"{run_folder}/{find_name(whole_checkpoints(filesystem, run_folder), last, shown)}"


def find_name(names: Sequence[str], wanted: str, shown: str) -> str:
    """The one of a run's checkpoints, given in their order, that `wanted` means: its name, `latest`, or an epoch.

    Raises CheckpointError naming what there is.
    """
    if not names:
        raise CheckpointError(f"{shown}: no finished checkpoint there")
    name = checkpoint_name(int(wanted), 0) if wanted.isdigit() else names[-1] if wanted == "latest" else wanted
    if name not in names:
        raise CheckpointError(f"{shown}: no {name} there, but {', '.join(names[-5:])}")
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return filesystem.get_file_info(path).type == fs.FileType.File
