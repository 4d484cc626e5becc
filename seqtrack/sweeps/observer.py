"""What the job's process does while Ray Tune works: notes how each trial ends, and mirrors it to MLflow."""

from __future__ import annotations

import datetime
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from seqtrack.cluster.stop import StopOnSignal
from seqtrack.data.mixture import Mixture
from seqtrack.experiments.train import run_tags
from seqtrack.integrations.mirror_state import Status
from seqtrack.integrations.mirror_thread import MirrorThread
from seqtrack.sweeps.plan import Plan, Work
from seqtrack.sweeps.results import TrialNote, read_note, read_trial, write_note
from seqtrack.sweeps.settings import trial_name
from seqtrack.sweeps.trial import TrialSetting, is_complete


class Observer(tune.Callback):
    """What Ray Tune tells about its trials."""

    def __init__(
        self,
        setting: TrialSetting,
        mixture: Mixture,
        parent: str | None,
        plan: Plan,
        work: Work,
        stop: StopOnSignal,
        running: set[str],
        say: Callable[[str], None],
    ) -> None:
        """`parent`: the sweep's MLflow run; `running` gets the names of the trials that train."""
        self._setting, self._mixture, self._parent = setting, mixture, parent
        self._concurrency, self._count, self._ended = plan.concurrency, work.left, 0
        self._stop, self._running, self._say, self._began = stop, running, say, time.monotonic()
        self._mirrors: dict[str, MirrorThread] = {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = name_of(trial)
        self._running.add(name)
        if name in self._mirrors:
            return
        config, folder = self._setting.trial_config(trial.config), self._setting.trial_folder(trial.config)
        folder.create()
        tags = run_tags(config, self._mixture.fingerprint) | {"phase": "trial"}
        tags |= {"mlflow.parentRunId": self._parent} if self._parent else {}
        params = {f"_{key}": value for key, value in trial.config.items()}  # MLflow sorts by name: these come first
        self._mirrors[name] = MirrorThread(config, folder, tags, params | self._mixture.params())

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        config, folder = self._setting.trial_config(trial.config), self._setting.trial_folder(trial.config)
        note = read_note(folder) or TrialNote(trial.config)
        done = is_complete(read_trial(folder, note), config, self._setting.sweep)
        if done or self._stop.received is None:
            write_note(folder, replace(note, status="finished" if done else "stopped early"))
            self._end(trial, "FINISHED")
        self._running.discard(name_of(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        folder = self._setting.trial_folder(trial.config)
        note = read_note(folder) or TrialNote(trial.config)
        if note.status != "failed":  # its process was killed before it could say why
            reason = str(trial.get_error()).strip().splitlines()[-1]
            note = replace(note, status="failed", reason=reason)
            write_note(folder, note)
        self._say(f"{name_of(trial)} failed: {note.reason}")
        self._end(trial, "FAILED")
        self._running.discard(name_of(trial))

    def close(self) -> None:
        """Waits until MLflow has everything, for MLFLOW.PATIENCE seconds at most."""
        deadline = time.monotonic() + self._setting.config.MLFLOW.PATIENCE
        for mirror in self._mirrors.values():
            mirror.close("KILLED", deadline - time.monotonic())

    def _end(self, trial: TuneTrial, status: Status) -> None:
        self._ended += 1
        if left := self._count - self._ended:
            halves = min(self._concurrency, left) / 2  # those that run now are half done, on average
            seconds = int((time.monotonic() - self._began) / (self._ended + halves) * (left - halves))
            self._say(f"{self._ended} of {self._count} trials ended, about {datetime.timedelta(seconds=seconds)} left")
        if name_of(trial) in self._mirrors:
            self._mirrors[name_of(trial)].end(status)


def name_of(trial: TuneTrial) -> str:
    return trial_name(trial.config)


def interrupt_when_ended(running: set[str]) -> None:
    """Waits until the trials that train now have ended, then sends this process the signal that ends Ray Tune.

    Ray Tune heeds SIGINT only, and kills its trials at once.
    """
    awaited = frozenset(running)
    while awaited & running:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
