"""What a run's folder says of checkpoints that it had, so that a run never starts over because they cannot be seen."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pyarrow import ArrowException

from seqtrack.runs.checkpoint import SUMS_FILE, CheckpointError, StoredCheckpoint, newest_checkpoint
from seqtrack.runs.evaluations import EVALUATIONS_FILE
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import METRICS_FILE
from seqtrack.sums import NAME

FIRST_FILE = "first_checkpoint.json"
"""Names the first checkpoint that the run finished."""
RAYS_LIST = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of a run's checkpoints. It is there from the first one on."""
LOOKS = (0.5, 1.0, 2.0)
"""Seconds to wait before a folder is looked at again that fails, or does not show what it should have."""
Found = TypeVar("Found")
logger = logging.getLogger("seqtrack.training")


def note_first_checkpoint(stored: StoredCheckpoint) -> None:
    """Notes in the run's folder that it has a checkpoint, unless that is noted. Raises OSError."""
    if not stored.run.has(FIRST_FILE):
        stored.run.write_json(FIRST_FILE, {"name": stored.name})


def own_checkpoint(run: RunFolder) -> StoredCheckpoint | None:
    """The run's newest checkpoint, or None for a run that has not finished one yet.

    A folder that says it has others than it shows is looked at again. Raises CheckpointError if it goes on showing
    none; OSError or ArrowException if it cannot be read.
    """
    newest = asked_again(lambda: newest_checkpoint(run))
    for pause in LOOKS:
        hidden = hidden_checkpoint(run, newest)
        if hidden is None and (newest is not None or said_to_have_had(run) is None):
            return newest
        time.sleep(pause)
        newest = asked_again(lambda: newest_checkpoint(run))
    newest = hidden_checkpoint(run, newest) or newest
    if newest is None and (reason := said_to_have_had(run)) is not None:
        raise CheckpointError(
            f"{run.location}: had checkpoints ({reason}) and shows none; is its storage mounted, and complete? Another "
            "RUN.NAME, or removing the folder, starts over"
        )
    return newest


def hidden_checkpoint(run: RunFolder, newest: StoredCheckpoint | None) -> StoredCheckpoint | None:
    """A finished checkpoint that Ray Train lists and that is newer than `newest`; None if there is none.

    A folder's own list, of NFS or of a store, may be an old one.
    """
    for name in reversed(listed_by_ray(run)):
        newer = NAME.fullmatch(name) and (newest is None or position(name) > position(newest.name))
        if newer and run.has(f"{name}/{SUMS_FILE}"):
            return StoredCheckpoint(run, name)
    return None


def said_to_have_had(run: RunFolder) -> str | None:
    """What in the folder says that the run finished a checkpoint once; None if nothing does."""
    if (first := run.read_text(FIRST_FILE)) is not None:
        return f"{FIRST_FILE}: {' '.join(first.split())[:100]}"
    if run.has(RAYS_LIST):
        return f"{RAYS_LIST} lists {', '.join(listed_by_ray(run)[-3:]) or 'some'}"
    if run.read_text(EVALUATIONS_FILE):
        return f"{EVALUATIONS_FILE} has scores"
    # The loop waits for a checkpoint before it starts the next, so after two epochs the first is finished. A record
    # that is the last one may have been written before that.
    *earlier, _ = (run.read_text(METRICS_FILE) or "\n").splitlines() or [""]
    if sum('"epoch/loss"' in line for line in earlier) >= 2:
        return f"{METRICS_FILE} has {len(earlier)} records of several epochs"
    return None


def listed_by_ray(run: RunFolder) -> list[str]:
    """Names of the checkpoints that Ray Train lists, the oldest first; none if its list is cut off."""
    try:
        results = json.loads(run.read_text(RAYS_LIST) or "{}")["checkpoint_results"]
        return [str(result["checkpoint_dir_name"]) for result in results]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def position(name: str) -> tuple[int, int]:
    """Epochs and steps after which a checkpoint was written, by its name."""
    match = NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def await_metrics(run: RunFolder, step: int) -> None:
    """Before `metrics.jsonl` of a run that goes on after some steps is opened: looks again if it does not show.

    Its records up to a checkpoint are written before the checkpoint, so a folder without them is an old view of it.
    """
    for pause in LOOKS:
        if step == 0 or asked_again(lambda: run.has(METRICS_FILE)):
            return
        time.sleep(pause)
    logger.warning("%s: is not there; the records of the first %d steps are lost", run.file(METRICS_FILE), step)


def asked_again(look: Callable[[], Found]) -> Found:
    """What `look` returns, which is called again where the folder fails for a moment. Raises its last error."""
    for pause in LOOKS:
        try:
            return look()
        except (OSError, ArrowException):
            time.sleep(pause)
    return look()
