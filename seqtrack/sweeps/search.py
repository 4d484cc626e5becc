"""Optuna, which finds the values of one trial after the other, each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from seqtrack.sweeps.results import Trial
from seqtrack.sweeps.settings import Params, Sweep, values_key

MOST_QUESTIONS = 20
"""How often Optuna is asked for other values, before they are drawn at random from those that are left."""


class DistinctOptuna(OptunaSearch):
    """Suggests no values that a trial has already.

    Optuna itself suggests them again: where a setting has a few values, it does so soon. A trial's folder is named
    after its values, and with equal values it would train to the same bits, so there is nothing to learn from it.
    """

    def __init__(self, sweep: Sweep, space: Mapping[str, Domain], earlier: Sequence[Trial]) -> None:
        """`earlier`: the trials that were begun. Those that have not ended are suggested first."""
        seed = sweep.search.seed + len(earlier)
        unfinished = [dict(trial.params) for trial in earlier if not trial.ended]
        super().__init__(dict(space), sweep.metric, sweep.direction, unfinished or None, seed=seed)
        self._sweep, self._random = sweep, np.random.RandomState(seed)
        self._taken = {values_key(trial.params) for trial in earlier if trial.ended}
        self._taken -= {values_key(params) for params in unfinished}

    def suggest(self, trial_id: str) -> Any:
        """The values of a new trial, or that there are none left."""
        for _ in range(MOST_QUESTIONS):
            params = self._ask(trial_id)
            if values_key(params) not in self._taken:
                break
            # It learns nothing from a trial that failed.
            self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        else:
            drawn = self._sweep.draw_new(self._random, self._taken)
            if drawn is None:
                return Searcher.FINISHED
            self._ot_study.enqueue_trial(drawn)
            params = self._ask(trial_id)
        self._taken.add(values_key(params))
        return params

    def _ask(self, trial_id: str) -> Params:
        suggested: Params = super().suggest(trial_id)
        return {key: suggested[key] for key in self._sweep.parameters}
