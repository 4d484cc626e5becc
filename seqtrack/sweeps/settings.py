"""A sweep's file: which settings vary and how, what counts, and what the cluster gives each trial."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ray import tune
from ray.tune.search.sample import Domain

from seqtrack.config import Config, ConfigError, PositiveFloat, PositiveInt, read_yaml, setting_docs

Params = dict[str, Any]
"""What a trial has different from the others: dotted setting -> value."""

NOT_SWEPT = ("RUN.", "MLFLOW.", "HUB.", "TEST.", "DATA.ROOT", "DATA.SPLIT", "DATA.TRAIN.CLASSES", "DATA.SYNTHETIC.")
"""Beginnings of the settings that all trials share: where they run and what they read."""
FALLING = ("loss", "grad_norm")
"""Metrics that are better when they are less."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Parameter(_Section):
    """The values of one setting: exactly one of these."""

    grid: list[Any] | None = Field(None, min_length=1)
    """Every value, with every combination of the other grids."""
    choice: list[Any] | None = Field(None, min_length=1)
    """One of these, drawn for each trial."""
    uniform: tuple[float, float] | None = None
    """From low to high."""
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """From low to high, evenly in the logarithm."""
    randint: tuple[int, int] | None = None
    """A whole number from low to high, both included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = self.model_fields_set
        if len(kinds) != 1:
            raise ValueError(f"needs exactly one of {', '.join(Parameter.model_fields)}")
        for bounds in (self.uniform, self.loguniform, self.randint):
            if bounds is not None and bounds[0] >= bounds[1]:
                raise ValueError(f"low {bounds[0]} is not below high {bounds[1]}")
        return self

    def examples(self) -> list[Any]:
        """Values that all others lie among, to be checked."""
        return self.grid or self.choice or list(self.uniform or self.loguniform or self.randint or ())

    def domain(self) -> Domain:
        """As Ray Tune draws from it."""
        if self.grid or self.choice:
            return tune.choice(self.grid or self.choice)
        if self.uniform is not None:
            return tune.uniform(*self.uniform)
        if self.loguniform is not None:
            return tune.loguniform(*self.loguniform)
        assert self.randint is not None
        return tune.randint(self.randint[0], self.randint[1] + 1)


class Scheduler(_Section):
    type: Literal["none", "asha"] = "none"
    """`asha` stops the worse trials early."""
    grace_period: PositiveInt = 1
    """ASHA: epochs that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """ASHA: of so many trials one goes on at each decision, which come at grace_period times powers of this."""


class Search(_Section):
    type: Literal["random", "optuna"] = "random"
    """How what is not a grid is drawn: at random, or by Optuna's TPE from the results so far."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Resources(_Section):
    """Of a trial's worker. Unset: as for a training (RUN.CPUS_PER_WORKER, RUN.GPUS_PER_WORKER)."""

    cpus_per_worker: PositiveFloat | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None


