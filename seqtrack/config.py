"""Every setting of a run: its type, its default, what it means, and the checks that need no data.

The upper-case keys and their defaults are those of the published SeqTrack configuration, so its YAML files load
unchanged. Settings that the published code does not have are grouped under "ours" in each section. A `Config` is
frozen; it is read from YAML plus dotted overrides (`TRAIN.LR=0.0004`) and written back as YAML that reproduces the run.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pyarrow import ArrowException, fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seqtrack.locations import absolute, is_uri


class ConfigError(ValueError):
    """A setting that cannot be used. The message names the file, the key and what would be right."""


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, closed to unknown keys, documented by attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Rgb = tuple[float, float, float]


class EncoderConfig(Section):
    TYPE: Literal["vit_base_patch16", "vit_large_patch16", "vit_demo_patch16"] = "vit_base_patch16"
    """The ViT. `vit_demo_patch16` (ours: 128 wide, 4 blocks, 4 heads) is for laptops and tests."""
    DROP_PATH: Probability = 0.0
    """Stochastic depth rate of the last block; earlier blocks scale linearly from 0."""
    PRETRAIN_TYPE: Literal["mae", "default", "scratch"] = "mae"
    """Starting weights: MAE pre-training, supervised ImageNet, or random."""
    STRIDE: Literal[16] = 16
    """Pixels between patches. All published models use 16."""
    USE_CHECKPOINT: bool = False
    """Activation checkpointing per block: less memory, about a quarter more time."""
    # ours
    PRETRAIN_FILE: str | None = None
    """File with the weights that PRETRAIN_TYPE asks for, in timm's or the MAE authors' layout. Unset: from the Hub."""


class DecoderConfig(Section):
    NHEADS: PositiveInt = 8
    """Attention heads."""
    DROPOUT: Probability = 0.1
    """Dropout rate inside the decoder."""
    DIM_FEEDFORWARD: PositiveInt = 1024
    """Width of the feed-forward layers."""
    DEC_LAYERS: PositiveInt = 6
    """Decoder layers."""
    PRE_NORM: bool = False
    """LayerNorm before each sub-layer instead of after."""


class ModelConfig(Section):
    HIDDEN_DIM: PositiveInt = 256
    """Width of the decoder and the vocabulary head. Even, and a multiple of DECODER.NHEADS."""
    BINS: Annotated[int, Field(ge=2)] = 4000
    """Coordinate tokens; END and START come on top."""
    FEATURE_TYPE: Literal["x", "xz", "token"] = "x"
    """What the decoder reads: the search tokens, all tokens, or the mean of all tokens."""
    ENCODER: EncoderConfig = EncoderConfig()
    DECODER: DecoderConfig = DecoderConfig()
    # ours
    WEIGHTS: str | None = None
    """SeqTrack weights to start from: a published checkpoint, a `.safetensors` file or a run's checkpoint folder."""

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.HIDDEN_DIM % self.DECODER.NHEADS or self.HIDDEN_DIM % 2:
            raise ValueError(
                f"HIDDEN_DIM {self.HIDDEN_DIM} must be even and a multiple of DECODER.NHEADS {self.DECODER.NHEADS}"
            )
        return self


class SchedulerConfig(Section):
    TYPE: Literal["step", "Mstep"] = "step"
    """`step`: LR × DECAY_RATE every LR_DROP_EPOCH epochs. `Mstep`: LR × GAMMA at each of MILESTONES."""
    DECAY_RATE: PositiveFloat = 0.1
    """Factor of a `step` drop."""
    MILESTONES: tuple[PositiveInt, ...] = ()
    """Epochs after which `Mstep` drops."""
    GAMMA: PositiveFloat = 0.1
    """Factor of an `Mstep` drop."""


