"""Checkpoints on disk: folders that are written whole or not at all, and verified before they are used.

    checkpoint_epoch_0003/                  after epoch 3; checkpoint_epoch_0003_step_000500: 500 steps later
      model.safetensors                     weights
      state.pt                              optimizer, LR scheduler, position, the epoch's meter, every step's metrics
      rng_rank_0000.pt …                    each worker's random generators
      meta.json                             the readable part: settings, position, data set, versions
      SHA256SUMS                            of all these files, written last: a folder without it is unfinished

Everything is loaded as plain data: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from pyarrow import ArrowException, fs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqtrack.config import SETTINGS_FILE
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import sync_folder, sync_tree
from seqtrack.locations import absolute, parent
from seqtrack.model.tensor_file import read_tensor_file
from seqtrack.model.weights import META_FILE, MODEL_FILE, Weights, WeightsError, check_finite, save_safetensors
from seqtrack.patience import patiently
from seqtrack.runs.folder import RunFolder
from seqtrack.transfer import fetch, send

STATE_FILE = "state.pt"
SUMS_FILE = "SHA256SUMS"
UNFINISHED = ".partial"
"""Ending of the name of a checkpoint on a disk that is being written, or removed."""
STARTING_META = {"step": int, "epoch": int, "steps_per_epoch": int, "config": dict, "dataset": dict, "versions": dict}
"""What `meta.json` must have for a run to start from the checkpoint."""
NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?")


class CheckpointError(InputError):
    """A checkpoint that cannot be used or written. The message names it and what is wrong."""


class StoredCheckpoint(NamedTuple):
    """A checkpoint in a run's folder."""

    run: RunFolder
    name: str

    @property
    def path(self) -> str:
        """Path within the run's filesystem."""
        return self.run.file(self.name)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The checkpoint as a folder on this machine: the folder itself, or a copy that is removed after the block."""
        if self.run.local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as directory:
            fetch(self.run.filesystem, self.path, Path(directory))
            yield Path(directory)


class OpenedCheckpoint(NamedTuple):
    """A checkpoint whose every byte has been verified, with its metadata and the shapes of its parameters."""

    stored: StoredCheckpoint
    meta: dict[str, Any]
    """Content of `meta.json`."""
    shapes: dict[str, tuple[int, ...]]
    """Name -> shape of each parameter of the model."""

    @property
    def path(self) -> str:
        return self.stored.path


class Contents(NamedTuple):
    """What a checkpoint holds, in host memory."""

    model: Weights
    training: dict[str, Any]
    """Content of `state.pt`: plain values and tensors."""
    generators: Sequence[dict[str, Any]]
    """States of the random generators, one entry per rank."""
    meta: dict[str, Any]
    """Content of `meta.json`: values that JSON can represent."""


def checkpoint_name(epoch: int, step: int) -> str:
    """Name of the folder after `epoch` whole epochs and `step` steps of the next one."""
    return f"checkpoint_epoch_{epoch:04d}" + (f"_step_{step:06d}" if step else "")


def write_checkpoint(contents: Contents, stored: StoredCheckpoint) -> None:
    """Writes the checkpoint whole or not at all, and replaces one of the same name. Raises CheckpointError.

    When it returns, the checkpoint outlasts a loss of power, or the store has shown that it has every byte. What would
    be refused on loading is refused here, before anything is written.
    """
    try:
        check_contents(contents)
        if stored.run.local:
            _write_local(contents, Path(stored.path))
        else:
            _write_remote(contents, stored.run.filesystem, stored.path)
    except (OSError, ArrowException, RuntimeError, SafetensorError, WeightsError) as error:  # of a full disk, too
        raise CheckpointError(f"checkpoint {stored.path} cannot be written: {error}") from error


def check_contents(contents: Contents) -> None:
    """Raises WeightsError if a number of the weights or of the optimizer's state is not finite."""
    check_finite(contents.model.items(), "the weights")
    check_finite(tensors_of(contents.training.get("optimizer", {"state": {}})), "the optimizer's state")


