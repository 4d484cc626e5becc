"""A sweep's file: which settings vary and how, what counts, and what the cluster gives each trial.

Nothing here imports Ray, so that a mistake in the file is told at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import types
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from seqtrack.config import (
    Config,
    ConfigError,
    PositiveFloat,
    PositiveInt,
    key_of,
    kind_of,
    kind_within,
    parse_model,
    read_yaml,
    setting_docs,
    shown,
    shown_key,
)
from seqtrack.errors import did_you_mean
from seqtrack.locations import LONGEST_NAME

Params = dict[str, Any]
"""What a trial has different from the others: dotted setting -> value."""

NOT_SWEPT = (
    "RUN.",
    "MLFLOW.",
    "HUB.",
    "EVAL.",
    "TEST.",
    "DATA.ROOT",  # and DATA.ROOTS
    "DATA.PARTIAL",
    "DATA.TRAIN.DATASETS_",
    "DATA.SPLIT",
    "DATA.TRAIN.CLASSES",
    "DATA.SYNTHETIC.",
)
"""Beginnings of the settings that all trials share: where they run and what they read."""
MOST_DRAWS = 1000
"""Draws that may be in vain one after the other; then what is left is looked for in order."""
FALLING = ("loss", "grad_norm")
"""Metrics that are better when they are less."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Parameter(_Section):
    """The values of one setting: exactly one of these."""

    grid: list[Any] | None = Field(None, min_length=1)
    """Every value, with every combination of the other grids."""
    choice: list[Any] | None = Field(None, min_length=1)
    """One of these, drawn for each trial."""
    uniform: tuple[float, float] | None = None
    """The range is drawn from evenly, from low to high."""
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """The range is drawn from evenly in the logarithm, from low to high."""
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
        """The values to check: all of a list, or both ends of a range."""
        return self.grid or self.choice or list(self.uniform or self.loguniform or self.randint or ())

    def size(self) -> float:
        """How many different values there are; infinity for a range of real numbers."""
        if values := self.grid or self.choice:
            return len({values_key(value) for value in values})
        return math.inf if self.randint is None else self.randint[1] - self.randint[0] + 1

    def all(self) -> Sequence[Any]:
        """Every value. Not for a range of real numbers."""
        low, high = self.randint or (0, -1)
        return self.grid or self.choice or range(low, high + 1)

    def draw(self, random: np.random.RandomState) -> Any:
        """A value, drawn with `random`. Not for a grid."""
        if self.choice is not None:
            return self.choice[random.randint(len(self.choice))]
        if self.uniform is not None:
            return random.uniform(*self.uniform)
        if self.loguniform is not None:
            return float(np.exp(random.uniform(*np.log(self.loguniform))))
        assert self.randint is not None
        return random.randint(self.randint[0], self.randint[1] + 1)


class Scheduler(_Section):
    type: Literal["none", "asha"] = "none"
    """`asha` stops the worse trials early."""
    grace_period: PositiveInt = 1
    """ASHA: epochs that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """ASHA: one in this many trials goes on at each decision. Decisions come after grace_period epochs, and after that
    many times each power of this number."""


class Search(_Section):
    type: Literal["random", "optuna"] = "random"
    """How values are drawn: at random, or by Optuna's TPE from the results so far."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Resources(_Section):
    """What each worker of a trial gets. Unset: what a training's gets (RUN.CPUS_PER_WORKER, RUN.GPUS_PER_WORKER)."""

    cpus_per_worker: PositiveFloat | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None