class TrainConfig(Section):
    LR: PositiveFloat = 0.0001
    """Learning rate of everything but the encoder."""
    ENCODER_MULTIPLIER: NonNegativeFloat = 0.1
    """Encoder learning rate as a share of LR. 0 freezes the encoder."""
    WEIGHT_DECAY: NonNegativeFloat = 0.0001
    """AdamW weight decay."""
    EPOCH: PositiveInt = 500
    """Epochs to train."""
    LR_DROP_EPOCH: PositiveInt = 400
    """Epochs between drops of the `step` scheduler."""
    BATCH_SIZE: PositiveInt = 8
    """Samples per optimisation step over all workers (published files state it per GPU)."""
    NUM_WORKER: Annotated[int, Field(ge=0)] = 8
    """Published: loader processes. Accepted without effect: the data pipeline uses the cluster's free CPUs."""
    OPTIMIZER: Literal["ADAMW"] = "ADAMW"
    """The optimizer."""
    FREEZE_ENCODER: bool = False
    """Keep the encoder's weights fixed."""
    ENCODER_OPEN: tuple[str, ...] = ()
    """What stays trainable when FREEZE_ENCODER is true: two whole names of encoder parameters, then parts of names."""
    CE_WEIGHT: NonNegativeFloat = 1.0
    """Factor of the cross-entropy loss."""
    PRINT_INTERVAL: PositiveInt = 50
    """Samples between log lines."""
    GRAD_CLIP_NORM: PositiveFloat = 0.1
    """Gradients are scaled down to this global norm."""
    SCHEDULER: SchedulerConfig = SchedulerConfig()
    # ours
    PRECISION: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of forward and backward. Weights, optimizer and loss stay fp32."""
    DETERMINISTIC: bool = True
    """Deterministic kernels only: the same run gives the same bits. false is faster on a GPU."""
    SLOTS: PositiveInt | None = None
    """Divides each batch into so many parts, a power of two, that are computed one by one: 1, 2, 4 … SLOTS workers then
    give the same bits, and a step needs the memory of a part. Unset: ordinary data-parallel training."""
    THREADS: PositiveInt | None = None
    """Threads of a worker on a CPU, whose kernels split sums by them. Unset: one with SLOTS, else one a CPU."""
    CHECKPOINT_EVERY_STEPS: PositiveInt | None = None
    """Checkpoints within an epoch, every so many steps, besides the one at each epoch's end."""
    KEEP_CHECKPOINTS: PositiveInt | None = None
    """The newest so many checkpoints of a run are kept. Unset: all."""


class DataTrainConfig(Section):
    DATASETS_NAME: tuple[str, ...] = ("LASOT", "GOT10K_vottrain")
    """Training sets. Only LASOT can be trained on here; others are refused when training starts."""
    DATASETS_RATIO: tuple[PositiveFloat, ...] = (1, 1)
    """Relative sampling weight of each of DATASETS_NAME."""
    SAMPLE_PER_EPOCH: PositiveInt = 60000
    """Samples of an epoch, rounded up to whole batches."""
    # ours
    CLASSES: tuple[str, ...] = ()
    """Object classes to use. Empty: all."""
    MAX_SAMPLE_PER_SEQ: PositiveInt | None = None
    """Accepted without effect, for files that state it: nothing in the published code reads it."""

    @model_validator(mode="after")
    def _check_ratio(self) -> Self:
        if len(self.DATASETS_NAME) != len(self.DATASETS_RATIO):
            raise ValueError(
                f"DATASETS_RATIO has {len(self.DATASETS_RATIO)} entries for {len(self.DATASETS_NAME)} DATASETS_NAME"
            )
        return self


