"""Ray Tune's part of a sweep: the search, the scheduler, and what runs each trial."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Sequence

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.sample import Domain

from seqtrack.config import Config
from seqtrack.sweeps.observer import Observer, name_of
from seqtrack.sweeps.plan import Plan, Work
from seqtrack.sweeps.results import Trial
from seqtrack.sweeps.search import DistinctOptuna
from seqtrack.sweeps.settings import Parameter, Params, Sweep
from seqtrack.sweeps.trial import TrialSetting, run_trial

TUNE = "tune"
"""Ray Tune's own files in the sweep's folder."""
DRIVER = {"memory": 2**20}
"""What the process that waits for a trial's workers asks for: a token amount, since Ray Tune rejects none at all."""


def make_tuner(
    setting: TrialSetting, plan: Plan, work: Work, earlier: Sequence[Trial], observer: Observer
) -> tune.Tuner:
    """Ray Tune, ready to run what is left. `earlier`: the trials that earlier starts of the sweep began."""
    sweep, adaptive = setting.sweep, setting.sweep.search.type == "optuna"
    # A trial that is asked to stop in its first epoch has nothing to report, which Ray Tune would fail the sweep for.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # A trial that failed says why in a line; Ray Tune would print a page for each try.
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, setting=setting), DRIVER),
        # Optuna has the space already, and Ray Tune takes only one.
        param_space={} if adaptive else make_space(sweep),
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.direction,
            search_alg=make_search(sweep, plan.concurrency, work.listed, earlier),
            scheduler=make_scheduler(setting.config, sweep),
            num_samples=work.left,
            max_concurrent_trials=plan.concurrency if adaptive else None,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=f"{datetime.datetime.now():%Y%m%d-%H%M%S}",
            storage_path=setting.folder.child(TUNE).location,
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            stop=lambda _, result: sweep.is_enough(result),
            callbacks=[observer],
        ),
    )


def make_space(sweep: Sweep) -> dict[str, Domain]:
    """What Ray Tune draws each parameter from."""
    return {key: _domain(parameter) for key, parameter in sweep.parameters.items()}


def make_search(
    sweep: Sweep, concurrency: int, listed: Sequence[Params], earlier: Sequence[Trial]
) -> SearchAlgorithm | Searcher:
    """The listed trials in their order; or Optuna, which is told what an earlier start of the sweep found."""
    if sweep.search.type == "random":
        # It does not heed TuneConfig.max_concurrent_trials.
        return BasicVariantGenerator([dict(params) for params in listed], max_concurrent=concurrency)
    search = DistinctOptuna(sweep, make_space(sweep), earlier)
    for trial in earlier:
        if trial.ended and trial.history and sweep.metric in trial.history[-1]:
            search.add_evaluated_point(trial.params, trial.history[-1][sweep.metric])
    return search


def make_scheduler(config: Config, sweep: Sweep) -> TrialScheduler:
    """What decides after each epoch whether a trial goes on."""
    if sweep.scheduler.type == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        "epoch",
        max_t=sweep.epochs(config),
        grace_period=min(sweep.scheduler.grace_period, sweep.epochs(config)),
        reduction_factor=sweep.scheduler.reduction_factor,
        stop_last_trials=False,
    )


def _domain(parameter: Parameter) -> Domain:
    if values := parameter.grid or parameter.choice:
        return tune.choice(values)
    if parameter.uniform is not None:
        return tune.uniform(*parameter.uniform)
    if parameter.loguniform is not None:
        return tune.loguniform(*parameter.loguniform)
    assert parameter.randint is not None
    return tune.randint(parameter.randint[0], parameter.randint[1] + 1)
