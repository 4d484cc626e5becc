"""Claims on a folder: what a job says of itself in it, and whether its process lives.

    .owner-<token>.json     a claim: which job, on which machine, since when, and whether it asks or owns
    .owner-<token>.alive    a number that the claim's process counts up, for those who cannot see the process

A claim's owner writes it twice, as it asks and as it owns, and never again: one that was taken away stays away.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pyarrow import ArrowException, fs

from seqtrack.environment import submission
from seqtrack.errors import LeaseLostError
from seqtrack.failures import without_passwords
from seqtrack.files import is_file, read_text, write_atomically

TRIES = (0.2, 0.5, 1.0)
"""Seconds to wait before a folder is asked again that fails, or lists less than was written."""
LOOKS = (0.2, 0.5, 1.0, 2.0)
"""Seconds to wait before a claim is looked for again that is not there, though nobody else's is."""
PREFIX, CLAIM, ALIVE = ".owner-", ".json", ".alive"
SHOWN = 200
"""Letters of a job's command that are kept."""


@dataclass(frozen=True)
class Claim:
    """What a claimant says of itself."""

    job: str
    """The name that `ray job stop` takes, or the command."""
    host: str
    machine: str
    """Which running system it is, as `this_machine` names it; empty if that is not known."""
    pid: int
    started: int
    """When the process started, in the kernel's ticks: the number of a process that ended is given again."""
    since: str
    owns: bool = False

    @classmethod
    def of_this_process(cls, job: str | None = None) -> Claim:
        """`job`: None for the Ray job or the command that this process is."""
        if job is None:
            submitted = submission()
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            job = f"Ray job {submitted.name}" if submitted is not None else command
        return cls(
            without_passwords(job)[:SHOWN],
            socket.gethostname(),
            this_machine(),
            os.getpid(),
            _started(os.getpid()) or 0,
            f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        )

    def lives(self) -> bool | None:
        """Whether its process lives; None if that cannot be seen from here."""
        if not self.machine or self.machine != this_machine():
            return None
        started = _started(self.pid)
        return None if started is None and _is_hidden(self.pid) else started == self.started

    def __str__(self) -> str:
        shown = "".join(letter if letter.isprintable() else "?" for letter in f"{self.job} on {self.host}")
        return f"{shown[: 2 * SHOWN]}, process {self.pid}, since {self.since[:SHOWN]}"


UNKNOWN = Claim("a job whose claim cannot be read", "an unknown machine", "", 0, 0, "an unknown time", owns=True)


@dataclass(frozen=True)
class Proof:
    """A claim's place, small enough to be sent to workers: it says whether the folder is still this job's."""

    filesystem: fs.FileSystem = field(repr=False)
    folder: str
    """Path within the filesystem."""
    location: str
    """How messages name the folder."""
    token: str
    _gone: list[str] = field(default_factory=list, repr=False, compare=False)
    """Why it was lost, if it was."""

    def lost(self) -> str | None:
        """Why the folder is no longer this job's; None if it is.

        A folder that cannot be asked now takes nothing from anybody, and neither does one answer that the claim is not
        there, unless another's is. What was lost once is lost.
        """
        if not self._gone and not self._holds():
            self._gone.append(self._why())
        return self._gone[0] if self._gone else None

    def holds(self) -> bool:
        return self.lost() is None

    def check(self) -> None:
        """Raises LeaseLostError if the folder is no longer this job's."""
        if (reason := self.lost()) is not None:
            raise LeaseLostError(reason)

    def of(self, token: str) -> Proof:
        """Another's claim on the same folder."""
        return replace(self, token=token, _gone=[])

    def others(self) -> dict[str, Claim]:
        """Token -> claim of everyone else, once this one is among those that are listed.

        A list without it is an old one, and a claim that is listed but cannot be read has just been withdrawn; both are
        asked for again. Raises LeaseLostError if this one was removed, OSError or ArrowException.
        """
        listed, claims = set[str](), dict[str, Claim | None]()
        for pause in (0.0, *TRIES):
            time.sleep(pause)
            listed = self._listed(CLAIM)
            claims = {token: self.of(token)._read() for token in listed - {self.token}}
            if self.token in listed and None not in claims.values():
                break
        if self.token not in listed:
            raise LeaseLostError(f"{self.location}: this job's claim was removed")
        return {token: claim or UNKNOWN for token, claim in claims.items()}

    def orphans(self) -> set[str]:
        """Tokens of those who count and claim nothing. Raises OSError or ArrowException."""
        return self._listed(ALIVE) - self._listed(CLAIM) - {self.token}

    def write(self, claim: Claim) -> None:
        """Raises OSError or ArrowException, as do those below."""
        write_atomically(self.filesystem, self._file(CLAIM), json.dumps(asdict(claim), indent=1), patience=0)

    def read_count(self) -> str | None:
        return read_text(self.filesystem, self._file(ALIVE))

    def write_count(self, number: int) -> None:
        if isinstance(self.filesystem, fs.LocalFileSystem):
            Path(self._file(ALIVE)).write_text(f"{number}\n", "ascii")  # half of it would be a change, too
        else:
            write_atomically(self.filesystem, self._file(ALIVE), f"{number}\n", patience=0)

    def remove(self, *endings: str) -> None:
        """Removes the claim's files. One that is gone already is fine."""
        for ending in endings or (CLAIM, ALIVE):
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self._file(ending))

    def _holds(self) -> bool:
        for pause in (0.0, *LOOKS):
            time.sleep(pause)
            try:
                if _is_there(self.filesystem, self._file(CLAIM)):
                    return True
                if self._owner() is not None:
                    return False
            except (OSError, ArrowException):
                return True
        return False

    def _owner(self) -> Claim | None:
        """Another's claim that owns the folder."""
        found = (self.of(token)._read() for token in self._listed(CLAIM) - {self.token})
        return next((claim for claim in found if claim is not None and claim.owns), None)

    def _why(self) -> str:
        with contextlib.suppress(OSError, ArrowException):
            if (owner := self._owner()) is not None:
                return f"{self.location}: was taken over by {owner}"
        return f"{self.location}: this job's claim ({PREFIX}{self.token}{CLAIM}) is gone, so another may own the folder"

    def _file(self, ending: str) -> str:
        return f"{self.folder}/{PREFIX}{self.token}{ending}"

    def _listed(self, ending: str) -> set[str]:
        found = self.filesystem.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
        names = [info.base_name for info in found if info.type == fs.FileType.File]
        return {name[len(PREFIX) : -len(ending)] for name in names if name.startswith(PREFIX) and name.endswith(ending)}

    def _read(self) -> Claim | None:
        """The claim, or None if it is not there; UNKNOWN for what is none, as after a power failure."""
        if (text := read_text(self.filesystem, self._file(CLAIM))) is None:
            return None
        try:
            claim = Claim(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return UNKNOWN
        kinds = {name: type(value) for name, value in asdict(UNKNOWN).items()}
        return claim if all(type(value) is kinds[name] for name, value in asdict(claim).items()) else UNKNOWN


def this_machine() -> str:
    """Which running system this is, and which process numbers it sees: containers of one machine see their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process started; None if there is none, or only what its parent has not collected yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether a process lives that /proc does not show, as another user's where it is mounted so."""
    if Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _is_there(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether a file is there. Raises OSError or ArrowException."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return is_file(filesystem, path)
    try:
        os.close(os.open(path, os.O_RDONLY))  # NFS asks its server when a file is opened, and not for each stat
    except FileNotFoundError:
        return False
    return True
