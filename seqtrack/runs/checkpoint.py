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
import json
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyarrow import ArrowException, fs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqtrack.address import bring, find
from seqtrack.config import parse_config
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import sync_folder, sync_tree
from seqtrack.locations import parent
from seqtrack.meta import META_FILE
from seqtrack.model.tensor_file import read_tensor_file
from seqtrack.model.weights import Weights, WeightsError, check_finite, save_safetensors
from seqtrack.patience import patiently
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import (
    MODEL_FILE,
    STATE_FILE,
    SUMS_FILE,
    CheckpointError,
    digest,
    verify_checkpoint,
    whole_names,
)
from seqtrack.transfer import send

UNFINISHED = ".partial"
"""Ending of the name of a checkpoint on a disk that is being written, or removed."""


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
        with bring(self.run.filesystem, self.path) as directory:
            yield directory

    @contextmanager
    def verified(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The same after every byte was read and verified, and the content of its `meta.json`.

        Raises CheckpointError naming the file that is missing or damaged, and the entry that cannot be right.
        """
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(self.local())
                meta = verify_checkpoint(directory, self.path)
                _check_position(directory, meta, self.path)
            except (OSError, ArrowException) as error:
                raise CheckpointError(f"{self.path}: cannot be read ({error})") from error
            yield directory, meta


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


def write_checkpoint(contents: Contents, stored: StoredCheckpoint) -> None:
    """Writes the checkpoint whole or not at all, and replaces one of the same name. Raises CheckpointError.

    When it returns, the checkpoint outlasts a loss of power, or the store has shown that it has every byte. What would
    be refused on loading is refused here, before anything is written.
    """
    try:
        check_contents(contents)
        if stored.run.local:
            _write_local(contents, stored)
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


def _write_local(contents: Contents, stored: StoredCheckpoint) -> None:
    """Writes under another name first. The rename at the end makes the checkpoint appear in one step."""
    folder = Path(stored.path)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        partial.mkdir(parents=True)
        _write_files(contents, partial)
        sync_tree(partial)
        stored.run.check_owner()  # another job may have taken the folder meanwhile, and written this checkpoint
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
        with suppress(FileNotFoundError):  # Google's store has no entry for a folder that was copied there
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
    sums = [f"{digest(path)}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / SUMS_FILE).write_text("".join(sums), "utf-8")


def load_plain(path: Path, shown: str | None = None, with_tensors: bool = True) -> dict[str, Any]:
    """Loads a file of plain values and tensors. Raises CheckpointError naming it.

    `shown`: how the message names it, if not by its path. `with_tensors`: False leaves the numbers of tensors unread.
    """
    shown = shown or str(path)
    try:
        content = read_tensor_file(path, only_plain=True, with_tensors=with_tensors)
    except Exception as error:  # any error of zip, pickle and torch
        raise CheckpointError(f"{shown}: cannot be read ({explain(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown}: holds {type(content).__name__}, not a dict")
    return content


def generator_file(rank: int) -> str:
    return f"rng_rank_{rank:04d}.pt"


def open_checkpoint(stored: StoredCheckpoint) -> OpenedCheckpoint:
    """Reads every byte once and verifies it, and all that a start needs to know of it. Raises InputError."""
    with stored.verified() as (directory, meta):
        parse_config(meta["config"], f"{stored.path}/{META_FILE}")
        return OpenedCheckpoint(stored, meta, stored_shapes(directory, stored.path))


def _check_position(directory: Path, meta: dict[str, Any], shown: str) -> None:
    """Raises CheckpointError if `meta.json` and `state.pt` are not of one step."""
    step = load_plain(directory / STATE_FILE, f"{shown}/{STATE_FILE}", with_tensors=False).get("step")
    if type(step) is not int or step != meta["step"]:
        raise CheckpointError(f"{shown}/{META_FILE}: says step {meta['step']}, and {STATE_FILE} step {step!r:.50}")


def stored_shapes(directory: Path, shown: str | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's parameters. Raises CheckpointError, also if a number is not finite.

    `shown`: how the message names the folder, if not by its path.
    """
    path = directory / MODEL_FILE
    shown = f"{shown or directory}/{MODEL_FILE}"
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            check_finite(((name, file.get_tensor(name)) for name in names), shown)  # one tensor at a time
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # of several types: the format of safetensors, a type that torch does not have
        raise CheckpointError(f"{shown}: cannot be read ({explain(error)})") from error


def whole_checkpoints(run: RunFolder, known: Collection[str] = ()) -> list[str]:
    """Names of the finished checkpoints in a run's folder, the oldest first; see `whole_names`. Raises OSError."""
    return whole_names(run.filesystem, run.path, known)


def newest_checkpoint(run: RunFolder) -> StoredCheckpoint | None:
    """The finished checkpoint with the most steps, or None if there is none."""
    names = whole_checkpoints(run)
    return StoredCheckpoint(run, names[-1]) if names else None


def find_checkpoint(location: str) -> StoredCheckpoint:
    """The checkpoint that an address means (`address.find`). One on the Hub is fetched to this machine.

    Raises CheckpointError listing the checkpoints that exist.
    """
    place = find(location, "checkpoint")
    filesystem, path = place.stored()
    folder, _, name = path.rpartition("/")
    return StoredCheckpoint(RunFolder(filesystem, folder, parent(place.location)[0]), name)