class Sweep(_Section):
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Dotted setting -> its values."""
    metric: Literal["loss", "iou", "accuracy", "grad_norm"] = "iou"
    """Of an epoch's summary. What counts is its value after a trial's last epoch."""
    mode: Literal["max", "min"] | None = None
    """Unset: `min` for loss and grad_norm, `max` for the others."""
    trials: PositiveInt = 1
    """How often what is not a grid is drawn; each draw meets every combination of the grids."""
    scheduler: Scheduler = Scheduler()
    search: Search = Search()
    concurrency: PositiveInt | None = None
    """Trials at a time, at most. Unset: as many as the cluster can hold."""
    workers: PositiveInt | None = None
    """Of each trial. Unset: RUN.WORKERS."""
    resources: Resources = Resources()
    stop: dict[Literal["loss", "iou", "accuracy", "grad_norm", "epoch"], float] = {}
    """A trial ends at the first epoch whose summary reaches one of these values (loss and grad_norm: from above)."""
    retries: Annotated[int, Field(ge=0)] = 2
    """So often a trial that crashed goes on from its own checkpoint."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        drawn = [key for key, parameter in self.parameters.items() if parameter.grid is None]
        if self.search.type == "optuna" and len(drawn) < len(self.parameters):
            raise ValueError("search optuna draws every parameter: `choice` instead of `grid`")
        if not drawn and self.trials > 1:
            raise ValueError(f"trials {self.trials}: every parameter is a grid, nothing is drawn")
        return self

    @property
    def direction(self) -> Literal["max", "min"]:
        return self.mode or ("min" if self.metric in FALLING else "max")

    def is_enough(self, epoch: Mapping[str, float]) -> bool:
        """Whether an epoch's summary meets `stop`, whose number of epochs aside: trials end there by themselves."""
        return any(
            epoch[name] <= value if name in FALLING else epoch[name] >= value
            for name, value in self.stop.items()
            if name != "epoch"
        )

    def epochs(self, config: Config) -> int:
        """The most that a trial may have."""
        return min(config.TRAIN.EPOCH, math.ceil(self.stop.get("epoch", config.TRAIN.EPOCH)))

    def listed(self) -> list[Params]:
        """Every trial, where that can be known beforehand (search `random`): the same list each time."""
        random = np.random.RandomState(self.search.seed)
        grids = {key: parameter.grid for key, parameter in self.parameters.items() if parameter.grid is not None}
        draws = [
            {
                key: _plain(self.parameters[key].domain().sample(random_state=random))
                for key in self.parameters
                if key not in grids
            }
            for _ in range(self.trials)
        ]
        found = {
            trial_name(params): params
            for draw, values in itertools.product(draws, itertools.product(*grids.values()))
            for params in [{key: (draw | dict(zip(grids, values, strict=True)))[key] for key in self.parameters}]
        }
        return list(found.values())  # what was drawn twice is trained once

    def check(self, config: Config, source: str) -> None:
        """Raises ConfigError naming the parameter that is no setting, or whose values the setting cannot have."""
        known = [key for key, _, _ in setting_docs()]
        for key, parameter in self.parameters.items():
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                raise ConfigError(f"{source}: parameters.{key}: unknown setting{hint}")
            if key.startswith(NOT_SWEPT):
                raise ConfigError(f"{source}: parameters.{key}: is the same for all trials of a sweep")
            for value in parameter.examples():
                config.with_settings({key: value}, f"{source}: parameters.{key}")
        if config.HUB.REPO_ID is not None:
            raise ConfigError(
                "HUB.REPO_ID: trials are not uploaded; train.py with the sweep's best_config.yaml does it"
            )

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, exclude_none=True)


def load_sweep(path: str | Path) -> Sweep:
    """Reads a sweep's YAML file. Raises ConfigError naming the file and the key."""
    values = read_yaml(path)
    try:
        return Sweep.model_validate_json(json.dumps(values))
    except TypeError as error:
        raise ConfigError(f"{path}: a value is of no known type ({error})") from error
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(str(path), detail) for detail in error.errors())) from None


def trial_name(params: Mapping[str, Any]) -> str:
    """What a trial's folder and MLflow run are called: `LR=0.001,SEED=2`. The same values, the same name."""
    short = {key: key.rpartition(".")[2] for key in params}
    names = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    text = ",".join(f"{names[key]}={json.dumps(value).strip(chr(34))}" for key, value in params.items())
    return re.sub(r"[^\w.,=+-]+", "_", text)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _explain(source: str, detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"unknown; {', '.join(_names_beside(detail['loc']))} are known"
    return f"{source}: {f'{key}: ' if key else ''}{message}"


def _names_beside(where: tuple[Any, ...]) -> Iterator[str]:
    section: Any = {"parameters": Parameter, "scheduler": Scheduler, "search": Search, "resources": Resources}
    yield from (section[where[0]] if len(where) > 1 else Sweep).model_fields
