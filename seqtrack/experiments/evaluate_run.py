"""Measures the checkpoints of a run on benchmarks: beside its training, as they are finished, or after it.

Nothing of this reaches the training. What is measured stays in the run's folder, so the same run goes on with it.
"""

from __future__ import annotations

import datetime
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from seqtrack.config import Config
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.protocols import MEASURES, protocol_named
from seqtrack.experiments.evaluate import Folder, Tracking, score_all, scores_of, track_benchmark, write_page
from seqtrack.experiments.evaluators import Evaluators, Plan, take_idle_time_only
from seqtrack.failures import explain
from seqtrack.integrations.store_uri import EVALUATION
from seqtrack.locations import child
from seqtrack.reports.evaluation_tables import TrackerFacts
from seqtrack.runs.checkpoint import NAME, whole_checkpoints
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation, read_evaluations
from seqtrack.runs.folder import RunFolder
from seqtrack.tracker.load import load_trained

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_LINES = 30.0
LONGEST_PAUSE = 30.0
"""Seconds between two tries at most, after an error of the run's folder; the pauses double up to this one."""
MOST_TRIES = 5
"""How often it is tried in a row after the training has ended."""
SECONDS_TO_END = 10.0
"""How long an evaluation that is to end may take for it: it looks up about once a second."""


class Abandoned(Exception):
    """The evaluation was asked to end before everything was measured."""


