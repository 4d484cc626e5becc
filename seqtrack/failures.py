"""What the errors of other libraries mean, in one line.

Libraries raise many types, and more with every release. Code that calls one therefore catches `Exception` at the call,
and says with `explain` what happened and with its own words which setting or file it happened to. This file is the one
place that knows what the types are like; it knows them by name, so that it imports none of the libraries.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

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
_CARRIERS = (
    *("RayTaskError", "ControllerError", "ComputationFailedError"),
    *("MaxRetryError", "ConnectionError", "NewConnectionError", "NameResolutionError"),
)
"""Names of types that only carry another error, which says more."""
_CARRYING = "failed with exception"
"""In the text of MLflow's errors that only carry another one."""
_SECRETS = r"(?<=://)(?:[^:/\s]*:\S*@|[^/\s]*@)|(?<=Bearer )[^'\"]+|(?<=Basic )[^'\"]+"
"""The user and password in a URI (not every library asks for them to be quoted), and what headers authenticate with."""


def explain(error: BaseException) -> str:
    """What an error means, in one line without passwords: the most telling error in its chain, and its file if any."""
    telling = list(_chain(error))[-1]
    if isinstance(telling, OSError) and telling.errno in ADVICE:
        where = f"{telling.filename}: " if telling.filename else ""
        return without_passwords(f"{where}{ADVICE[telling.errno]}")
    if isinstance(telling, ModuleNotFoundError):
        return f"the Python package {telling.name} is not installed"
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(telling))
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    kind = type(telling).__name__
    said = line if line and isinstance(telling, (OSError, ValueError)) else f"{kind}: {line}" if line else kind
    return without_passwords(said if len(said) <= MOST else f"{said[: MOST - 2]} …")


def without_passwords(text: str) -> str:
    """The text without the users and passwords of URIs, and without the tokens of headers."""
    return re.sub(_SECRETS, "", text)


def holds_password(text: str) -> bool:
    """Whether a URI in the text has a user and a password."""
    return re.search(r"://[^:/\s]*:\S*@", text) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it carries if it only carries another one."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = getattr(current, "cause", None) or current.__cause__ or current.__context__
        text = str(current).strip()
        carries = type(current).__name__ in _CARRIERS or not text or _CARRYING in text
        current = inner if carries and isinstance(inner, BaseException) else None
