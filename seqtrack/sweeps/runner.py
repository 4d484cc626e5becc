"""Runs a sweep: says what is to come, lets Ray Tune work, and mirrors every trial to MLflow."""

from __future__ import annotations

import datetime
import logging
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import ray
import torch
from pyarrow import fs
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from seqtrack.config import Config, ConfigError
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import child
from seqtrack.sweeps.results import Trial, TrialNote, read_note, read_trial, read_trials, write_note
from seqtrack.sweeps.settings import Params, Sweep, trial_name
from seqtrack.sweeps.trial import TrialSetting, is_complete, run_trial
from seqtrack.tracking import mlflow as tracking
from seqtrack.training.optimization import Batch, train_step
from seqtrack.training.runlog import read_text
from seqtrack.training.state import TrainState
from seqtrack.training.trainer import (
    Resources,
    check_supported,
    cluster_resources,
    join_cluster,
    make_stop_request,
    open_data,
    open_run_folder,
    plan_resources,
    run_tags,
    settle_paths,
    write_settings,
)

logger = logging.getLogger("seqtrack.sweeps")

SWEEP_FILE = "sweep.json"
TUNE = "tune"
"""Ray Tune's own files in the sweep's folder."""
DRIVER = {"memory": 2**20}
"""Of the process that waits for a trial's workers: next to nothing, since Ray Tune takes no nothing."""
SECONDS_TO_START = 15.0
"""Of a trial's processes, on two cores."""


@dataclass(frozen=True)
class Plan:
    """What the cluster holds."""

    config: Config
    """With what each trial gets."""
    concurrency: int
    """Trials that will run at a time."""
    held: int
    """Trials that the cluster could run at a time."""
    resources: Resources
    """Of each trial."""


class GentleStop:
    """While its block runs, SIGTERM asks the running trials for a checkpoint, and ends Ray Tune when they have ended.

    Ray Tune itself knows SIGINT only, and kills trials at once.
    """

    def __init__(self) -> None:
        self.request = make_stop_request()
        self.received: int | None = None
        self.running: set[str] = set()
        """Names of trials."""

    def __enter__(self) -> GentleStop:
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, _: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        awaited = frozenset() if again else frozenset(self.running)
        threading.Thread(target=self._stop, args=(awaited,), daemon=True).start()

    def _stop(self, awaited: frozenset[str]) -> None:
        with suppress(ray.exceptions.RayError):  # the cluster is gone, and its trials
            ray.get(self.request.request.remote())
        while awaited & self.running:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)


def run_sweep(
    config: Config, sweep: Sweep, stop: GentleStop, say: Callable[[str], None]
) -> tuple[list[Trial], str | None]:
    """Runs every trial that an earlier start of the sweep did not end; `say` gets lines for the console.

    Returns what is there at the end, and the id of the sweep's MLflow run. Raises ConfigError, DataError, or
    CheckpointError before any trial starts.
    """
    check_supported(config)
    config = settle_paths(config)
    data = open_data(config)
    filesystem, folder = open_run_folder(config)
    check_same_sweep(sweep, filesystem, folder)
    join_cluster()
    plan = plan_trials(config, sweep, cluster_resources())
    config = plan.config
    write_settings(config, filesystem, folder)
    with filesystem.open_output_stream(f"{folder}/{SWEEP_FILE}") as file:
        file.write(sweep.to_json().encode())
    if tracking.STORE_VARIABLE not in os.environ:  # the trials' own storage is further down; one store holds them all
        config = config.with_settings({"MLFLOW.TRACKING_URI": tracking.tracking_uri(config)})

    setting = TrialSetting(config, sweep, ray.put(data.index), data.root, plan.resources, stop.request)
    earlier = read_trials(filesystem, folder)
    adaptive = sweep.search.type == "optuna"
    listed = [] if adaptive else sweep.listed()
    for line in announce(setting, plan, sweep.trials if adaptive else len(listed), earlier):
        say(line)
    if sweep.scheduler.type == "none":  # else the scheduler must hear again how the ended ones went
        ended = {trial.name for trial in earlier if trial.ended}
        listed = [params for params in listed if trial_name(params) not in ended]
    parent = tracking.open_parent_run(config)
    count = sweep.trials - sum(trial.ended for trial in earlier) if adaptive else len(listed)
    observer = Observer(setting, data.index.fingerprint, parent, plan.concurrency, count, stop, say)
    if count > 0:
        make_tuner(setting, plan, observer, listed, earlier, count).fit()
    observer.close()
    return read_trials(filesystem, folder), parent


