"""Tries again what may pass by itself: the one loop for all stores and mounts."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE = 300.0
"""Seconds for which what a store refuses is tried again, after its client's own tries."""
LONGEST_PAUSE = 15.0
"""Seconds between two tries at most; the pauses double up to this one."""
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
LASTING_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG)
"""Errors, by their types and their numbers, that another try does not mend."""


def patiently(
    action: Callable[[], Result],
    what: str,
    patience: float | Callable[[OSError], float] | None = None,
    first_pause: float = 1.0,
) -> Result:
    """Calls `action` until it raises no OSError that may pass, for `patience` seconds (PATIENCE) at most.

    `what` begins the warning that each failure gets. `patience` may depend on the error: 0 for one that lasts.
    `first_pause`: seconds before the second try. Raises the last OSError.

        patiently(lambda: store.open_input_stream("bucket/frame.jpg").read(), "bucket/frame.jpg")
    """
    began, pause = time.monotonic(), first_pause
    while True:
        try:
            return action()
        except OSError as error:
            if callable(patience):
                seconds = patience(error)
            elif isinstance(error, LASTING) or error.errno in LASTING_NUMBERS:
                seconds = 0.0
            else:
                seconds = PATIENCE if patience is None else patience
            if time.monotonic() + pause > began + seconds:
                raise
            logger.warning("%s: %s; it is tried again in %g s", what, error, pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
