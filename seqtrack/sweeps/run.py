"""A sweep from beginning to end: planned, run by Ray Tune, summed up."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ray

from seqtrack import interruption
from seqtrack.cluster.connect import join_cluster
from seqtrack.cluster.resources import cluster_resources
from seqtrack.cluster.secrets import HUB_TOKENS
from seqtrack.cluster.stop import StopOnSignal
from seqtrack.config import Config
from seqtrack.environment import command
from seqtrack.errors import Stopped
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.experiments.prepare import open_experiment
from seqtrack.integrations.mlflow_store import close_parent_run, open_parent_run
from seqtrack.integrations.store_uri import with_one_store
from seqtrack.lease import Lease
from seqtrack.locations import child, lasting
from seqtrack.model.weights import Weights, starting_weights
from seqtrack.runs.folder import RunFolder, open_run, own_run, write_settings
from seqtrack.shown import shown_command
from seqtrack.sweeps.observer import Observer, interrupt_when_ended
from seqtrack.sweeps.plan import announce, plan_trials, plan_work
from seqtrack.sweeps.results import (
    DATA_FILE,
    SWEEP_FILE,
    Trial,
    check_same_data,
    check_same_sweep,
    describe_data,
    read_trials,
)
from seqtrack.sweeps.settings import Sweep
from seqtrack.sweeps.summary import write_summary
from seqtrack.sweeps.trial import TrialSetting
from seqtrack.sweeps.tuner import make_tuner
from seqtrack.transfer import send

logger = logging.getLogger(__name__)


def run(config: Config, sweep: Sweep, say: Callable[[str], None], take_over: bool = False) -> int:
    """Runs every trial that an earlier start of the sweep did not end, writes the summary and tells MLflow.

    `config` has a RUN.NAME, and `sweep` fits it (`Sweep.check`). `say` gets the lines for the console. `take_over`:
    takes the folder from another job that works in it. Returns the exit code: 0, or 1 if a trial failed. Raises
    InputError before any trial starts, Stopped if it was asked to stop (the same call goes on), and LeaseLostError if
    another job took the folder.
    """
    config = config.with_settings({"RUN.STORAGE_PATH": lasting(config.RUN.STORAGE_PATH)})
    with own_run(config, take_over) as lease:
        try:
            return _run(config, sweep, say, lease, take_over)
        except Exception:  # of Ray Tune, of a stop, of the folder: all of it may come of another job's taking over
            lease.proof.check()
            raise


def _run(config: Config, sweep: Sweep, say: Callable[[str], None], lease: Lease, take_over: bool) -> int:
    config, data = open_experiment(config)
    benchmarks = open_for_run(config)
    folder = open_run(config).under(lease)
    check_same_sweep(sweep, folder)
    earlier = read_trials(folder)
    if earlier and (line := check_same_data(data, benchmarks, folder)) is not None:
        say(line)
    work = plan_work(sweep, earlier)
    begin_new_ones = work.left > sum(not trial.ended for trial in earlier)
    weights = shared_weights(config, sweep) if begin_new_ones else None
    # Trials that read weights by themselves may need the Hub's token for it.
    join_cluster(keep=HUB_TOKENS if weights is None else ())
    plan = plan_trials(config, sweep, cluster_resources())
    write_settings(plan.config, folder)
    folder.write(SWEEP_FILE, sweep.to_json())
    folder.write_json(DATA_FILE, describe_data(data, benchmarks))
    config = with_one_store(plan.config)

    running: set[str] = set()
    # Only now, since Ray handles SIGTERM itself when it joins.
    with StopOnSignal(signal.SIGTERM, then=lambda: interrupt_when_ended(running)) as stop:
        setting = TrialSetting(
            config,
            sweep,
            folder,
            ray.put(data.mixture),
            benchmarks,
            plan.resources,
            stop.request,
            ray.put(weights) if weights is not None else None,
            take_over,
            data.frames,
        )
        lease.when_lost(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            for line in announce(setting, plan, work.trials, earlier):
                say(line)
            parent = open_parent_run(config, "sweep")
            observer = Observer(setting, data.mixture, parent, plan, work, stop, running, say)
            if work.left > 0:
                make_tuner(setting, plan, work, earlier, observer).fit()
            observer.close()
            trials = read_trials(folder)
            result = publish_summary(setting, trials, parent)
            say("")
            say(result)
        except KeyboardInterrupt:
            raise interruption.reason() or Stopped(stop.received or signal.SIGINT) from None

    failed = [trial for trial in trials if trial.note.status == "failed"]
    for trial in failed:
        logger.error("failed: %s: %s", trial.name, trial.note.reason)
    if any(trial.note.status == "unfinished" for trial in trials):
        raise Stopped(stop.received or signal.SIGINT)  # Ray Tune takes SIGINT for itself, and returns
    for line in where_results_are(trials, folder):
        say(line)
    return 1 if failed else 0


def shared_weights(config: Config, sweep: Sweep) -> tuple[Weights, str] | None:
    """The weights that all new trials start from, read once and by the job, which may have a token for the Hub.

    None where trials may differ in them. Raises WeightsError.
    """
    if any(key.startswith(("MODEL.", "DATA.")) for key in sweep.parameters):
        return None
    return starting_weights(config)


def publish_summary(setting: TrialSetting, trials: Sequence[Trial], parent: str | None) -> str:
    """Writes the summary into the sweep's folder and its MLflow run. Returns the result in a sentence."""
    setting.folder.check_owner()
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
