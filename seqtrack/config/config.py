"""All settings of a run as one frozen object, with checks that need no data, changed copies, and YAML output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import lcm
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from seqtrack.config.runner import EvalConfig, HubConfig, MlflowConfig, RunConfig
from seqtrack.config.settings import DataConfig, ModelConfig, NoEffect, Section, TestConfig, TrainConfig
from seqtrack.errors import InputError, did_you_mean
from seqtrack.failures import holds_password, without_passwords

Model = TypeVar("Model", bound=BaseModel)


class ConfigError(InputError):
    """A setting that cannot be used. The message names the file, the key and what would be right."""


MOST_SHOWN = 5
"""Most mistakes that one message names."""
LONGEST_SHOWN = 100
"""Longest value, in characters, that a message repeats."""

INDIFFERENT = (
    *("RUN.", "MLFLOW.", "HUB.", "EVAL.", "TEST.", "DATA.SYNTHETIC.", "DATA.TRAIN.MAX_SAMPLE_PER_SEQ", "TRAIN.EPOCH"),
    *("TRAIN.PRINT_INTERVAL", "TRAIN.CHECKPOINT_EVERY_STEPS", "TRAIN.KEEP_CHECKPOINTS", "TRAIN.NUM_WORKER"),
    "DATA.DOWNLOAD_FROM",
    *(
        "DATA.ROOT",  # and DATA.ROOTS
        "DATA.PARTIAL",
        "DATA.SPLIT",
        "DATA.ON_MISMATCH",
        "DATA.TRAIN.CLASSES",
    ),  # the data set's fingerprint is compared instead
)
"""Prefixes of the settings that do not change what a step computes."""


class Config(Section):
    SEED: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed that every random number of a run is derived from. Not a published setting."""
    DATA: DataConfig = DataConfig()
    MODEL: ModelConfig = ModelConfig()
    TRAIN: TrainConfig = TrainConfig()
    TEST: Annotated[TestConfig, NoEffect("training does not read it; tracking does")] = TestConfig()
    RUN: RunConfig = RunConfig()
    MLFLOW: MlflowConfig = MlflowConfig()
    HUB: HubConfig = HubConfig()
    EVAL: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        for key, value in self.flat().items():
            if isinstance(value, str) and holds_password(value):
                raise ValueError(
                    f"{key} holds a password, which would go into checkpoints, logs and MLflow; keep it in the "
                    "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, or a whole "
                    "MLFLOW_TRACKING_URI)"
                )
        return self

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        if self.HUB.BEST_BY == "auc" and not self.EVAL.BENCHMARKS:
            raise ValueError("HUB.BEST_BY auc needs EVAL.BENCHMARKS, which is empty")
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        workers, fewest = self.RUN.WORKERS, self.RUN.MIN_WORKERS or self.RUN.WORKERS
        if fewest > workers:
            raise ValueError(f"RUN.MIN_WORKERS {fewest} is more than RUN.WORKERS {workers}")
        bad = next((number for number in range(fewest, workers + 1) if self.TRAIN.BATCH_SIZE % number), None)
        if bad is not None:
            advice = f"; {lcm(*range(fewest, workers + 1))} would suit them all" if workers - fewest < 16 else ""
            raise ValueError(
                f"RUN.WORKERS {workers} does not divide TRAIN.BATCH_SIZE {self.TRAIN.BATCH_SIZE}, the global batch"
                if fewest == workers
                else f"RUN.MIN_WORKERS {fewest} to RUN.WORKERS {workers}: {bad} does not divide TRAIN.BATCH_SIZE "
                f"{self.TRAIN.BATCH_SIZE}, the global batch{advice}"
            )
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        slots, workers, fewest = self.TRAIN.SLOTS, self.RUN.WORKERS, self.RUN.MIN_WORKERS or self.RUN.WORKERS
        if slots is None:
            return self
        if slots.bit_count() != 1:
            raise ValueError(f"TRAIN.SLOTS {slots} is not a power of two")
        if self.TRAIN.BATCH_SIZE % slots:
            raise ValueError(f"TRAIN.SLOTS {slots} does not divide TRAIN.BATCH_SIZE {self.TRAIN.BATCH_SIZE}")
        bad = next((number for number in range(fewest, workers + 1) if slots % number), None)
        if bad is not None:
            fitting = ", ".join(str(1 << power) for power in range(slots.bit_length()))
            raise ValueError(f"RUN.WORKERS {bad} does not divide TRAIN.SLOTS {slots}; these do: {fitting}")
        return self

    @property
    def threads(self) -> int | None:
        """CPU threads of a training worker. None: as many as its process has anyway."""
        return self.TRAIN.THREADS or (None if self.TRAIN.SLOTS is None else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps per epoch. The last batch is full too, because samples are random draws."""
        return -(-self.DATA.TRAIN.SAMPLE_PER_EPOCH // self.TRAIN.BATCH_SIZE)

    @property
    def total_steps(self) -> int:
        return self.TRAIN.EPOCH * self.steps_per_epoch

    def with_settings(self, settings: dict[str, Any], source: str = "settings") -> Config:
        """A checked copy with dotted keys replaced, e.g. `{"RUN.NAME": "first"}`; `source` is named in errors."""
        values = self.model_dump(mode="json")
        for key, value in settings.items():
            _set_dotted(values, key, value, source)
        return parse_config(values, source)

    def changed_settings(self, other: Config) -> dict[str, str]:
        """Settings that differ from `other` and change what a step computes, as key -> `our value, not the other`."""
        theirs = other.flat()
        return {
            key: f"{value}, not {theirs[key]}"
            for key, value in self.flat().items()
            if not key.startswith(INDIFFERENT) and value != theirs[key]
        }

    def flat(self) -> dict[str, Any]:
        """Dotted key -> plain value, for every setting."""
        return dict(_flatten(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The whole configuration as YAML; `load_config` of it gives an equal `Config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def without_effect(self) -> list[str]:
        """One line for each setting that was changed from its default although it has no effect."""
        return list(_without_effect(self, ""))


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Checks plain values (as YAML or JSON gives them) and makes a `Config`; `source` is named in errors."""
    return parse_model(Config, values, source, _explain)


def parse_model(kind: type[Model], values: dict[str, Any], source: str, explain: Callable[[Any, str], str]) -> Model:
    """Checks plain values and makes a `kind`. Raises ConfigError; `explain(detail, source)` words pydantic's errors."""
    try:
        # JSON mode, so that lists are accepted for tuples while everything else stays strict.
        text = json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{source}: a value is no text in UTF-8 ({error})") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: a value cannot be read ({error})") from error
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        details = error.errors()
        lines = [explain(detail, source) for detail in details[:MOST_SHOWN]]
        more = [f"and {len(details) - MOST_SHOWN} more mistakes"] if len(details) > MOST_SHOWN else []
        raise ConfigError("; ".join(lines + more)) from None