class SearchConfig(Section):
    NUMBER: Literal[1] = 1
    """Search frames of a sample. Only 1 is defined by the method."""
    SIZE: PositiveInt = 256
    """Side of the crop in pixels, a multiple of 16."""
    FACTOR: PositiveFloat = 4.0
    """Side of the cropped square in units of the target's size sqrt(w·h)."""
    CENTER_JITTER: NonNegativeFloat = 3.5
    """Largest shift of the crop's centre: half of this many target sizes."""
    SCALE_JITTER: NonNegativeFloat = 0.5
    """Standard deviation of the logarithm of the crop's scale."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.SIZE % 16:
            raise ValueError(f"SIZE {self.SIZE} is not a multiple of the patch size 16")
        return self


class TemplateConfig(SearchConfig):
    NUMBER: Literal[1, 2, 3, 4] = 1  # type: ignore[assignment]
    """Template frames of a sample."""
    CENTER_JITTER: NonNegativeFloat = 0.0
    """As in SEARCH; the published recipes use 0."""
    SCALE_JITTER: NonNegativeFloat = 0.0
    """As in SEARCH; the published recipes use 0."""


class SyntheticConfig(Section):
    SEQUENCES: PositiveInt = 16
    """Sequences to write, coin-like and kite-like in turn."""
    FRAMES: Annotated[int, Field(ge=20)] = 60
    """Frames of each sequence."""
    HEIGHT: Annotated[int, Field(ge=64)] = 240
    """Frame height in pixels."""
    WIDTH: Annotated[int, Field(ge=64)] = 320
    """Frame width in pixels."""
    SEED: Annotated[int, Field(ge=0)] = 0
    """Same seed, same bytes."""
    PATH: str = "data"
    """Folder that receives the data set."""


class DataConfig(Section):
    MEAN: Rgb = (0.485, 0.456, 0.406)
    """Channel means (RGB, 0–1) subtracted from the crops."""
    STD: Rgb = (0.229, 0.224, 0.225)
    """Channel deviations that the crops are divided by."""
    MAX_SAMPLE_INTERVAL: PositiveInt = 200
    """Largest distance in frames from a sample's base frame."""
    SAMPLER_MODE: Literal["order", "causal", "interval", "trident", "stark"] = "order"
    """How a sample's frames are chosen. Only `order`, which every published recipe uses, is supported."""
    LOADER: Literal["tracking"] = "tracking"
    """The published loader's name; one exists."""
    SEQ_FORMAT: Literal["xywh", "whxy", "corner"] = "xywh"
    """Order of the coordinate tokens: (cx, cy, w, h), (w, h, cx, cy) or (x0, y0, x1, y1)."""
    TRAIN: DataTrainConfig = DataTrainConfig()
    SEARCH: SearchConfig = SearchConfig()
    TEMPLATE: TemplateConfig = TemplateConfig()
    # ours
    ROOT: str | None = None
    """LaSOT folder or URI (`/data/lasot`, `s3://bucket/lasot`). `synthetic`: write and use a small made-up data set."""
    SPLIT: str = "lasot_train"
    """Which sequences: `lasot_train`, `lasot_test` (the benchmark's own lists), `all` on disk, or a file of names."""
    DOWNLOAD_FROM: str = "l-lt/LaSOT"
    """Dataset repository on the Hugging Face Hub, with one zip a class, that `ray_jobs/fetch_lasot.py` reads."""
    SYNTHETIC: SyntheticConfig = SyntheticConfig()
    """The data set that `ROOT: synthetic` stands for."""


class TestIntervals(Section):
    """Frames between template updates when tracking, per benchmark."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    DEFAULT: PositiveInt = 9999
    LASOT: PositiveInt = 450
    LASOT_EXTENSION_SUBSET: PositiveInt = 9999
    GOT10K_TEST: PositiveInt = 1
    TRACKINGNET: PositiveInt = 25
    TNL2K: PositiveInt = 25
    OTB: PositiveInt = 9999
    NFS: PositiveInt = 9999
    UAV: PositiveInt = 9999
    VOT20: PositiveInt = 10
    VOT21: PositiveInt = 10
    VOT22: PositiveInt = 10


class TestThresholds(Section):
    """Confidence above which a template is updated, per benchmark."""

    __test__ = False

    DEFAULT: float = 0.6
    VOT20: float = 0.475
    VOT21: float = 0.475
    VOT22: float = 0.475


class TestConfig(Section):
    """Settings of online tracking. Training does not read them."""

    __test__ = False

    TEMPLATE_FACTOR: PositiveFloat = 4.0
    """As DATA.TEMPLATE.FACTOR."""
    TEMPLATE_SIZE: PositiveInt = 256
    """As DATA.TEMPLATE.SIZE."""
    SEARCH_FACTOR: PositiveFloat = 4.0
    """As DATA.SEARCH.FACTOR."""
    SEARCH_SIZE: PositiveInt = 256
    """As DATA.SEARCH.SIZE."""
    EPOCH: PositiveInt = 500
    """Epoch whose checkpoint is tested."""
    WINDOW: bool = False
    """Hanning window on the centre tokens."""
    NUM_TEMPLATES: PositiveInt = 1
    """Templates the tracker holds."""
    UPDATE_INTERVALS: TestIntervals = TestIntervals()
    UPDATE_THRESHOLD: TestThresholds = TestThresholds()


class RunConfig(Section):
    """Where and on what a run happens. Ours; nothing here changes what is computed but the number of workers."""

    NAME: str | None = None
    """Name of the run and its folder. Unset: the config's name and the time."""
    STORAGE_PATH: str = "runs"
    """Folder or URI that receives the run's folder. Workers on several machines need one that all of them reach."""
    WORKERS: PositiveInt = 1
    """Training workers. Must divide TRAIN.BATCH_SIZE."""
    MIN_WORKERS: PositiveInt | None = None
    """Elastic: as many workers as the cluster has room for, from this number up to WORKERS. Unset: WORKERS, always."""
    MAX_FAILURES: Annotated[int, Field(ge=-1)] = 3
    """So many times lost workers are started again, from the latest checkpoint. -1: without end. Preempted nodes do not
    count."""
    CPUS_PER_WORKER: PositiveFloat | None = None
    """CPUs of a training worker. Unset: 1, or less where the data pipeline would be left without any."""
    GPUS_PER_WORKER: NonNegativeFloat | None = None
    """GPUs of a training worker. Unset: 1 if the cluster has GPUs, else 0."""
    DATA_CPUS: PositiveFloat | None = None
    """CPUs that the data pipeline takes at most. Unset: all that are free."""
    DATA_LABELS: dict[str, str] = {"seqtrack-role": "data"}
    """Ray labels of the nodes that make samples first (cluster.yaml gives them); others do where those have no room."""
    WORKER_LABELS: dict[str, str] = {}
    """Ray labels of the nodes that training workers may run on, such as {ray.io/accelerator-type: A100}. {}: any."""


