"""What the errors of other libraries mean, in one line.

Libraries raise many types, and more with every release. Code that calls one therefore catches `Exception` at the call,
and says with `explain` what happened and with its own words which setting or file it happened to. This file is the one
place that knows what the types are like; it knows them by name, so that it imports none of the libraries.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from seqtrack.shown import shown

MOST = 300
"""Longest explanation, in characters."""
ADVICE = {
    errno.ENOSPC: "no space is left there",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "it can only be read",
    errno.EACCES: "permission is denied",
    errno.ENOENT: "there is no such file or folder",
    errno.EMFILE: "too many files are open (`ulimit -n` says how many may be)",
    errno.ENAMETOOLONG: "the name is too long",
}
"""Error number -> what an OSError says instead of the system's words."""
_CARRIERS = {
    "RayTaskError": "cause",
    "UserExceptionWithTraceback": "_base_exc",
    "ControllerError": "controller_failure",
    "ComputationFailedError": "__cause__",
    **dict.fromkeys(("MaxRetryError", "ConnectionError", "NewConnectionError", "NameResolutionError"), "__context__"),
}
"""Name of a type that only carries another error, which says more -> the attribute that has it."""
_TIMED_OUT = re.compile(r"timed out|timeout was reached|no answer within", re.IGNORECASE)
"""What the text of errors has that have no type of their own for it, such as those of object stores."""
_CARRYING = "failed with exception"
"""What the text of MLflow's errors has that only carry another one."""
_SECRETS = r"(?<=://)(?:[^:/\s]*:\S*@|[^/\s]*@)|(?<=Bearer )[^'\"]+|(?<=Basic )[^'\"]+"
"""The user and password in a URI (not every library asks for them to be quoted), and what headers authenticate with."""


def explain(error: BaseException) -> str:
    """What an error means, in one line without passwords: the most telling error in its chain, and its file if any."""
    telling = list(_chain(error))[-1]
    if type(telling).__module__.startswith("seqtrack."):
        return shown(str(telling))  # it was written for people
    if isinstance(telling, OSError) and telling.errno in ADVICE:
        where = f"{telling.filename}: " if telling.filename else ""
        return shown(without_passwords(f"{where}{ADVICE[telling.errno]}"))
    if isinstance(telling, ModuleNotFoundError):
        return f"the Python package {telling.name} is not installed"
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(telling))
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if actor := re.search(r"^\s*class_name: (\S+)$", text, re.MULTILINE):  # Ray says only below which process it lost
        line = f"{line.rstrip('.')} ({actor[1]})"
    kind = type(telling).__name__
    said = line if line and isinstance(telling, (OSError, ValueError)) else f"{kind}: {line}" if line else kind
    return without_passwords(shown(said if len(said) <= MOST else f"{said[: MOST - 2]} …"))


def is_of_ray(error: BaseException) -> bool:
    """Whether Ray itself failed: a process, a node or the cluster was lost. Not an error of a task that Ray carries."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] == "ray"}
    return bool(names) and "RayTaskError" not in names


def is_no_answer(error: BaseException) -> bool:
    """Whether an error, or its cause, says no more than that something took too long, by whatever library's limit."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        kinds = {kind.__name__ for kind in type(current).__mro__}
        if any("Timeout" in kind or kind == "NoAnswer" for kind in kinds) or _TIMED_OUT.search(str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


def without_passwords(text: str) -> str:
    """The text without the users and passwords of URIs, and without the tokens of headers."""
    return re.sub(_SECRETS, "", text)


def holds_password(text: str) -> bool:
    """Whether a URI in the text has a user and a password."""
    return re.search(r"://[^:/\s]*:\S*@", text) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it carries if it only carries another one, and so on. One without a message carries its cause."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = None
        # Ray makes a type for each error that it carries, so that it can be caught as that error too.
        carriers = [_CARRIERS[kind.__name__] for kind in type(current).__mro__ if kind.__name__ in _CARRIERS]
        if carriers:
            inner = getattr(current, carriers[0], None)
        text = str(current).strip()
        if inner is None and (carriers or not text or _CARRYING in text):
            inner = current.__cause__ or current.__context__
        current = inner if isinstance(inner, BaseException) else None