class Sweep(_Section):
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Dotted setting -> its values."""
    metric: Literal["loss", "iou", "accuracy", "grad_norm", "auc"] = "iou"
    """A number of an epoch's summary, or `auc`: that of its checkpoint on the first of EVAL.BENCHMARKS. Its value after
    a trial's last epoch counts."""
    mode: Literal["max", "min"] | None = None
    """Unset: `min` for loss and grad_norm, `max` for the others."""
    trials: PositiveInt = 1
    """How many different draws there are; fewer if the parameters have fewer combinations. Each draw is trained with
    every combination of the grids."""
    scheduler: Scheduler = Scheduler()
    search: Search = Search()
    concurrency: PositiveInt | None = None
    """The most trials at a time. Unset: as many as the cluster can hold."""
    workers: PositiveInt | None = None
    """Workers of each trial. Unset: RUN.WORKERS."""
    resources: Resources = Resources()
    stop: dict[Literal["loss", "iou", "accuracy", "grad_norm", "epoch"], float] = {}
    """A trial ends at the first epoch whose summary reaches one of these values (loss and grad_norm: from above)."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial that crashed goes on from its own newest checkpoint."""

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
        """Whether an epoch's summary reaches a value of `stop`. Its `epoch` does not count: trials end there anyway."""
        return any(
            epoch[name] <= value if name in FALLING else epoch[name] >= value
            for name, value in self.stop.items()
            if name != "epoch"
        )

    def epochs(self, config: Config) -> int:
        """The most epochs that a trial may have."""
        return min(config.TRAIN.EPOCH, math.ceil(self.stop.get("epoch", config.TRAIN.EPOCH)))

    @property
    def drawn(self) -> dict[str, Parameter]:
        """The parameters that are no grids."""
        return {key: parameter for key, parameter in self.parameters.items() if parameter.grid is None}

    @property
    def draws(self) -> int:
        """How many different draws there are to be."""
        return int(min(self.trials, math.prod(parameter.size() for parameter in self.drawn.values())))

    @property
    def asked(self) -> int:
        """How many trials the file asks for, some of which may have equal values."""
        return self.trials * math.prod(len(parameter.grid or [0]) for parameter in self.parameters.values())

    def draw_new(self, random: np.random.RandomState, taken: Container[str]) -> Params | None:
        """A draw that is none of `taken`, which are keys (`values_key`); None if none is left.

        With the same seed, equal values train to the same bits, so a draw that was there before is drawn anew.
        """
        for _ in range(MOST_DRAWS):
            draw = {key: parameter.draw(random) for key, parameter in self.drawn.items()}
            if values_key(draw) not in taken:
                return draw
        if any(math.isinf(parameter.size()) for parameter in self.drawn.values()):
            return None  # a range that has hardly any numbers
        combinations = itertools.product(*(parameter.all() for parameter in self.drawn.values()))
        left = (dict(zip(self.drawn, values, strict=True)) for values in combinations)
        return next((draw for draw in left if values_key(draw) not in taken), None)

    def listed(self) -> list[Params]:
        """Every trial of a sweep with search `random`, each once: the same list each time."""
        random, draws = np.random.RandomState(self.search.seed), dict[str, Params]()
        while len(draws) < self.draws and (draw := self.draw_new(random, draws)) is not None:
            draws[values_key(draw)] = draw
        grids = {key: parameter.grid for key, parameter in self.parameters.items() if parameter.grid is not None}
        found: dict[str, Params] = {}
        for draw, values in itertools.product(draws.values(), itertools.product(*grids.values())):
            all_values = draw | dict(zip(grids, values, strict=True))
            params = {key: all_values[key] for key in self.parameters}
            found.setdefault(values_key(params), params)
        return list(found.values())

    def check(self, config: Config, source: str) -> None:
        """Raises ConfigError naming the parameter that is no setting, or whose values the setting cannot have."""
        known = [doc.key for doc in setting_docs()]
        for key, parameter in self.parameters.items():
            if key not in known:
                raise ConfigError(f"{source}: parameters.{shown_key(key)}: unknown setting{did_you_mean(key, known)}")
            if key.startswith(NOT_SWEPT):
                raise ConfigError(f"{source}: parameters.{key}: is the same for all trials of a sweep")
            names: dict[str, Any] = {}
            for value in parameter.examples():
                config.with_settings({key: value}, f"{source}: parameters.{key}")
                same = names.setdefault(trial_name({key: value}).casefold(), value)  # some disks do not tell A from a
                if json.dumps(same) != json.dumps(value):
                    raise ConfigError(
                        f"{source}: parameters.{key}: {shown(same)} and {shown(value)} would share the folder "
                        f"{trial_name({key: value})}; write one of them in another way"
                    )
        if self.metric == "auc" and not config.EVAL.BENCHMARKS:
            raise ConfigError(
                f"{source}: metric auc needs EVAL.BENCHMARKS: on what the trials' checkpoints are measured"
            )
        if self.metric == "auc" and self.scheduler.type == "asha" and not config.EVAL.RESOURCES:
            raise ConfigError(
                f"{source}: scheduler asha with metric auc needs EVAL.RESOURCES, since it decides while trials train; "
                "without it they are measured afterwards"
            )
        if config.HUB.REPO_ID is not None:
            raise ConfigError(
                "HUB.REPO_ID: trials are not uploaded; train.py with the sweep's best_config.yaml does it"
            )

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, exclude_none=True)


def load_sweep(path: str | Path) -> Sweep:
    """Reads a sweep's YAML file. Raises ConfigError naming the file and the key."""
    return parse_sweep(read_yaml(path, Sweep, _within), str(path))


def parse_sweep(values: dict[str, Any], source: str) -> Sweep:
    """Checks plain values (as YAML or JSON gives them) and makes a `Sweep`; `source` is named in errors."""
    return parse_model(Sweep, values, source, _explain)


def trial_name(params: Mapping[str, Any]) -> str:
    """The name of a trial's folder and MLflow run, made of its values alone: `LR=0.001,SEED=2`."""
    short = {key: key.rpartition(".")[2] for key in params}
    names = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    text = ",".join(f"{names[key]}={json.dumps(value).strip(chr(34))}" for key, value in params.items())
    name = re.sub(r"[^\w.,=+-]+", "_", text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{name.encode()[: LONGEST_NAME - 11].decode(errors='ignore')}-{digest}"


def values_key(values: Any) -> str:
    """The same for equal values, also where one is written 1 and the other 1.0."""
    return json.dumps(_as_whole(values), sort_keys=True)


def _as_whole(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _as_whole(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_as_whole(value) for value in values]
    return int(values) if isinstance(values, float) and values.is_integer() else values


def _within(kind: Any, name: str) -> Any:
    """What `kind_within` says; the values of a parameter are of the type of the setting that it names."""
    if kind == dict[str, Parameter]:
        return types.GenericAlias(dict, (str, types.GenericAlias(list, (kind_of(name),))))
    return kind_within(kind, name)


def _explain(detail: Any, source: str) -> str:
    key = key_of(detail)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"unknown; {', '.join(_names_beside(detail['loc']))} are known"
    return f"{source}: {f'{key}: ' if key else ''}{message}"


def _names_beside(where: tuple[Any, ...]) -> Iterator[str]:
    section: Any = {"parameters": Parameter, "scheduler": Scheduler, "search": Search, "resources": Resources}
    yield from (section[where[0]] if len(where) > 1 else Sweep).model_fields
