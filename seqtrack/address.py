"""Addresses of checkpoints and models: one grammar for all programs, and one way to open what they lead to, verified.

    runs/mine, runs/mine/latest     a run's newest checkpoint; runs/mine/3: the one after epoch 3
    runs/mine/checkpoint_epoch_0003_step_000500
                                    a checkpoint; its folder may have another name
    s3://bucket/runs/mine/3         all of these in an object store, or as file: URIs
    hf://user/repo[@revision]       the model at the top of a repository on the Hub; to train on: its newest checkpoint.
                                    Also a copy of a repository in a folder
    hf://user/repo/latest, …/2, …/checkpoints/checkpoint_epoch_0002
                                    a checkpoint there
    mine.pth.tar, mine.safetensors  a file of weights, here or in any of these places

A checkpoint is verified by its SHA256SUMS before anything of it is read, and refused without them. What is meant for
strangers has none: weights with `config.yaml` beside them, as at the top of a repository, and files of weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote

from seqtrack.errors import InputError
from seqtrack.failures import explain, without_passwords
from seqtrack.files import is_file
from seqtrack.hub_files import Repository, repository_fault
from seqtrack.locations import absolute, child, filesystem_at, is_uri, parent
from seqtrack.sums import (
    META_FILE,
    MODEL_FILE,
    NAME,
    SETTINGS_FILE,
    STATE_FILE,
    SUMS_FILE,
    CheckpointError,
    checkpoint_name,
    find_name,
    in_order,
    verify_checkpoint,
    verify_file,
    whole_names,
)
from seqtrack.transfer import fetch, fetch_file

if TYPE_CHECKING:
    from pyarrow import fs

SCHEME = "hf://"
FOLDER = "checkpoints"
"""The folder of a repository on the Hub that has a run's checkpoints."""

Wanted = Literal["model", "checkpoint"]

GRAMMAR: dict[Wanted, str] = {
    "checkpoint": "a run, RUN/3 (after its epoch 3), RUN/latest, a checkpoint or hf://user/repo is needed",
    "model": "a run, RUN/3 (after its epoch 3), a checkpoint, hf://user/repo or a file of weights is needed",
}
"""What errors say of addresses."""


class Tree(Protocol):
    """What the grammar asks of a filesystem and of a repository. Paths begin with a slash, or with a bucket's name."""

    def has(self, path: str) -> bool:
        """Whether there is a file of this path."""

    def entries(self, folder: str) -> list[str]:
        """Names of what a folder holds; none if there is no such folder."""

    def whole(self, folder: str) -> list[str]:
        """Names of the finished checkpoints in a folder, the oldest first."""

    def stored(self, path: str, checkpoint: bool) -> tuple[fs.FileSystem, str]:
        """Where a checkpoint's folder or a file is stored. It is fetched first if it is on the Hub."""


class Here(NamedTuple):
    """What an address led to, on this machine, verified."""

    path: Path
    """A checkpoint's folder, or a file of weights. `config.yaml` is beside that if it was there."""
    meta: dict[str, Any] | None
    """Content of the checkpoint's `meta.json`; None for a file."""


@dataclass(frozen=True)
class Place:
    """Where an address leads: to a checkpoint's folder, or to a file of weights."""

    tree: Tree
    path: str
    """Path within the tree."""
    location: str
    """An address of exactly this."""
    checkpoint: bool

    @property
    def shown(self) -> str:
        """How messages name it."""
        return without_passwords(self.location)

    @property
    def on_hub(self) -> bool:
        return self.location.startswith(SCHEME)

    def stored(self) -> tuple[fs.FileSystem, str]:
        """Where it is stored; what is on the Hub is fetched to this machine. Raises CheckpointError."""
        with _named(self.shown):
            return self.tree.stored(self.path, self.checkpoint)

    @contextmanager
    def here(self) -> Iterator[Here]:
        """It on this machine, verified; a copy is removed after the block. Raises CheckpointError."""
        with ExitStack() as stack:
            with _named(self.shown):
                filesystem, path = self.tree.stored(self.path, self.checkpoint)
                if self.checkpoint:
                    local = stack.enter_context(bring(filesystem, path))
                    here = Here(local, verify_checkpoint(local, self.shown))
                else:
                    here = Here(stack.enter_context(_bring_file(filesystem, path)), None)
                    verify_file(here.path, self.shown)
            yield here


@contextmanager
def bring(filesystem: fs.FileSystem, path: str) -> Iterator[Path]:
    """A folder on this machine: the folder itself, or a copy that is removed after the block. Raises OSError."""
    from pyarrow import fs

    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as directory:
        fetch(filesystem, path, Path(directory))
        yield Path(directory)