class RunEvaluation:
    """Measures a run's checkpoints in a thread. Whatever happens to it, the training goes on."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        benchmarks: Sequence[BenchmarkData],
        beside: Plan | None,
        after: Callable[[], Plan],
        scored: Callable[[CheckpointScores], None] = lambda scores: None,
    ) -> None:
        """`benchmarks`: with the sequences to track; `beside`: the workers beside the training, if there is room;
        `after`: plans the workers after it; `scored` is told each result."""
        self._config, self._run, self._benchmarks = config, run, benchmarks
        self._beside, self._after, self._scored = beside, after, scored
        self._workers: Evaluators | None = None
        self._failed: set[str] = set()
        self._checkpoints: list[str] = []
        """Those that the last look found."""
        self._told = False
        """Whether the log says that the run's folder fails."""
        self._page_lacks = False
        """Whether something was measured that the page does not have."""
        self.problem: str | None = None
        """Why the last checkpoint that could not be measured was not."""
        self._trained, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="evaluation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """The training has ended: measures the rest, until `stopped` says so. Returns whether all was measured."""
        self._trained.set()
        while self._thread.is_alive() and not stopped():
            self._thread.join(0.2)
        return not self._thread.is_alive() and not self._failed

    def close(self) -> None:
        """Ends what is under way; sequences that were tracked to their end are kept."""
        self._abandoned.set()
        self._trained.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_END)
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def due(self) -> list[str]:
        """Checkpoints that are to be measured and were not, the oldest first."""
        self._checkpoints = whole_checkpoints(self._run, self._checkpoints)
        return due_checkpoints(self._config, self._run, self._benchmarks, self._checkpoints)

    def _work(self) -> None:
        if self._beside is not None:
            take_idle_time_only()
        tries, pause = 0, SECONDS_BETWEEN_LOOKS
        while not self._abandoned.is_set():
            trained = self._trained.is_set()
            try:
                if self._go_on():
                    return
                tries, pause, self._told = 0, SECONDS_BETWEEN_LOOKS, False
            except Exception as error:  # of the disk, of any object store, of a cluster that is gone
                self.problem = explain(error)
                if not self._told:
                    self._told = True
                    logger.warning("Evaluation : %s; it is tried again", self.problem)
                tries += trained
                if tries >= MOST_TRIES:
                    self._failed.add("")
                    return
                self._abandoned.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _go_on(self) -> bool:
        """Measures the next checkpoint, or waits for it. Returns whether all was measured, and the page written."""
        trained = self._trained.is_set()
        if not trained and self._beside is None:
            self._trained.wait()
            return False
        names = [name for name in self.due() if name not in self._failed]
        if names:
            self._try(names[0])
            self._page_lacks = True
        elif trained:
            if self._page_lacks or not self._run.has(f"{EVALUATION}/index.html"):
                self._write_page()
            return True
        else:
            self._trained.wait(SECONDS_BETWEEN_LOOKS)
        return False

    def _try(self, name: str) -> None:
        try:
            self._measure(name)
        except Abandoned:
            pass
        except Exception as error:
            if self._abandoned.is_set():
                return
            self._failed.add(name)
            kept = name in whole_checkpoints(self._run)
            self.problem = explain(error) if kept else "it was not kept (TRAIN.KEEP_CHECKPOINTS)"
            logger.warning("Evaluation : %s is not measured: %s", name, self.problem)

    def _measure(self, name: str) -> None:
        trained = load_trained(f"{self._run.location}/{name}")
        known = {one.key for one in read_evaluations(self._run)}
        for data in self._benchmarks:
            if (name, series_of(data)) in known:
                continue
            place = child(self._run.location, EVALUATION)
            folder = track_benchmark(trained, name, data, place, self._workers_now, self._watch, anew=True)
            scores = scores_of(score_all(data, {name: folder.location}, None)[0], name, trained.step)
            add_evaluation(self._run, scores)
            main = protocol_named(scores.protocol).measures[0]
            logger.warning(
                "Evaluation : epoch %d, %s, %s: %s %.2f (%s)",
                trained.epoch,
                data.benchmark.title,
                data.coverage,
                MEASURES[main],
                scores.measures[main],
                scores.protocol,
            )
            self._scored(scores)

    def _workers_now(self) -> Evaluators:
        """The workers; after the training, those that have its part of the cluster, too."""
        wanted = self._after() if self._beside is None or self._trained.is_set() else self._beside
        if self._workers is not None and self._workers.plan != wanted:
            self._workers.close()
            self._workers = None
        if self._workers is None:
            self._workers = Evaluators(wanted)
        return self._workers

    def _watch(self, tracker: str, data: BenchmarkData, frames: int, happenings: Iterator[Tracking]) -> None:
        """Says now and then how far it is."""
        done, began, said = 0, time.monotonic(), time.monotonic()
        for one in happenings:
            if self._abandoned.is_set():
                raise Abandoned
            done, now = done + one.frames, time.monotonic()
            if done > 0 and now - said > SECONDS_BETWEEN_LINES:
                said, rate = now, done / (now - began)
                left = datetime.timedelta(seconds=int((frames - done) / rate))
                logger.warning(
                    "Evaluation : %s on %s: %s of %s frames, %.1f a second, %s left",
                    *(tracker, data.benchmark.title, f"{done:,}", f"{frames:,}", rate, left),
                )

    def _write_page(self) -> None:
        """The page of everything that was measured, in the run's folder."""
        place, known = child(self._run.location, EVALUATION), read_evaluations(self._run)
        evaluations, facts = [], dict[str, TrackerFacts]()
        for data in self._benchmarks:
            names = [one.checkpoint for one in known if one.series == series_of(data)]
            folders = {name: Folder(place, name, data) for name in names}
            found = {name: folder.location for name, folder in folders.items() if folder.done()}
            if not found:
                continue
            evaluations += score_all(data, found, None)
            for name in found:
                facts[name] = folders[name].facts(epoch_of(name), self._run.name)
        if evaluations:
            write_page(evaluations, facts, place, videos=False)


def series_of(data: BenchmarkData) -> str:
    """The series that a run's numbers on a benchmark belong to, by its own protocol."""
    return CheckpointScores(
        "", 0, data.benchmark.name, data.benchmark.protocol, len(data.sequences), data.size, {}
    ).series


def due_checkpoints(
    config: Config, run: RunFolder, benchmarks: Sequence[BenchmarkData], names: Sequence[str] | None = None
) -> list[str]:
    """Checkpoints in a run's folder that EVAL.EVERY_EPOCHS asks for and that lack a number, the oldest first.

    `names`: the finished ones, the oldest first; None: the folder is asked.
    """
    known = {one.key for one in read_evaluations(run)}
    due = []
    for name in whole_checkpoints(run) if names is None else names:
        epoch = epoch_of(name)
        asked = epoch is not None and (epoch % config.EVAL.EVERY_EPOCHS == 0 or epoch == config.TRAIN.EPOCH)
        if asked and any((name, series_of(data)) not in known for data in benchmarks):
            due.append(name)
    return due


def epoch_of(name: str) -> int | None:
    """The epoch at whose end a checkpoint was written; None for one within an epoch."""
    found = NAME.fullmatch(name)
    return int(found[1]) if found and not found[2] else None
