"""A run's folder, on a disk or in an object store: `train.log`, `metrics.jsonl`, `config.yaml`, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pyarrow import ArrowException, fs
from pydantic import TypeAdapter, ValidationError

from seqtrack import files
from seqtrack.claims import Proof
from seqtrack.config import SETTINGS_FILE, Config, ConfigError, load_settings
from seqtrack.errors import InputError
from seqtrack.lease import Lease, owned
from seqtrack.locations import FSTAB, as_path, child, filesystem_at, lacking_mount

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")


class RunFileError(InputError):
    """A small file in a run's folder that is empty, cut off, or of another kind. The message names it."""


@dataclass(frozen=True)
class RunFolder:
    """Location of a run's folder. The folder need not exist yet."""

    filesystem: fs.FileSystem
    path: str
    """Path within the filesystem."""
    location: str
    """Path, or URI of an object store, as the user writes it."""
    proof: Proof | None = field(default=None, repr=False, compare=False)
    """This job's claim on the folder, if it has one: then it writes nothing more once another job owns the folder."""

    @classmethod
    def at(cls, location: str) -> RunFolder:
        """The folder at a path or URI. Raises InputError, OSError or ArrowException if a URI cannot be resolved."""
        filesystem, path = filesystem_at(location)
        return cls(filesystem, path.rstrip("/"), as_path(location))

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder of the run that these settings name. Raises ConfigError."""
        location = child(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
        try:
            return cls.at(location)
        except (OSError, ArrowException) as error:
            raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be read ({error})") from error

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> RunFolder:
        """A folder within this one."""
        return replace(self, path=f"{self.path}/{name}", location=child(self.location, name))

    def file(self, name: str) -> str:
        """The path, within the filesystem, of a file in this folder."""
        return f"{self.path}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return files.has_file(self.filesystem, self.file(name))

    @contextmanager
    def owned(self, take_over: bool = False, setting: str | None = None, job: str | None = None) -> Iterator[Lease]:
        """Makes the folder this job's own while the block runs; see `seqtrack.lease.owned`. Raises InputError."""
        with owned(self.filesystem, self.path, self.location, take_over, setting, job) as lease:
            yield lease

    def under(self, lease: Lease) -> RunFolder:
        """The folder as its owner sees it: nothing is written there once it is another job's."""
        return replace(self, proof=lease.proof)

    def lost(self) -> str | None:
        """Why the folder is no longer this job's; None if it is, or if this job has no claim on it."""
        return self.proof.lost() if self.proof is not None else None

    def check_owner(self) -> None:
        """Raises LeaseLostError if this job had the folder, and another has it now."""
        if self.proof is not None:
            self.proof.check()

    def create(self) -> None:
        """Creates the folder if it does not exist. Raises OSError."""
        self.filesystem.create_dir(self.path, recursive=True)

    def read_text(self, name: str) -> str | None:
        """The text of a file, or None if there is none. Raises OSError."""
        return files.read_text(self.filesystem, self.file(name))

    def write(self, name: str, content: str | bytes, patience: float | None = None) -> None:
        """Replaces a file in one step. `patience`: as in `files.write_atomically`.

        Raises OSError; LeaseLostError if the folder is another job's now.
        """
        self.check_owner()
        files.write_atomically(self.filesystem, self.file(name), content, patience)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file, or None if there is no file. Raises RunFileError if it is empty or cut off."""
        text = self.read_text(name)
        if text is None:
            return None
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RunFileError(f"{self.file(name)}: {_what_is_wrong(text)} ({error})") from error
        if not isinstance(values, dict):
            raise RunFileError(f"{self.file(name)}: holds {type(values).__name__}, not an object")
        return values

    def read_as(self, name: str, kind: type[Kind]) -> Kind | None:
        """The content of a JSON file as a dataclass, or None if there is no file. Raises RunFileError."""
        values = self.read_json(name)
        if values is None:
            return None
        if unknown := values.keys() - {field.name for field in fields(kind)}:
            raise RunFileError(
                f"{self.file(name)}: is not what this version writes (unknown: {', '.join(sorted(unknown))})"
            )
        try:
            return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RunFileError(
                f"{self.file(name)}: is not what this version writes ({where}: {first['msg']})"
            ) from error

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replaces a JSON file in one step. Raises OSError."""
        self.write(name, json.dumps(values, indent=1) + "\n")


def _what_is_wrong(text: str) -> str:
    return "is cut off or damaged" if text.strip() else "is empty"


def read_settings(run: RunFolder) -> Config | None:
    """The settings that the run was started with, or None if the folder has none.

    Raises OSError; ConfigError for a setting that this version does not know; RunFileError for a file that is empty or
    cut off.
    """
    text = run.read_text(SETTINGS_FILE)
    if text is None:
        return None
    config = load_settings(text, run.file(SETTINGS_FILE))
    # A file that was cut off can still be valid YAML. What decides a run's numbers is written before this section.
    if "RUN" not in config.model_fields_set:
        raise RunFileError(f"{run.file(SETTINGS_FILE)}: {_what_is_wrong(text)}; without it the run is not known")
    return config


def open_run(config: Config, allow_changed: Collection[str] = ()) -> RunFolder:
    """The folder of the run that these settings name. A run of the same name and settings is continued.

    `allow_changed`: settings that may differ from those of the run in the folder. Raises ConfigError if the folder
    cannot be read or holds a run with other settings; RunFileError if its settings are empty or cut off.
    """
    run = RunFolder.of(config)
    try:
        earlier = read_settings(run)
    except (OSError, ArrowException) as error:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be read ({error})") from error
    changes = {} if earlier is None else config.changed_settings(earlier)
    changed = [f"{key}: {change}" for key, change in changes.items() if key not in allow_changed]
    if changed:
        raise ConfigError(
            f"RUN.NAME {config.RUN.NAME}: {run.path} holds a run with other settings ({', '.join(changed)}); "
            "another RUN.NAME keeps both"
        )
    return run


def own_run(config: Config, take_over: bool = False, job: str | None = None) -> AbstractContextManager[Lease]:
    """Makes the folder of the run that these settings name this job's own; see `RunFolder.owned`. Raises InputError."""
    run = RunFolder.of(config)
    if run.local and (place := lacking_mount(run.path)) is not None:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: {place} is not mounted, and {FSTAB} names it")
    return run.owned(take_over, f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}", job)


def write_settings(config: Config, run: RunFolder) -> None:
    """Creates the run's folder and writes its settings there. Raises ConfigError."""
    try:
        run.create()
        run.write(SETTINGS_FILE, config.to_yaml(), patience=0)  # the first of all: a wrong place is said at once
    except (OSError, ArrowException) as error:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be written ({error})") from error