@contextmanager
def _bring_file(filesystem: fs.FileSystem, path: str) -> Iterator[Path]:
    """A file on this machine, and what says something about it beside it."""
    from pyarrow import fs

    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as directory:
        # In a folder of its own folder's name, because a checkpoint is known by that.
        target = Path(directory, folder.rpartition("/")[2] or "folder")
        target.mkdir()
        for beside in (name, SETTINGS_FILE, SUMS_FILE):
            if beside == name or is_file(filesystem, f"{folder}/{beside}"):
                fetch_file(filesystem, f"{folder}/{beside}", target / beside)
        yield target / name


def find(address: str, wanted: Wanted = "model") -> Place:
    """Where an address leads. Nothing is read yet but names.

    `wanted`: `model` for what weights can be read from; `checkpoint` for what a training can go on from. Raises
    CheckpointError saying what is there instead.
    """
    if address.startswith(SCHEME):
        return _find_on_hub(address, wanted)
    location, shown = absolute(address), without_passwords(address)
    with _named(shown):
        filesystem, path = filesystem_at(location)
        tree, path = _Stored(filesystem), path.rstrip("/")
        found, checkpoint = _lead(tree, path, shown, wanted)
    if not is_uri(location):
        return Place(tree, found, found, checkpoint)
    if found == path or found.startswith(f"{path}/"):
        inside = found.removeprefix(path).strip("/")
        return Place(tree, found, child(location, inside) if inside else location, checkpoint)
    around, _ = parent(location)
    return Place(tree, found, child(around, found.removeprefix(f"{path.rpartition('/')[0]}/")), checkpoint)


def checkpoints(address: str) -> list[str]:
    """Addresses of all finished checkpoints of a run, the oldest first. Raises CheckpointError if there are none."""
    newest = find(address, "checkpoint")
    around, _ = parent(newest.location)
    return [child(around, name) for name in newest.tree.whole(newest.path.rpartition("/")[0])]


def _lead(tree: Tree, path: str, shown: str, wanted: Wanted) -> tuple[str, bool]:
    """The path that is meant, and whether a checkpoint is there; if not, it is that of a file."""
    around, _, name = path.rpartition("/")
    if tree.has(f"{path}/{SUMS_FILE}"):
        return path, True
    named = NAME.fullmatch(name) is not None
    if not named:
        is_a_file = tree.has(path)
        if is_a_file and wanted == "model":
            return path, False
        if is_a_file:
            raise CheckpointError(f"{shown}: is a file; {GRAMMAR[wanted]}")
        if tree.has(f"{path}/{MODEL_FILE}"):
            of_a_run = tree.has(f"{path}/{META_FILE}") or tree.has(f"{path}/{STATE_FILE}")
            if of_a_run and not tree.has(f"{path}/{SETTINGS_FILE}"):
                raise CheckpointError(f"{shown}/{SUMS_FILE} is missing: an unfinished or damaged checkpoint")
            if wanted == "model":
                return f"{path}/{MODEL_FILE}", False
    part_of_a_run = named or name.isdecimal() or name == "latest"
    if part_of_a_run and not named and (tree.has(f"{path}/{SETTINGS_FILE}") or tree.whole(path)):
        part_of_a_run = False  # a run may be called 2024
    folder, name = (around, name) if part_of_a_run else (path, "latest")
    exact = checkpoint_name(int(name), 0) if name.isdecimal() else name
    for place in (folder, f"{folder}/{FOLDER}"):
        names = tree.whole(place)
        if part_of_a_run and exact not in names and tree.entries(f"{place}/{exact}"):
            raise CheckpointError(f"{shown}: {exact} has no {SUMS_FILE}: an unfinished or damaged checkpoint")
        if names:
            return f"{place}/{find_name(names, name, shown)}", True
    raise CheckpointError(f"{shown}: {_what_is_there(tree, folder, wanted)}")


def _what_is_there(tree: Tree, folder: str, wanted: Wanted) -> str:
    """Why no checkpoint or model is found in a folder, in a line."""
    names = tree.entries(folder)
    nothing = "no finished checkpoint there"
    if not names:
        missing = "no such file or folder" if wanted == "model" else f"{nothing}: no such folder, or an empty one"
        return f"{missing}; {GRAMMAR[wanted]}"
    if unfinished := in_order(names):
        return f"{nothing}: {unfinished[-1]} has no {SUMS_FILE}, so it is unfinished or damaged"
    if "trials" in names:
        trial = next(iter(sorted(tree.entries(f"{folder}/trials"))), "NAME")
        return f"{nothing}: it is a sweep's folder; its trials are runs, such as {folder}/trials/{trial}"
    if "phase1" in names:
        return f"{nothing}: it is the folder of `seqtrack reproduce`; {folder}/phase1 is a run"
    if _is_data_set(tree, folder, names):
        return f"{nothing}: it is a data set; {GRAMMAR[wanted]}"
    if parts := [name for name in names if name.endswith(".index.json")]:
        return f"holds weights in several files, listed in {parts[0]}: one file with all of them is needed"
    if SETTINGS_FILE in names:
        return f"{nothing}: the run has written none yet"
    shown = ", ".join(sorted(names)[:5])
    return f"{nothing}: a folder without {MODEL_FILE}; it has {shown}{' …' if len(names) > 5 else ''}"


