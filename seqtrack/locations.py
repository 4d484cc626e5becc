"""Locations in settings: folders on this machine, or URIs of object stores (`s3://…`, `gs://…`).

A folder's name may have any character. `file:` URIs are taken for the paths that they stand for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from seqtrack.environment import submission
from seqtrack.errors import InputError

if TYPE_CHECKING:
    from pyarrow import fs

FSTAB = "/etc/fstab"
"""What is mounted where when a machine starts."""
LONGEST_NAME = 200
"""Bytes in the name of a run. Disks allow 255; the rest is for what is added to a name."""
PLAIN = "!$&'()*+,;=:@~"
"""Characters that a name in a URI may have beside letters, digits and `-._`."""


def is_uri(location: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", location, re.IGNORECASE) is not None


def as_path(location: str) -> str:
    """The path that a `file:` URI stands for. What is none is returned unchanged. Raises InputError.

    Characters that a URI should not have, such as spaces or `#`, are taken as they are.
    """
    match = re.match(r"file:(?://(?:localhost(?=/))?)?", location, re.IGNORECASE)
    if match is None:
        return location
    path = unquote(location[match.end() :])
    if not path.startswith("/"):
        raise InputError(
            f"{location}: after file:// comes a whole path, as in file:///data/lasot; a relative path has no file:"
        )
    return path


def absolute(location: str) -> str:
    """The absolute path, because workers run in another current folder. URIs of object stores are returned unchanged.

    Raises InputError as `check_location`.
    """
    path = as_path(check_location(location))
    return path if is_uri(path) else str(_from_home(path).absolute())


def lasting(location: str) -> str:
    """The absolute location for output.

    Ray removes the current folder of a job that brought its own (`--working-dir`). There, a relative path is taken from
    the home folder instead.
    """
    job, path = submission(), as_path(location)
    temporary = job is not None and job.package is not None
    return absolute(path if is_uri(path) or not temporary else str(Path.home() / _from_home(path)))


def lacking_mount(path: str) -> str | None:
    """The folder that a path of this machine lies in, and that FSTAB mounts something at, which is not mounted now.

    None if there is none. What is written there would be hidden, once it is mounted.
    """
    try:
        lines = Path(FSTAB).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    for line in lines:
        fields = line.split()
        if len(fields) < 4 or line.lstrip().startswith("#") or "noauto" in fields[3].split(","):
            continue
        target = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        if Path(target).is_absolute() and Path(place).is_relative_to(target) and not os.path.ismount(target):
            return target
    return None


def filesystem_at(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a location, and the path within it.

    Raises InputError, and OSError or ArrowException for a URI that no object store can be reached with.
    """
    from pyarrow import fs  # imported only when needed: it takes a quarter of a second

    path = absolute(location)
    if is_uri(path):
        filesystem, path = fs.FileSystem.from_uri(path)
        return filesystem, path
    return fs.LocalFileSystem(), path


def child(location: str, name: str) -> str:
    """The location of `name` inside `location`. A URI's options, such as `?endpoint_override=…`, stay at its end."""
    if not is_uri(location):
        return f"{location.rstrip('/')}/{name}"
    parts = urlsplit(location)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name, PLAIN + '/')}").geturl()


def parent(location: str) -> tuple[str, str]:
    """The enclosing location and the name inside it: the inverse of `child`."""
    if not is_uri(location):
        around, _, name = location.rstrip("/").rpartition("/")
        return around, name
    parts = urlsplit(location)
    around, _, name = parts.path.rstrip("/").rpartition("/")
    return parts._replace(path=around).geturl(), unquote(name)


def stem(location: str) -> str:
    """The name of a file without its ending: `demo` of `configs/demo.yaml`."""
    return PurePosixPath(parent(as_path(location))[1]).stem


def check_location(location: str) -> str:
    """The location unchanged. Raises InputError if it cannot be one."""
    if not location.strip():
        raise InputError("an empty path; `.` is the current folder")
    if re.search(r"[\x00-\x1f\x7f]", location):
        raise InputError(f"{location!r} has a character that cannot be seen, such as the end of a line")
    path = as_path(location)
    if is_uri(path):
        try:
            urlsplit(path)
        except ValueError as error:
            raise InputError(f"{location} is no URI ({error})") from error
    return location


def check_name(name: str) -> None:
    """Raises InputError unless a run may have this name: one part of a path, on any disk and in any object store."""
    fault = None
    if not name.strip():
        fault = "is empty"
    elif found := [character for character in "/\\" if character in name]:
        fault = f"has a {found[0]}"
    elif not name.isprintable():
        fault = "has a character that cannot be seen"
    elif name[0] in ".-":
        fault = f"begins with {name[0]}"
    elif name != name.strip():
        fault = "begins or ends with a space"
    elif len(name.encode()) > LONGEST_NAME:
        fault = f"has {len(name.encode())} bytes"
    if fault is not None:
        shown = name if len(name) <= 50 else f"{name[:50]} …"
        raise InputError(
            f"{shown!r} {fault}; a name is that of one folder: at most {LONGEST_NAME} bytes, without / and \\, and not "
            "beginning with . or -"
        )


def without_user(uri: str) -> str:
    """The address without the user and password in front."""
    return uri.lstrip("/").rpartition("@")[2]


def shown(uri: str) -> str:
    """The URI, whatever is wrong with it, without a user and password."""
    before, at, host = uri.rpartition("@")
    return f"{before.partition('://')[0]}://…@{host}" if at and "://" in before else f"…@{host}" if at else uri


def _from_home(path: str) -> Path:
    """The path, with `~` at its beginning replaced. `./~` is the folder of that name, as is `~x` where no user is x."""
    try:
        return Path(path).expanduser() if path.startswith("~") else Path(path)
    except RuntimeError:
        return Path(path)
