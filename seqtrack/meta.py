"""`meta.json`, the readable part of a checkpoint: what it must have, checked wherever it is read.

A checkpoint may come from strangers, so nothing here is taken for granted because its sums fit. Entries that are not
named here are allowed: other versions may write more.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seqtrack.errors import InputError
from seqtrack.failures import explain

META_FILE = "meta.json"
MOST = 2**53
"""Largest number of steps, of frames and so on: what JSON's numbers hold exactly."""

Count = Annotated[int, Field(ge=0, le=MOST)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class MetaError(InputError):
    """A `meta.json` that is none. The message names the entry and what is wrong, and not the file."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class OneSet(_Part):
    """One of several training sets."""

    sequences: Count
    frames: Count
    share: Number
    partial: bool
    fingerprint: str


class Dataset(_Part):
    """The data that the run was trained on."""

    sequences: Count
    frames: Count
    fingerprint: str
    classes: dict[str, Any] = {}
    sets: dict[str, OneSet] = {}


class Origin(_Part):
    """The checkpoint of another run that the run began from."""

    path: str
    step: Count


class Meta(_Part):
    """The whole file, as `TrainState.meta` and the training loop write it."""

    step: Count
    epoch: Count
    steps_per_epoch: Annotated[int, Field(ge=1, le=MOST)]
    history: list[dict[str, Number]]
    """Summary of each finished epoch."""
    dataset: Dataset
    mlflow_run_id: str | None
    versions: dict[str, str]
    config: dict[str, Any]
    resumed_from: Origin | None = None
    world_size: Annotated[int, Field(ge=1, le=MOST)] | None = None
    hardware: str | None = None
    code_revision: str | None = None

    @model_validator(mode="after")
    def _check_position(self) -> Self:
        whole = self.step // self.steps_per_epoch
        if self.epoch != whole:
            raise ValueError(f"epoch {self.epoch}, but step {self.step} is in epoch {whole}, counted from 0")
        if len(self.history) < whole:
            raise ValueError(f"history has {len(self.history)} epochs, and {whole} are finished")
        for number, epoch in enumerate(self.history, start=1):
            if lacking := {"epoch", "step"} - epoch.keys():
                raise ValueError(f"history: entry {number} has no {min(lacking)}")
            if not all(epoch[name].is_integer() and epoch[name] > 0 for name in ("epoch", "step")):
                raise ValueError(f"history: epoch and step of entry {number} are not both whole numbers above 0")
        if self.resumed_from is not None and self.resumed_from.step > self.step:
            raise ValueError(f"resumed_from: step {self.resumed_from.step}, which is after step {self.step}")
        return self


def parse_meta(text: str | bytes) -> dict[str, Any]:
    """The content of a `meta.json` with at least what `Meta` says. Raises MetaError."""
    try:
        values = json.loads(text)
    except Exception as error:  # of several types: no text, no JSON, nested too deeply
        raise MetaError(f"cannot be read ({explain(error)})") from error
    if not isinstance(values, dict):
        raise MetaError(f"holds {type(values).__name__}, not an object")
    try:
        Meta.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise MetaError(_said(first["type"], ".".join(map(str, first["loc"])), first["msg"])) from error
    return values


def _said(kind: str, entry: str, message: str) -> str:
    """What pydantic found, in a line."""
    if kind == "missing":
        return f"has no entry {entry}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    shown = entry if entry.isprintable() and len(entry) <= 100 else repr(entry[:100])
    wanted = message.partition(" or instance of")[0].removeprefix("Input ")
    return f"the entry {shown} cannot be right: it {wanted}"