def check_same_sweep(sweep: Sweep, filesystem: fs.FileSystem, folder: str) -> None:
    """Raises ConfigError where the folder has a sweep over other values. More trials of the same are fine."""
    text = read_text(filesystem, f"{folder}/{SWEEP_FILE}")
    earlier = Sweep.model_validate_json(text) if text else sweep
    same = ("parameters", "metric", "direction", "search", "scheduler", "stop")
    changed = [name for name in same if getattr(earlier, name) != getattr(sweep, name)]
    if changed:
        raise ConfigError(f"{folder} holds a sweep with other {', '.join(changed)}; another RUN.NAME keeps both")


def plan_trials(config: Config, sweep: Sweep, cluster: dict[str, float]) -> Plan:
    """How many trials the cluster holds at a time, and what each gets. Raises ConfigError if it holds none.

    A trial has its share of the cluster for training and for its data tasks, so none waits for another's.
    """
    given = {
        "RUN.WORKERS": sweep.workers,
        "RUN.CPUS_PER_WORKER": sweep.resources.cpus_per_worker,
        "RUN.GPUS_PER_WORKER": sweep.resources.gpus_per_worker,
    }
    config = config.with_settings({key: value for key, value in given.items() if value is not None})
    config = config.with_settings({"RUN.MIN_WORKERS": None})  # an elastic trial would take what the others need
    alone = plan_resources(config, cluster)
    training = config.RUN.WORKERS * (config.RUN.CPUS_PER_WORKER or 0.5)
    by_cpu = cluster["CPU"] // (training + min(training, 1.0))  # as much again for data tasks, or one CPU
    gpus = config.RUN.WORKERS * alone.gpus_per_worker
    held = max(1, int(min(by_cpu, cluster["GPU"] / gpus if gpus else math.inf)))
    concurrency = min(held, sweep.concurrency or held)
    share = {name: amount / concurrency for name, amount in cluster.items()}
    resources = plan_resources(config, share)
    config = config.with_settings({"RUN.CPUS_PER_WORKER": resources.cpus_per_worker})
    return Plan(config, concurrency, held, resources)


