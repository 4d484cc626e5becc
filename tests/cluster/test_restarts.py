from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

from seqtrack.cluster.restarts import RestartReport
from seqtrack.runs.log import append_to_log
from tests.folders import run_at


def test_the_log_says_why_workers_were_started_again(tmp_path: Path) -> None:
    log = pickle.loads(pickle.dumps(RestartReport(partial(append_to_log, run_at(tmp_path)), 3)))  # as Ray sends it
    log.after_exception(None, {1: RuntimeError("the disk is full\n  at line 3"), 0: OSError("gone")})
    log.after_exception(None, {0: ValueError("once more")})
    assert (tmp_path / "train.log").read_text() == (
        "Worker 0 failed (gone); failure 1, and RUN.MAX_FAILURES permits 3\n"
        "Worker 1 failed (RuntimeError: the disk is full); failure 1, and RUN.MAX_FAILURES permits 3\n"
        "Worker 0 failed (once more); failure 2, and RUN.MAX_FAILURES permits 3\n"
    )