def _is_data_set(tree: Tree, folder: str, names: list[str]) -> bool:
    """Whether a folder looks like one of the training sets, or a sequence or class of one."""
    marks = {"groundtruth.txt", "list.txt", "annotations", "train2017", "TRAIN_0", "index.parquet"}
    if marks & set(names):
        return True
    first = min((name for name in names if "." not in name), default=None)
    inside = tree.entries(f"{folder}/{first}") if first is not None else []
    return bool(marks & set(inside)) or any(name.startswith(f"{first}-") for name in inside)


class _Stored(NamedTuple):
    """A disk or an object store."""

    filesystem: fs.FileSystem

    def has(self, path: str) -> bool:
        return is_file(self.filesystem, path)

    def entries(self, folder: str) -> list[str]:
        from pyarrow import fs

        if self.filesystem.get_file_info(folder or "/").type != fs.FileType.Directory:
            return []
        return [info.base_name for info in self.filesystem.get_file_info(fs.FileSelector(folder or "/"))]

    def whole(self, folder: str) -> list[str]:
        return whole_names(self.filesystem, folder or "/")

    def stored(self, path: str, checkpoint: bool) -> tuple[fs.FileSystem, str]:
        return self.filesystem, path


class _OnHub(NamedTuple):
    """A repository on the Hub."""

    repository: Repository

    def has(self, path: str) -> bool:
        return path.strip("/") in self.repository.files

    def entries(self, folder: str) -> list[str]:
        start = f"{folder.strip('/')}/".lstrip("/")
        inside = [file.removeprefix(start) for file in self.repository.files if file.startswith(start)]
        return sorted({name.partition("/")[0] for name in inside})

    def whole(self, folder: str) -> list[str]:
        return in_order(name for name in self.entries(folder) if self.has(f"{folder}/{name}/{SUMS_FILE}"))

    def stored(self, path: str, checkpoint: bool) -> tuple[fs.FileSystem, str]:
        from pyarrow import fs

        folder, _, name = path.strip("/").rpartition("/")
        beside = (name, SETTINGS_FILE, SUMS_FILE)
        wanted = [file for file in self.repository.files if file.startswith(f"{path.strip('/')}/")]
        if not checkpoint:
            wanted = [file for one in beside if (file := f"{folder}/{one}".strip("/")) in self.repository.files]
        return fs.LocalFileSystem(), str(self.repository.fetch(wanted) / path.strip("/"))


def _find_on_hub(address: str, wanted: Wanted) -> Place:
    """Where `hf://user/repo[@revision][/PATH]` leads."""
    user, _, rest = address.removeprefix(SCHEME).strip("/").partition("/")
    name, _, path = rest.partition("/")
    name, at, revision = name.partition("@")
    repo_id = f"{user}/{name}"
    if fault := repository_fault(repo_id):
        raise CheckpointError(f"{address}: {SCHEME} {repo_id!r}: {fault}")
    if user in ("datasets", "spaces"):
        raise CheckpointError(f"{address}: {user} have no model; {GRAMMAR[wanted]}")
    with _named(address):
        tree = _OnHub(Repository.open(repo_id, unquote(revision) or None))
        found, checkpoint = _lead(tree, f"/{path.strip('/')}".rstrip("/"), address, wanted)
    return Place(tree, found, f"{SCHEME}{repo_id}{at}{revision}{found}", checkpoint)


@contextmanager
def _named(shown: str) -> Iterator[None]:
    """Makes whatever goes wrong with an address a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(f"{shown}: {error}") from error
    except Exception as error:  # of the disk, of any object store, of the Hub's client
        kind = type(error).__name__  # known by name, so that the client is not imported
        if kind == "RepositoryNotFoundError":
            raise CheckpointError(f"{shown}: no such repository, or the token may not read it") from error
        if kind == "RevisionNotFoundError":
            raise CheckpointError(f"{shown}: the repository has no such revision") from error
        raise CheckpointError(f"{shown}: cannot be read ({explain(error)})") from error