def announce(setting: TrialSetting, plan: Plan, number: int, earlier: Sequence[Trial]) -> Iterator[str]:
    """What is to come, and how long it may take."""
    config, sweep = setting.config, setting.sweep
    cluster, ended, epochs = cluster_resources(), sum(trial.ended for trial in earlier), sweep.epochs(config)
    yield (
        f"Sweep {config.RUN.NAME} : {number} trials of {epochs} epochs, {config.steps_per_epoch:,} steps each, "
        f"over {', '.join(sweep.parameters)}" + (f"; {ended} are done" if ended else "")
    )
    gpus = f" and {cluster['GPU']:g} GPUs" if cluster["GPU"] else ""
    yield (
        f"The cluster's {cluster['CPU']:g} CPUs{gpus} hold {plan.held} at a time; {plan.concurrency} will run at a "
        f"time, each with {config.RUN.WORKERS} worker(s) of {plan.resources.cpus_per_worker:g} CPUs"
        + (f" and {plan.resources.gpus_per_worker:g} GPUs" if plan.resources.gpus_per_worker else "")
    )
    left = sum(epochs - len(trial.history) for trial in earlier if not trial.ended)
    left += max(number - len(earlier), 0) * epochs
    if left:
        seconds = time_steps(setting, plan)
        rounds = -(-(number - ended) // plan.concurrency)
        total = seconds * config.steps_per_epoch * left / plan.concurrency + rounds * SECONDS_TO_START
        at_most = " at most" if sweep.scheduler.type == "asha" or sweep.stop.keys() - {"epoch"} else ""
        yield (
            f"A step, with its samples, takes about {seconds:.2f} s here; so all will take about "
            f"{datetime.timedelta(seconds=int(total))}{at_most}"
        )


def time_steps(setting: TrialSetting, plan: Plan) -> float:
    """Seconds of a step while as many trials as will run at a time take one; of making its samples, if that is more."""
    task = ray.remote(_time_step).options(
        num_cpus=plan.resources.cpus_per_worker, num_gpus=plan.resources.gpus_per_worker
    )
    times = ray.get([task.remote(setting) for _ in range(plan.concurrency)])
    step, sample = (statistics.mean(values) for values in zip(*times, strict=True))
    training = setting.config.RUN.WORKERS * plan.resources.cpus_per_worker
    data = max(cluster_resources()["CPU"] / plan.concurrency - training, plan.resources.placement.cpus_per_task)
    return max(step, setting.config.TRAIN.BATCH_SIZE * sample / data)


def _time_step(setting: TrialSetting) -> tuple[float, float]:
    """Seconds of a worker's step, and of making a sample."""
    config = setting.config
    triplets = TripletSource.from_config(config, ray.get(setting.index_ref), setting.root)
    made = []
    for number in range(8):
        began = time.perf_counter()
        triplets.sample(number)
        made.append(time.perf_counter() - began)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = TrainState.fresh(config, 0, device)
    data, size = config.DATA, config.TRAIN.BATCH_SIZE // config.RUN.WORKERS

    def images(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, 3, dtype=torch.uint8, device=device)

    batch = Batch(
        images(size, data.TEMPLATE.NUMBER, data.TEMPLATE.SIZE, data.TEMPLATE.SIZE),
        images(size, data.SEARCH.SIZE, data.SEARCH.SIZE),
        torch.full((size, 4), 0.25, device=device),
        torch.ones(size, data.TEMPLATE.NUMBER + 1, device=device),
    )
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        train_step(state.model, state.optimizer, batch, config).cpu()  # waits for the device
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:]), statistics.median(made)


def make_tuner(
    setting: TrialSetting,
    plan: Plan,
    observer: Observer,
    listed: Sequence[Params],
    earlier: Sequence[Trial],
    count: int,
) -> tune.Tuner:
    """Ray Tune's part. `listed`: the trials, where they are known beforehand; `count`: how many there will be."""
    config, sweep = setting.config, setting.sweep
    adaptive = sweep.search.type == "optuna"
    # A trial that is asked to stop in its first epoch has nothing to report, which Ray Tune would fail the sweep for.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # A trial that failed says why in a line; Ray Tune would print a page for each try.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, setting=setting), DRIVER),
        # Optuna has the space already, and Ray Tune takes only one.
        param_space={} if adaptive else {key: parameter.domain() for key, parameter in sweep.parameters.items()},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.direction,
            search_alg=make_search(sweep, plan, listed, earlier),
            scheduler=make_scheduler(config, sweep),
            num_samples=count,
            max_concurrent_trials=plan.concurrency if adaptive else None,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=f"{datetime.datetime.now():%Y%m%d-%H%M%S}",
            storage_path=child(child(config.RUN.STORAGE_PATH, str(config.RUN.NAME)), TUNE),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            stop=lambda _, result: sweep.is_enough(result),
            callbacks=[observer],
        ),
    )


