"""Places that settings name: folders of this machine, or URIs of object stores (`s3://…`, `gs://…`)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from seqtrack.submission import submission


def is_uri(location: str) -> bool:
    return "://" in location


def absolute(location: str) -> str:
    """What the location means wherever else it is used: workers have another current folder. URIs stay as they are."""
    return location if is_uri(location) else str(Path(location).expanduser().absolute())


def lasting(location: str) -> str:
    """As `absolute`, for what is to be written: below home, where Ray removes the current folder after the job."""
    job = submission()
    temporary = job is not None and job.package is not None
    return absolute(location if is_uri(location) or not temporary else str(Path.home() / Path(location).expanduser()))


def child(location: str, name: str) -> str:
    """The location of something within; a URI's options, such as `?endpoint_override=…`, stay at its end."""
    if not is_uri(location):
        return f"{location.rstrip('/')}/{name}"
    parts = urlsplit(location)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def parent(location: str) -> tuple[str, str]:
    """The location around it and its name there: the inverse of `child`."""
    if not is_uri(location):
        around, _, name = location.rstrip("/").rpartition("/")
        return around, name
    parts = urlsplit(location)
    around, _, name = parts.path.rstrip("/").rpartition("/")
    return parts._replace(path=around).geturl(), name
