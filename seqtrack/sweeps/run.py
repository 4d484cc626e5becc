"""A sweep from beginning to end: planned, run by Ray Tune, summed up."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray

from seqtrack.cluster.connect import join_cluster
from seqtrack.cluster.resources import cluster_resources
from seqtrack.cluster.stop import StopOnSignal
from seqtrack.config import Config
from seqtrack.environment import command
from seqtrack.errors import Stopped
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.experiments.prepare import open_experiment
from seqtrack.integrations.mlflow_store import close_parent_run, open_parent_run
from seqtrack.integrations.store_uri import with_one_store
from seqtrack.locations import child
from seqtrack.runs.folder import RunFolder, open_run, write_settings
from seqtrack.shown import shown_command
from seqtrack.sweeps.observer import Observer, interrupt_when_ended
from seqtrack.sweeps.plan import announce, plan_trials, plan_work
from seqtrack.sweeps.results import SWEEP_FILE, Trial, check_same_sweep, read_trials
from seqtrack.sweeps.settings import Sweep
from seqtrack.sweeps.summary import write_summary
from seqtrack.sweeps.trial import TrialSetting
from seqtrack.sweeps.tuner import make_tuner
from seqtrack.transfer import send

logger = logging.getLogger(__name__)


def run(config: Config, sweep: Sweep, say: Callable[[str], None]) -> int:
    """Runs every trial that an earlier start of the sweep did not end, writes the summary and tells MLflow.

    `config` has a RUN.NAME, and `sweep` fits it (`Sweep.check`). `say` gets the lines for the console. Returns the
    exit code: 0, or 1 if a trial failed. Raises InputError before any trial starts, and Stopped if it was asked to
    stop; the same call goes on.
    """
    config, data = open_experiment(config)
    benchmarks = open_for_run(config)
    folder = open_run(config)
    check_same_sweep(sweep, folder)
    earlier = read_trials(folder)
    work = plan_work(sweep, earlier)
    join_cluster()
    plan = plan_trials(config, sweep, cluster_resources())
    write_settings(plan.config, folder)
    folder.write(SWEEP_FILE, sweep.to_json())
    config = with_one_store(plan.config)

    running: set[str] = set()
    # Only now, since Ray handles SIGTERM itself when it joins.
    with StopOnSignal(signal.SIGTERM, then=lambda: interrupt_when_ended(running)) as stop:
        setting = TrialSetting(config, sweep, folder, ray.put(data.mixture), benchmarks, plan.resources, stop.request)
        try:
            for line in announce(setting, plan, work.trials, earlier):
                say(line)
            parent = open_parent_run(config)
            observer = Observer(setting, data.mixture, parent, plan, work, stop, running, say)
            if work.left > 0:
                make_tuner(setting, plan, work, earlier, observer).fit()
            observer.close()
            trials = read_trials(folder)
            result = publish_summary(setting, trials, parent)
            say("")
            say(result)
        except KeyboardInterrupt:
            raise Stopped(stop.received or signal.SIGINT) from None

    failed = [trial for trial in trials if trial.note.status == "failed"]
    for trial in failed:
        logger.error("failed: %s: %s", trial.name, trial.note.reason)
    if any(trial.note.status == "unfinished" for trial in trials):
        raise Stopped(stop.received or signal.SIGINT)  # Ray Tune takes SIGINT for itself, and returns
    for line in where_results_are(trials, folder):
        say(line)
    return 1 if failed else 0


def publish_summary(setting: TrialSetting, trials: Sequence[Trial], parent: str | None) -> str:
    """Writes the summary into the sweep's folder and its MLflow run. Returns the result in a sentence."""
    folder, failed = setting.folder, any(trial.note.status == "failed" for trial in trials)
    with tempfile.TemporaryDirectory() as directory:
        result = write_summary(setting.config, setting.sweep, trials, Path(directory))
        send(Path(directory), folder.filesystem, folder.path, last=["index.html"])
        close_parent_run(setting.config, parent, Path(directory), {}, "FAILED" if failed else "FINISHED")
    return result


def where_results_are(trials: Sequence[Trial], folder: RunFolder) -> Iterator[str]:
    """Lines for the console: where the summary is, and how to train on the best configuration."""
    yield f"Summary:      {child(folder.location, 'index.html')}"
    yield f"All trials:   {child(folder.location, 'trials.csv')}"
    if any(trial.finished for trial in trials):
        best = command("train", ["--config", child(folder.location, "best_config.yaml")])
        yield f"Train on it:  {shown_command(best)}"