def make_search(
    sweep: Sweep, plan: Plan, listed: Sequence[Params], earlier: Sequence[Trial]
) -> SearchAlgorithm | Searcher:
    """The listed trials in their order; or Optuna, which is told what an earlier start of the sweep found."""
    if sweep.search.type == "random":
        # It does not heed TuneConfig.max_concurrent_trials.
        return BasicVariantGenerator([dict(params) for params in listed], max_concurrent=plan.concurrency)
    unfinished = [trial.params for trial in earlier if not trial.ended]
    space = {key: parameter.domain() for key, parameter in sweep.parameters.items()}
    search = OptunaSearch(
        space, sweep.metric, sweep.direction, unfinished or None, seed=sweep.search.seed + len(earlier)
    )
    for trial in earlier:
        if trial.ended and trial.history:
            search.add_evaluated_point(trial.params, trial.history[-1][sweep.metric])
    return search


def make_scheduler(config: Config, sweep: Sweep) -> TrialScheduler:
    if sweep.scheduler.type == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        "epoch",
        max_t=sweep.epochs(config),
        grace_period=min(sweep.scheduler.grace_period, sweep.epochs(config)),
        reduction_factor=sweep.scheduler.reduction_factor,
        stop_last_trials=False,
    )


def name_of(trial: TuneTrial) -> str:
    return trial_name(trial.config)


class Observer(tune.Callback):
    """In the job's process: notes how each trial ends, and mirrors its folder to MLflow meanwhile."""

    def __init__(
        self,
        setting: TrialSetting,
        fingerprint: str,
        parent: str | None,
        concurrency: int,
        count: int,
        stop: GentleStop,
        say: Callable[[str], None],
    ) -> None:
        self._setting, self._fingerprint, self._parent = setting, fingerprint, parent
        self._mirrors: dict[str, tracking.MirrorThread] = {}
        self._concurrency, self._count, self._ended = concurrency, count, 0
        self._stop, self._say, self._began = stop, say, time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        name = name_of(trial)
        self._stop.running.add(name)
        if name in self._mirrors:
            return
        config, filesystem, folder = self._place(trial)
        filesystem.create_dir(folder, recursive=True)
        tags = run_tags(config, self._fingerprint) | {"phase": "trial"}
        tags |= {"mlflow.parentRunId": self._parent} if self._parent else {}
        params = {f"_{key}": value for key, value in trial.config.items()}  # MLflow sorts by name: these come first
        self._mirrors[name] = tracking.MirrorThread(config, filesystem, folder, tags, params)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        config, filesystem, folder = self._place(trial)
        note = read_note(filesystem, folder) or TrialNote(trial.config)
        done = is_complete(read_trial(filesystem, folder, note), config, self._setting.sweep)
        if done or self._stop.received is None:
            write_note(filesystem, folder, replace(note, status="finished" if done else "stopped early"))
            self._end(trial, "FINISHED")
        self._stop.running.discard(name_of(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        _, filesystem, folder = self._place(trial)
        note = read_note(filesystem, folder) or TrialNote(trial.config)
        if note.status != "failed":  # its process was killed before it could say why
            reason = str(trial.get_error()).strip().splitlines()[-1]
            note = replace(note, status="failed", reason=reason)
            write_note(filesystem, folder, note)
        self._say(f"{name_of(trial)} failed: {note.reason}")
        self._end(trial, "FAILED")
        self._stop.running.discard(name_of(trial))

    def close(self) -> None:
        """Waits until MLflow has everything, for MLFLOW.PATIENCE seconds at most."""
        deadline = time.monotonic() + self._setting.config.MLFLOW.PATIENCE
        for mirror in self._mirrors.values():
            mirror.close("KILLED", deadline - time.monotonic())

    def _place(self, trial: TuneTrial) -> tuple[Config, fs.FileSystem, str]:
        config = self._setting.trial_config(trial.config)
        return config, *open_run_folder(config)

    def _end(self, trial: TuneTrial, status: tracking.Status) -> None:
        self._ended += 1
        if left := self._count - self._ended:
            halves = min(self._concurrency, left) / 2  # those that run now are half done, on average
            seconds = int((time.monotonic() - self._began) / (self._ended + halves) * (left - halves))
            self._say(f"{self._ended} of {self._count} trials ended, about {datetime.timedelta(seconds=seconds)} left")
        if name_of(trial) in self._mirrors:
            self._mirrors[name_of(trial)].end(status)
