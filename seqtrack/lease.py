"""One owner for a folder at a time, on a disk or in an object store.

pyarrow offers no write that fails where another was first, so who owns is decided by reading back. Each claimant writes
a claim of its own and then lists all of them, so the later writer sees the earlier one. Who sees a live owner
withdraws. Of those who ask, the one with the smallest token waits until it is alone, and the others withdraw. Then it
writes that it owns, and lists once more.

Of a process of this machine the kernel says whether it lives. Of another machine's, only its count does, watched with
the clock of the one who asks: a job that does not count for TTL seconds has lost the folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pyarrow import ArrowException, fs

from seqtrack.claims import ALIVE, CLAIM, TRIES, Claim, Proof
from seqtrack.errors import InputError

logger = logging.getLogger(__name__)
Found = TypeVar("Found")

TTL = 60.0
"""Seconds without a sign of life after which a job has lost its folder, as far as another machine can see."""
RENEWAL = 10.0
"""Seconds between two signs of life."""
LOOK = 0.5
"""Seconds between two looks at the claims of others."""
QUIET = 25.0
"""Seconds without a sign of life after which a job that was ousted is not waited for."""
SECONDS_TO_END = 30.0
"""Seconds that the thread may take to end: it may be waiting for a store."""
LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
"""Numbers of errors that do not pass within seconds."""


class OwnedError(InputError):
    """Another job owns the folder. The message says which, and how to take the folder from it."""


@dataclass
class _Watch:
    """How long another's count has not changed."""

    count: str | None
    looked: float
    seconds: float = 0.0


class Lease:
    """A folder that this process claims until it is released."""

    def __init__(self, proof: Proof, claim: Claim) -> None:
        self.proof = proof
        self.lost = threading.Event()
        """Set soon after another job has taken the folder."""
        self._claim, self._number = claim, 0
        self._told: list[Callable[[], None]] = []
        self._watched: dict[str, _Watch] = {}
        self._ousted: dict[str, Claim] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    def when_lost(self, tell: Callable[[], None]) -> None:
        """`tell` is called, in another thread or now, when another job has taken the folder."""
        self._told.append(tell)
        if self.lost.is_set():
            tell()

    def acquire(self, take_over: bool = False) -> None:
        """Claims the folder, after the wait that another's silence asks for.

        `take_over`: takes it from a live owner, who then ends. Raises OwnedError, OSError or ArrowException.
        """
        _tried(self._count)
        self._thread.start()
        _tried(lambda: self.proof.write(self._claim))
        said = False
        while True:
            rivals = _tried(lambda: self._rivals(take_over))
            self._yield_to(rivals)
            if not rivals and not self._claim.owns:
                self._claim = replace(self._claim, owns=True)
                _tried(lambda: self.proof.write(self._claim))
                continue
            if self._claim.owns and not any(other.owns for other, _ in rivals.values()):
                break
            silent = [other for other, alive in rivals.values() if not alive]
            if silent and not said:
                said, place = True, self.proof.location
                logger.warning("%s: waiting to see whether it is in use, %.0f s at most: %s", place, TTL, silent[0])
            time.sleep(LOOK)
        self._wait_for_ousted()

    def release(self) -> None:
        """Ends the claim and leaves no file behind."""
        self._ended.set()
        begun = self._thread.ident is not None
        if begun:
            self._thread.join(SECONDS_TO_END)
        try:
            _tried(self.proof.remove)
        except (OSError, ArrowException) as error:
            if begun:
                logger.warning("%s: the claim cannot be removed, and will lapse (%s)", self.proof.location, error)

    def _rivals(self, take_over: bool) -> dict[str, tuple[Claim, bool]]:
        """Token -> claim of others, and whether it is known to live. Claims that lapsed or are taken are removed."""
        found = {}
        for token, claim in self.proof.others().items():
            alive = self._watch(token, claim)
            if alive is False:
                self.proof.of(token).remove()
            elif take_over and claim.owns:
                self.proof.of(token).remove(CLAIM)
                logger.warning("%s: taken over from %s", self.proof.location, claim)
                self._ousted[token] = claim
            else:
                found[token] = claim, bool(alive)
        return found

    def _yield_to(self, rivals: dict[str, tuple[Claim, bool]]) -> None:
        """Raises OwnedError if another goes before this claim: an owner; of those who ask, the smallest token."""
        for token, (other, alive) in rivals.items():
            if alive and (other.owns or (not self._claim.owns and token < self.proof.token)):
                does = "belongs to" if other.owns else "is just being claimed by"
                raise OwnedError(
                    f"{self.proof.location}: {does} another job: {other}; wait for its end, or --take-over takes the "
                    "folder from it and ends it"
                )

    def _watch(self, token: str, claim: Claim) -> bool | None:
        """Whether another claimant lives; None as long as that is not known."""
        lives = claim.lives()
        if lives is not None:
            return lives
        count, now = self.proof.of(token).read_count(), time.monotonic()
        watch = self._watched.setdefault(token, _Watch(count, now))
        if count != watch.count:
            return True
        # A look that took long, because the store or this process stood still, says little about the other.
        watch.seconds += min(now - watch.looked, 2 * LOOK)
        watch.looked = now
        return False if watch.seconds >= TTL else None

    def _wait_for_ousted(self) -> None:
        """Waits until those that lost the folder have ended, or count no more; then removes what others left behind."""
        deadline, counts, changed = time.monotonic() + TTL, dict[str, str | None](), time.monotonic()
        while (now := time.monotonic()) < min(deadline, changed + QUIET) and (seen := _tried(self._counts_of_ousted)):
            if seen != counts:
                counts, changed = seen, now
            time.sleep(LOOK)
        for token in _tried(self.proof.orphans):
            with contextlib.suppress(OSError, ArrowException):
                self.proof.of(token).remove(ALIVE)

    def _counts_of_ousted(self) -> dict[str, str | None]:
        """Token -> count of those that lost the folder and have not ended yet."""
        ending = {token for token, claim in self._ousted.items() if claim.lives() is not False}
        return {token: self.proof.of(token).read_count() for token in self.proof.orphans() & ending}

    def _count(self) -> None:
        self._number += 1
        self.proof.write_count(self._number)

    def _live(self) -> None:
        """Counts, and notices when the folder was taken away. A folder that cannot be reached is no reason to end."""
        while not self._ended.wait(RENEWAL if self._claim.owns else LOOK):
            with contextlib.suppress(OSError, ArrowException):
                self._count()
            if self._claim.owns and not self.lost.is_set() and (reason := self.proof.lost()) is not None:
                self.lost.set()
                logger.warning("%s; this job ends", reason)
                for tell in self._told:
                    tell()