class MlflowConfig(Section):
    """Experiment tracking. Ours."""

    EXPERIMENT: str = "seqtrack"
    """MLflow experiment that runs are filed under, unless MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID is set."""
    RUN_NAME: str | None = None
    """Name of the MLflow run. Unset: RUN.NAME."""
    TAGS: dict[str, str] = {}
    """Tags of the MLflow run, beside those that it always has."""
    TRACKING_URI: str | None = None
    """MLflow store. Unset: MLFLOW_TRACKING_URI, else a SQLite file beside the runs."""
    PATIENCE: NonNegativeFloat = 60.0
    """Seconds that a finished run waits for a store that does not take what it is sent."""


class HubConfig(Section):
    """Checkpoint upload to the Hugging Face Hub. Ours."""

    REPO_ID: str | None = None
    """Repository (`user/name`) that receives the checkpoints. Unset: none is uploaded."""
    PRIVATE: bool = True
    """Whether a repository that has to be created is private."""
    CHECKPOINTS: Literal["all", "last", "best"] = "all"
    """Which ones: each as soon as it is written; or at the end the newest, or the best epoch's."""
    BEST_BY: Literal["iou", "loss"] = "iou"
    """What the best epoch is best by. Its weights are the repository's own, unless CHECKPOINTS is last."""
    REQUIRED: bool = False
    """Whether a run stops at its start where the Hub cannot be written to. False: it warns and trains."""
    PATIENCE: NonNegativeFloat = 3600.0
    """Seconds that a finished run waits for its uploads."""


SETTINGS_FILE = "config.yaml"
"""Settings beside what was made with them: in a run's folder, a repository on the Hub, MLflow's artifacts."""

INDIFFERENT = (
    *("RUN.", "MLFLOW.", "HUB.", "TEST.", "DATA.SYNTHETIC.", "DATA.TRAIN.MAX_SAMPLE_PER_SEQ", "TRAIN.EPOCH"),
    *("TRAIN.PRINT_INTERVAL", "TRAIN.CHECKPOINT_EVERY_STEPS", "TRAIN.KEEP_CHECKPOINTS", "TRAIN.NUM_WORKER"),
    "DATA.DOWNLOAD_FROM",
    *("DATA.ROOT", "DATA.SPLIT", "DATA.TRAIN.CLASSES"),  # the data set's fingerprint is compared instead
)
"""Beginnings of the settings that do not alter what a step computes."""