def shown(value: Any) -> str:
    """A value from the user as messages show it: in one line that is not too long, without passwords."""
    text = without_passwords(repr(value))
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 2]} …"


def key_of(detail: Any) -> str:
    """The dotted key that one of pydantic's errors is about, as messages show it."""
    return shown_key(".".join(str(part) for part in detail["loc"]))


def shown_key(key: str) -> str:
    return key if key.isprintable() and len(key) <= LONGEST_SHOWN else shown(key)


class SettingDoc(NamedTuple):
    """What `--settings` says about a setting."""

    key: str
    """Dotted key, such as `TRAIN.LR`."""
    default: str
    """The default value as YAML."""
    meaning: str


def setting_docs() -> Iterator[SettingDoc]:
    """Every setting, in order."""
    yield from _section_docs(Config, "", None)


def _section_docs(section: type[Section], prefix: str, inherited: NoEffect | None) -> Iterator[SettingDoc]:
    for name, field in section.model_fields.items():
        mark = _mark(field) or inherited
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _section_docs(field.annotation, f"{prefix}{name}.", mark)
        else:
            meaning = field.description or (section.__doc__ or "").strip()
            note = f" Has no effect: {mark.reason}." if mark is not None else ""
            yield SettingDoc(f"{prefix}{name}", json.dumps(field.default), meaning + note)


def _without_effect(section: Section, prefix: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value, mark = getattr(section, name), _mark(field)
        stated = name in section.model_fields_set and value != field.default
        if mark is not None and stated:
            yield f"{prefix}{name} has no effect ({mark.reason})"
        elif mark is None and isinstance(value, Section):
            yield from _without_effect(value, f"{prefix}{name}.")


def _mark(field: FieldInfo) -> NoEffect | None:
    return next((mark for mark in field.metadata if isinstance(mark, NoEffect)), None)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def not_a_setting(key: str, source: str) -> ConfigError:
    """What to say of a section where a setting is needed."""
    return ConfigError(f"{source}: {key} is a section, not a setting; name one of its settings, as {key}.…=VALUE")


def _set_dotted(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {shown_key(key)}: unknown setting{_nearest_setting(key)}")
        node = child
    if isinstance(node.get(last), dict) and not isinstance(value, dict):
        raise not_a_setting(key, source)
    node[last] = value


def _explain(detail: Any, source: str) -> str:
    key = key_of(detail)
    if detail["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown setting{_nearest_setting(key)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{source}: {key + ': ' if key else ''}{message}"
    if detail["type"] == "json_invalid":
        return f"{source}: {message.removeprefix('Invalid JSON: ')}"  # nested too deeply
    return f"{source}: {key}: {message} (got {shown(detail['input'])})"


def _nearest_setting(key: str) -> str:
    known = [doc.key for doc in setting_docs()]
    last = key.rsplit(".", 1)[-1]
    in_other_section = [name for name in known if name.rsplit(".", 1)[-1] == last][:1]
    return did_you_mean(key, known, cutoff=0.5) or "".join(f"; did you mean {name}?" for name in in_other_section)