@contextlib.contextmanager
def owned(
    filesystem: fs.FileSystem,
    folder: str,
    location: str,
    take_over: bool = False,
    setting: str | None = None,
    job: str | None = None,
) -> Iterator[Lease]:
    """Owns a folder while the block runs; it is created if needed, and removed again if nothing came into it.

    `location`: how messages name it. `take_over`: takes it from a live owner. `setting`: what names the folder, for the
    error if it cannot be written. `job`: as `Claim.of_this_process`. Raises OwnedError, or InputError.
    """
    lease = Lease(Proof(filesystem, folder, location, uuid.uuid4().hex), Claim.of_this_process(job))
    made: list[Path] = []
    try:
        try:
            made = _make_folder(filesystem, folder)
            lease.acquire(take_over)
        except (OSError, ArrowException) as error:
            raise InputError(f"{setting or location}: cannot be written ({error})") from error
        yield lease
    finally:
        lease.release()
        for place in made:
            with contextlib.suppress(OSError):  # it holds something now
                place.rmdir()


def _make_folder(filesystem: fs.FileSystem, folder: str) -> list[Path]:
    """Creates a folder of a disk. Returns those that were not there, the innermost first."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return []  # an object store needs none
    missing = [place for place in (Path(folder), *Path(folder).parents) if not place.exists()]
    filesystem.create_dir(folder, recursive=True)
    return missing


def _tried(action: Callable[[], Found]) -> Found:
    """What `action` returns, which is tried again where the folder fails for a moment. Raises its last error."""
    for pause in TRIES:
        try:
            return action()
        except (OSError, ArrowException) as error:
            if getattr(error, "errno", None) in LASTING:
                raise
            time.sleep(pause)
    return action()
