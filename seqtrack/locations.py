"""Locations in settings: folders on this machine, or URIs of object stores (`s3://…`, `gs://…`)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from seqtrack.environment import submission


def is_uri(location: str) -> bool:
    return "://" in location


def absolute(location: str) -> str:
    """The absolute path, because workers run in another current folder. URIs are returned unchanged."""
    return location if is_uri(location) else str(Path(location).expanduser().absolute())


def lasting(location: str) -> str:
    """The absolute location for output.

    Ray removes the current folder of a job that brought its own (`--working-dir`). There, a relative path is taken from
    the home folder instead.
    """
    job = submission()
    temporary = job is not None and job.package is not None
    return absolute(location if is_uri(location) or not temporary else str(Path.home() / Path(location).expanduser()))


def child(location: str, name: str) -> str:
    """The location of `name` inside `location`. A URI's options, such as `?endpoint_override=…`, stay at its end."""
    if not is_uri(location):
        return f"{location.rstrip('/')}/{name}"
    parts = urlsplit(location)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def parent(location: str) -> tuple[str, str]:
    """The enclosing location and the name inside it: the inverse of `child`."""
    if not is_uri(location):
        around, _, name = location.rstrip("/").rpartition("/")
        return around, name
    parts = urlsplit(location)
    around, _, name = parts.path.rstrip("/").rpartition("/")
    return parts._replace(path=around).geturl(), name
