"""Whether `--resume-from` names the checkpoint that a run, which has checkpoints of its own, once began from.

Only names are compared: what a run began from may be gone, and `latest` may mean a newer checkpoint by now.
"""

from __future__ import annotations

import os.path
import posixpath
from urllib.parse import unquote, urlsplit

from seqtrack.locations import absolute, is_uri
from seqtrack.runs.checkpoint import CheckpointError, OpenedCheckpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import checkpoint_name

HUB = "hf://"
START = "start"
"""The folder in a run's folder with a copy of the checkpoint that it began from, if that was on the Hub."""
LOCATION_FILE = "location.txt"
"""Where the copy is from, in that folder."""


def check_origin(asked: str, own: OpenedCheckpoint, run: RunFolder) -> None:
    """Raises CheckpointError if a run that goes on from its own checkpoint is asked to resume from another one.

    `asked`: what `--resume-from` says. What the run began from, and its own newest checkpoint, are fine.
    """
    origin = own.meta.get("resumed_from")
    path = origin.get("path") if isinstance(origin, dict) else None
    began = path if isinstance(path, str) else None
    if asked.startswith(HUB):
        if began is not None and _is_hubs(asked, began, run):
            return
    elif _means(asked, own.path) or (began is not None and _means(asked, began)):
        return
    what = f"--resume-from {asked}: {run.location}"
    if not asked.startswith(HUB) and posixpath.dirname(_known(own.path)) in (_normal(asked), _around(asked)):
        raise CheckpointError(
            f"{what} has gone on to {own.stored.name}. Without --resume-from it goes on from there; another RUN.NAME "
            f"starts from {asked}"
        )
    source = "began from no checkpoint" if began is None else f"began from {_began_from(began, run)}"
    raise CheckpointError(
        f"{what} {source}, and goes on from its own {own.stored.name}. Without --resume-from it goes on; another "
        f"RUN.NAME starts from {asked}"
    )


def _means(asked: str, checkpoint: str) -> bool:
    """Whether a location can mean a checkpoint: its folder; its run's, or `<run>/latest`; `<run>/3` for epoch 3."""
    place, name = _normal(asked), posixpath.basename(_normal(asked))
    folder, checkpoints_name = posixpath.split(_known(checkpoint))
    if place in (_known(checkpoint), folder):
        return True
    return _around(asked) == folder and (name == "latest" or _is_epoch(name, checkpoints_name))


def _is_hubs(asked: str, began: str, run: RunFolder) -> bool:
    """Whether a run's start is the copy of what `asked` names on the Hub."""
    folder, name = posixpath.split(_known(began))
    if folder != _known(run.child(START).path):
        return False
    repository, revision, inside = _parts(asked)
    last = posixpath.basename(inside)
    fits = last in ("", "latest", "checkpoints", name) or _is_epoch(last, name)
    if (known := run.child(START).read_text(LOCATION_FILE)) is None:  # an earlier version wrote none
        return fits
    known_repository, known_revision, known_inside = _parts(known.strip())
    if inside == known_inside:
        fits = True
    return fits and (repository, revision or known_revision) == (known_repository, known_revision or revision)


def _parts(location: str) -> tuple[str, str, str]:
    """Repository, revision and the path within it of an `hf://` location."""
    user, _, rest = location.removeprefix(HUB).strip("/").partition("/")
    name, _, inside = rest.partition("/")
    name, _, revision = name.partition("@")
    return f"{user}/{name}", revision, inside


def _began_from(began: str, run: RunFolder) -> str:
    folder, name = posixpath.split(_known(began))
    known = run.child(START).read_text(LOCATION_FILE) if folder == _known(run.child(START).path) else None
    return f"{known.strip()} ({name})" if known else began


def _is_epoch(name: str, checkpoint: str) -> bool:
    return name.isdecimal() and checkpoint_name(int(name), 0) == checkpoint


def _around(location: str) -> str:
    return posixpath.dirname(_normal(location))


def _normal(location: str) -> str:
    """The path that a location has within its filesystem, in the one spelling that `_known` gives, too."""
    place = absolute(location)
    if not is_uri(place):
        return _known(place)
    parts = urlsplit(place)
    return _known(f"{parts.netloc.rpartition('@')[2]}/{unquote(parts.path).lstrip('/')}")


def _known(path: str) -> str:
    """A path within its filesystem without `..`, and on a disk without links."""
    return os.path.realpath(path) if path.startswith("/") else posixpath.normpath(path)