class Config(Section):
    SEED: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Ours. Every random number of a run derives from it."""
    DATA: DataConfig = DataConfig()
    MODEL: ModelConfig = ModelConfig()
    TRAIN: TrainConfig = TrainConfig()
    TEST: TestConfig = TestConfig()
    RUN: RunConfig = RunConfig()
    MLFLOW: MlflowConfig = MlflowConfig()
    HUB: HubConfig = HubConfig()

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        for key, value in self.flat().items():
            if isinstance(value, str) and is_uri(value) and urlsplit(value).password is not None:
                raise ValueError(
                    f"{key} holds a password, which would go into checkpoints, logs and MLflow; keep it in the "
                    "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, or a whole "
                    "MLFLOW_TRACKING_URI)"
                )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        workers, fewest = self.RUN.WORKERS, self.RUN.MIN_WORKERS or self.RUN.WORKERS
        if fewest > workers:
            raise ValueError(f"RUN.MIN_WORKERS {fewest} is more than RUN.WORKERS {workers}")
        if bad := [number for number in range(fewest, workers + 1) if self.TRAIN.BATCH_SIZE % number]:
            raise ValueError(
                f"RUN.WORKERS {workers} does not divide TRAIN.BATCH_SIZE {self.TRAIN.BATCH_SIZE}, the global batch"
                if fewest == workers
                else f"RUN.MIN_WORKERS {fewest} to RUN.WORKERS {workers}: {bad[0]} does not divide TRAIN.BATCH_SIZE "
                f"{self.TRAIN.BATCH_SIZE}, the global batch; {lcm(*range(fewest, workers + 1))} would suit them all"
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
        if bad := [number for number in range(fewest, workers + 1) if slots % number]:
            fitting = ", ".join(str(1 << power) for power in range(slots.bit_length()))
            raise ValueError(f"RUN.WORKERS {bad[0]} does not divide TRAIN.SLOTS {slots}; these do: {fitting}")
        return self

    @property
    def threads(self) -> int | None:
        """Threads of a worker on a CPU; None: what its process has."""
        return self.TRAIN.THREADS or (None if self.TRAIN.SLOTS is None else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimisation steps of an epoch; the last batch is full, since samples are draws."""
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

    def with_overrides(self, overrides: Sequence[str]) -> Config:
        """A checked copy with `KEY=VALUE` overrides applied, whose values are YAML."""
        return self.with_settings(dict(map(_parse_override, overrides)), source="command line")

    def changed_settings(self, other: Config) -> dict[str, str]:
        """key -> `ours, not theirs` of each setting that differs and can change what a step computes."""
        theirs = other.flat()
        return {
            key: f"{value}, not {theirs[key]}"
            for key, value in self.flat().items()
            if value != theirs[key] and not key.startswith(INDIFFERENT)
        }

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key, as plain values."""
        return dict(_flatten(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """The whole configuration as YAML; `load_config` of it gives an equal `Config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def ineffective(self) -> list[str]:
        """One line for each setting that was stated but does nothing here."""
        lines = []
        if self.DATA.TRAIN.MAX_SAMPLE_PER_SEQ is not None:
            lines.append("DATA.TRAIN.MAX_SAMPLE_PER_SEQ has no effect (nothing in the published code reads it)")
        if "NUM_WORKER" in self.TRAIN.model_fields_set and self.TRAIN.NUM_WORKER != TrainConfig().NUM_WORKER:
            lines.append("TRAIN.NUM_WORKER has no effect (the data pipeline uses the cluster's free CPUs)")
        return lines


class _YamlLoader(yaml.SafeLoader):
    """YAML with 1.2's floats: PyYAML alone reads `1e-4` as a string."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file (None: all defaults) and applies `KEY=VALUE` overrides, whose values are YAML too.

    Raises ConfigError naming the file (or the command line), the key and the nearest known key.
    """
    return (Config() if path is None else parse_config(read_yaml(path), str(path))).with_overrides(overrides)


def load_settings(text: str, source: str) -> Config:
    """Settings from YAML text; `source` is named in errors."""
    return parse_config(_parse_yaml(text, source), source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file, on this machine or in an object store. Raises ConfigError naming it."""
    try:
        filesystem, fs_path = fs.FileSystem.from_uri(absolute(str(path)))
        with filesystem.open_input_stream(fs_path) as file:
            text = file.read().decode()
    except (OSError, UnicodeDecodeError, ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_YamlLoader) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: holds {type(values).__name__}, not settings")
    return values


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Checks plain values (as YAML or JSON gives them) and makes a `Config`; `source` is named in errors."""
    try:
        # JSON mode, so that lists are accepted for tuples while everything else stays strict.
        return Config.model_validate_json(json.dumps(values))
    except TypeError as error:
        raise ConfigError(f"{source}: a value is of no known type ({error})") from error
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(detail, source) for detail in error.errors())) from None


def setting_docs() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default as YAML, meaning) of every setting, in order."""
    yield from _section_docs(Config, "")


def _section_docs(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _section_docs(field.annotation, f"{prefix}{name}.")
        else:
            default = json.dumps(field.default)
            yield f"{prefix}{name}", default, field.description or (section.__doc__ or "").strip()


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} is not of the form KEY=VALUE")
    try:
        return key, yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _set_dotted(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {key}: unknown setting{_nearest(key)}")
        node = child
    if isinstance(node.get(last), dict) and not isinstance(value, dict):
        raise ConfigError(f"{source}: {key} is a section, not a setting; name one of its settings, as {key}.…=VALUE")
    node[last] = value


def _explain(detail: Any, source: str) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown setting{_nearest(key)}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{source}: {key + ': ' if key else ''}{message}"
    return f"{source}: {key}: {message} (got {detail['input']!r})"


def _nearest(key: str) -> str:
    known = [name for name, _, _ in setting_docs()]
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not matches:  # the right name in the wrong section, say
        last = key.rsplit(".", 1)[-1]
        matches = [name for name in known if name.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {matches[0]}?" if matches else ""