def tensors_of(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an optimizer's `state_dict`, each with a name for messages."""
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield f"{name} of parameter {index}", value


def _write_local(contents: Contents, folder: Path) -> None:
    """Writes under another name first. The rename at the end makes the checkpoint appear in one step."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        partial.mkdir(parents=True)
        _write_files(contents, partial)
        sync_tree(partial)
        _replace_folder(partial, folder)
        sync_folder(folder.parent)
    except RuntimeError as error:  # torch's message for a full disk does not say that it is full
        free = shutil.disk_usage(partial).free / 2**20
        raise OSError(f"{str(error).splitlines()[0]} ({free:.1f} MiB are free there)") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(new: Path, folder: Path) -> None:
    """Gives a folder its final name. One that has the name goes out of the way first, and is removed afterwards."""
    old = new.with_name(f".{folder.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        while True:
            with suppress(FileNotFoundError):
                folder.rename(old)
            try:
                new.rename(folder)
                return
            except OSError as error:  # another process has written it meanwhile; the last one stays
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_remote(contents: Contents, filesystem: fs.FileSystem, folder: str) -> None:
    """Writes SHA256SUMS last, because object stores cannot rename: a folder without it counts as unfinished."""
    with tempfile.TemporaryDirectory() as directory:
        _write_files(contents, Path(directory))
        patiently(partial(_remove, filesystem, folder), folder)
        try:
            send(Path(directory), filesystem, folder, last=[SUMS_FILE])
        except BaseException:
            # The other files stay: a store that took SHA256SUMS too late to say so shows a whole checkpoint then.
            with suppress(OSError):  # it was not sent, or the store is away
                filesystem.delete_file(f"{folder}/{SUMS_FILE}")
            raise


def _remove(filesystem: fs.FileSystem, folder: str) -> None:
    """Removes a checkpoint from a store, SHA256SUMS first, so that what is left of it never counts as finished."""
    if filesystem.get_file_info(f"{folder}/{SUMS_FILE}").type == fs.FileType.File:
        filesystem.delete_file(f"{folder}/{SUMS_FILE}")
    if filesystem.get_file_info(folder).type == fs.FileType.Directory:
        filesystem.delete_dir(folder)


def remove_unfinished(run: RunFolder) -> None:
    """Removes what killed processes left of checkpoints on a disk. Only for the folder's owner. Raises OSError."""
    if run.local and Path(run.path).is_dir():
        for path in Path(run.path).glob(f".checkpoint_*{UNFINISHED}"):
            shutil.rmtree(path, ignore_errors=True)


def _write_files(contents: Contents, directory: Path) -> None:
    save_safetensors(contents.model, directory / MODEL_FILE)
    torch.save(contents.training, directory / STATE_FILE)
    for rank, states in enumerate(contents.generators):
        torch.save(states, directory / generator_file(rank))
    (directory / META_FILE).write_text(json.dumps(contents.meta, indent=1) + "\n", "utf-8")
    sums = [f"{_digest(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / SUMS_FILE).write_text("".join(sums), "utf-8")


def verify_checkpoint(directory: Path, shown: str) -> dict[str, Any]:
    """Compares every file with SHA256SUMS and returns `meta.json`.

    Raises CheckpointError naming the file that is missing or differs; `shown`: how the message names the folder.
    """
    sums_file = directory / SUMS_FILE
    try:
        lines = [re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line) for line in sums_file.read_text("utf-8").splitlines()]
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
    try:
        meta = json.loads((directory / META_FILE).read_text("utf-8"))
    except Exception as error:  # of several types: no text, no JSON, nested too deeply
        raise CheckpointError(f"{shown}/{META_FILE}: cannot be read ({explain(error)})") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{shown}/{META_FILE}: holds {type(meta).__name__}, not an object")
    return meta


def check_meta(meta: Mapping[str, Any], kinds: Mapping[str, type], shown: str) -> None:
    """Raises CheckpointError if `meta.json` lacks one of the entries named in `kinds`, or it is of another type."""
    for name, kind in kinds.items():
        if not isinstance(meta.get(name), kind):
            raise CheckpointError(f"{shown}/{META_FILE}: has no entry {name} of type {kind.__name__}")


def load_plain(path: Path) -> dict[str, Any]:
    """Loads a file of plain values and tensors. Raises CheckpointError naming it."""
    try:
        content = read_tensor_file(path, only_plain=True)
    except Exception as error:  # any error of zip, pickle and torch
        raise CheckpointError(f"{path}: cannot be read ({explain(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dict")
    return content


def generator_file(rank: int) -> str:
    return f"rng_rank_{rank:04d}.pt"


def open_checkpoint(stored: StoredCheckpoint) -> OpenedCheckpoint:
    """Reads every byte once and verifies it. Raises CheckpointError."""
    try:
        with stored.local() as directory:
            meta = verify_checkpoint(directory, stored.path)
            check_meta(meta, STARTING_META, stored.path)
            return OpenedCheckpoint(stored, meta, stored_shapes(directory))
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{stored.path}: cannot be read ({error})") from error


def stored_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's parameters. Raises CheckpointError, also if a number is not finite."""
    path = directory / MODEL_FILE
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            check_finite(((name, file.get_tensor(name)) for name in names), str(path))  # one tensor at a time
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # of several types: the format of safetensors, a type that torch does not have
        raise CheckpointError(f"{path}: cannot be read ({explain(error)})") from error


def whole_checkpoints(run: RunFolder) -> list[str]:
    """Names of the finished checkpoints in a run's folder, the oldest first."""
    found: dict[tuple[int, int], str] = {}
    # One recursive listing: an object store may have no entry for a folder itself.
    for info in run.filesystem.get_file_info(fs.FileSelector(run.path, allow_not_found=True, recursive=True)):
        folder = PurePosixPath(info.path).parent
        match = NAME.fullmatch(folder.name)
        if match and info.base_name == SUMS_FILE and folder.parent == PurePosixPath(run.path):
            found[int(match[1]), int(match[2] or 0)] = folder.name
    return [found[position] for position in sorted(found)]


def newest_checkpoint(run: RunFolder) -> StoredCheckpoint | None:
    """The finished checkpoint with the most steps, or None if there is none."""
    names = whole_checkpoints(run)
    return StoredCheckpoint(run, names[-1]) if names else None


def find_checkpoint(location: str) -> StoredCheckpoint:
    """Finds a checkpoint by a path or URI.

    `location`: a checkpoint; a run's folder or `<run>/latest` for its newest one; `<run>/3` for the one after epoch 3.
    Raises CheckpointError listing the checkpoints that exist.
    """
    try:
        around, name = parent(absolute(location))
        run = RunFolder.at(around or "/")
        if NAME.fullmatch(name) or run.has(f"{name}/{SUMS_FILE}"):
            return StoredCheckpoint(run, name)
        itself = RunFolder.at(location)
        if (not name.isdigit() and name != "latest") or itself.has(SETTINGS_FILE):  # a run may be called 2024
            run, name = itself, "latest"
        return StoredCheckpoint(run, find_name(whole_checkpoints(run), name, location))
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{location}: cannot be read ({error})") from error


def find_name(names: Sequence[str], wanted: str, shown: str) -> str:
    """Resolves `wanted` (a checkpoint's name, `latest`, or an epoch's number) to one of a run's checkpoint names.

    `names`: the oldest first; `shown`: how errors name the place. Raises CheckpointError listing the names that exist.
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
