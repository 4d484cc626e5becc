"""What is to come: the trials that are left, how many the cluster runs at a time, and how long that may take."""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import ray
import torch

from seqtrack.cluster.resources import Resources, cluster_resources, plan_resources
from seqtrack.config import Config
from seqtrack.data.triplets import TripletSource
from seqtrack.sweeps.results import Trial
from seqtrack.sweeps.settings import Params, Sweep, trial_name, values_key
from seqtrack.sweeps.trial import TrialSetting
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, train_step

SECONDS_TO_START = 15.0
"""Time that the processes of a trial take to start, on two cores."""


@dataclass(frozen=True)
class Plan:
    """How a sweep shares the cluster."""

    config: Config
    """The settings, with what each trial gets of the cluster."""
    concurrency: int
    """Trials that will run at a time."""
    held: int
    """Trials that the cluster could run at a time."""
    resources: Resources
    """What each trial takes of the cluster."""


class Work(NamedTuple):
    """The trials of a sweep, and those that are left."""

    trials: int
    """How many the sweep has."""
    left: int
    """How many Ray Tune is to run."""
    listed: Sequence[Params]
    """Those that are left, if they are known beforehand: Optuna finds them one after the other."""


def plan_work(sweep: Sweep, earlier: Sequence[Trial]) -> Work:
    """What is left to do after earlier starts of the sweep, which began the trials `earlier`."""
    ended = {trial.name for trial in earlier if trial.ended}
    if sweep.search.type == "optuna":
        trials = max(sweep.draws, len(earlier))
        return Work(trials, trials - len(ended), [])
    begun = {values_key(trial.params): trial.params for trial in sorted(earlier, key=lambda trial: trial.ended)}
    listed = [begun.get(values_key(params), params) for params in sweep.listed()]
    # Those that were begun when the sweep had more trials are trained to their end, too.
    listed += [trial.params for trial in earlier if not trial.ended and trial.params not in listed]
    # A scheduler must hear again how those that ended went; without one they need not be run.
    left = [params for params in listed if sweep.scheduler.type != "none" or trial_name(params) not in ended]
    return Work(len(listed), len(left), left)


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
    measuring = config.EVAL.RESOURCES or {}
    data = min(training, 1.0)  # as much again for data tasks, or one CPU
    by_cpu = cluster["CPU"] // (training + data + measuring.get("CPU", measuring.get("GPU", 0.0)))
    gpus = config.RUN.WORKERS * alone.gpus_per_worker + measuring.get("GPU", 0.0)
    held = max(1, int(min(by_cpu, cluster["GPU"] / gpus if gpus else math.inf)))
    concurrency = min(held, sweep.concurrency or held)
    share = {name: amount / concurrency for name, amount in cluster.items()}
    resources = plan_resources(config, share)
    config = config.with_settings({"RUN.CPUS_PER_WORKER": resources.cpus_per_worker})
    return Plan(config, concurrency, held, resources)


def announce(setting: TrialSetting, plan: Plan, trials: int, earlier: Sequence[Trial]) -> Iterator[str]:
    """Lines that say what is to come, and how long it may take. `trials`: how many the sweep has."""
    config, sweep = setting.config, setting.sweep
    cluster, ended, epochs = cluster_resources(), sum(trial.ended for trial in earlier), sweep.epochs(config)
    yield (
        f"Sweep {config.RUN.NAME} : {trials} trials of {epochs} epochs, {config.steps_per_epoch:,} steps each, "
        f"over {', '.join(sweep.parameters)}" + (f"; {ended} are done" if ended else "")
    )
    if trials < sweep.asked:
        yield f"{sweep.asked} trials were asked for, and the parameters have {trials} different combinations"
    gpus = f" and {cluster['GPU']:g} GPUs" if cluster["GPU"] else ""
    yield (
        f"The cluster's {cluster['CPU']:g} CPUs{gpus} hold {plan.held} at a time; {plan.concurrency} will run at a "
        f"time, each with {config.RUN.WORKERS} worker(s) of {plan.resources.cpus_per_worker:g} CPUs"
        + (f" and {plan.resources.gpus_per_worker:g} GPUs" if plan.resources.gpus_per_worker else "")
    )
    left = sum(epochs - len(trial.history) for trial in earlier if not trial.ended)
    left += max(trials - len(earlier), 0) * epochs
    if left:
        seconds = time_steps(setting, plan)
        rounds = -(-(trials - ended) // plan.concurrency)
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
    triplets = TripletSource.from_config(config, ray.get(setting.mixture_ref))
    made = []
    for number in range(8):
        began = time.perf_counter()
        triplets.sample(number)
        made.append(time.perf_counter() - began)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state, objective = TrainState.fresh(config, 0, device), Objective(config).to(device)
    batch = _blank_batch(config, device)
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        train_step(state.model, state.optimizer, batch, objective).cpu()  # waits for the device
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:]), statistics.median(made)


def _blank_batch(config: Config, device: torch.device) -> Batch:
    """A worker's share of a batch, of black images."""
    data, size = config.DATA, config.TRAIN.BATCH_SIZE // config.RUN.WORKERS

    def images(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, 3, dtype=torch.uint8, device=device)

    return Batch(
        images(size, data.TEMPLATE.NUMBER, data.TEMPLATE.SIZE, data.TEMPLATE.SIZE),
        images(size, data.SEARCH.SIZE, data.SEARCH.SIZE),
        torch.full((size, 4), 0.25, device=device),
        torch.ones(size, data.TEMPLATE.NUMBER + 1, device=device),
        torch.zeros(size, dtype=torch.int64, device=device),
    )
