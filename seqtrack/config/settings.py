"""The settings of published configuration files, section by section, with the additions of this project.

The upper-case keys and their defaults are those of the published SeqTrack configuration, so its YAML files load
unchanged. In each section, settings that the published code does not have follow the comment `ours`. The sections that
only this project has (RUN, MLFLOW, HUB) are in `runner.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from seqtrack.locations import check_location


class Section(BaseModel):
    """Base of all sections: frozen, strict about types, closed to unknown keys and to numbers that are not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


@dataclass(frozen=True)
class NoEffect:
    """Marks a setting, or a whole section, that does nothing but is accepted so that published files load.

    `--settings` and the log of a run say so and give this reason.
    """

    reason: str


PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Rgb = tuple[float, float, float]
Location = Annotated[str, AfterValidator(check_location)]


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
    PRETRAIN_FILE: Location | None = None
    """File with the weights for PRETRAIN_TYPE, in timm's or the MAE authors' layout. Unset: download from the Hub."""


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
    """Whether LayerNorm comes before each sub-layer instead of after it."""


class ModelConfig(Section):
    HIDDEN_DIM: PositiveInt = 256
    """Width of the decoder and the vocabulary head. Even, and a multiple of DECODER.NHEADS."""
    BINS: Annotated[int, Field(ge=2)] = 4000
    """Number of coordinate tokens. The vocabulary has END and START as well."""
    FEATURE_TYPE: Literal["x", "xz", "token"] = "x"
    """What the decoder reads: the search tokens, all tokens, or the mean of all tokens."""
    ENCODER: EncoderConfig = EncoderConfig()
    DECODER: DecoderConfig = DecoderConfig()
    # ours
    WEIGHTS: Location | None = None
    """SeqTrack weights to start from: a file of weights (`.pth.tar`, `.safetensors`), a run, `RUN/3`, a checkpoint or
    `hf://user/repo`."""

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
    """Learning rate of all parameters outside the encoder."""
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
    NUM_WORKER: Annotated[int, Field(ge=0), NoEffect("the data pipeline uses the cluster's free CPUs")] = 8
    """Loader processes in the published code."""
    OPTIMIZER: Literal["ADAMW"] = "ADAMW"
    """The optimizer."""
    FREEZE_ENCODER: bool = False
    """Whether the encoder's weights stay fixed."""
    ENCODER_OPEN: tuple[str, ...] = ()
    """Encoder parameters that FREEZE_ENCODER leaves trainable: two whole names first, then parts of names."""
    CE_WEIGHT: NonNegativeFloat = 1.0
    """Factor of the cross-entropy loss."""
    PRINT_INTERVAL: PositiveInt = 50
    """Samples between log lines."""
    GRAD_CLIP_NORM: PositiveFloat = 0.1
    """Largest global norm of the gradients; larger ones are scaled down to it."""
    SCHEDULER: SchedulerConfig = SchedulerConfig()
    # ours
    PRECISION: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Arithmetic of forward and backward. Weights, optimizer and loss stay fp32. `tf32` rounds what a GPU multiplies
    to 10 bits of mantissa, and has no effect on a CPU; `fp32` uses no TF32 at all. There is no fp16, which would need
    a gradient scaler: every GPU since Ampere has bf16, and older ones use fp32."""
    DETERMINISTIC: bool = True
    """Use only deterministic kernels, so that the same run gives the same bits. false is faster on a GPU."""
    COMPILE: bool = False
    """Compile the encoder's blocks and the decoder's layers with torch.compile, which takes up to a minute before the
    first step. Bits differ from those without it, but repeat. It is meant for GPUs: on a CPU steps took as long as
    before. It needs Triton on a GPU and a C++ compiler on a CPU; where that is missing, the log says so and nothing is
    compiled."""
    SLOTS: PositiveInt | None = None
    """Number of parts (a power of two) that each batch is divided into. They are computed one by one: 1, 2, 4 … SLOTS
    workers give the same bits, and a step needs memory for one part only. Unset: ordinary data-parallel training."""
    THREADS: PositiveInt | None = None
    """CPU threads of a training worker. Their number affects rounding, as kernels split sums between threads. Unset: 1
    with SLOTS, else one per CPU."""
    CHECKPOINT_EVERY_STEPS: PositiveInt | None = None
    """Steps between checkpoints within an epoch; each epoch's end has one in any case. Unset: only there."""
    KEEP_CHECKPOINTS: PositiveInt | None = None
    """Number of newest checkpoints to keep. Unset: all."""


class DataTrainConfig(Section):
    DATASETS_NAME: tuple[str, ...] = ("LASOT", "GOT10K_vottrain")
    """Training sets: LASOT, GOT10K_train_full, GOT10K_vottrain, GOT10K_votval (lists as published),
    GOT10K_vottrain_fixed (without the videos that VOT forbids), COCO17, TRACKINGNET. DATA.ROOTS says where each is."""
    DATASETS_RATIO: tuple[PositiveFloat, ...] = (1, 1)
    """Relative sampling weight of each of DATASETS_NAME: a sample's set is drawn by it, then a sequence of the set."""
    SAMPLE_PER_EPOCH: PositiveInt = 60000
    """Samples per epoch, rounded up to whole batches."""
    # ours
    CLASSES: tuple[str, ...] = ()
    """Object classes of LaSOT to use. Empty: all. Other sets are used with all of their classes."""
    MAX_SAMPLE_PER_SEQ: Annotated[PositiveInt | None, NoEffect("nothing in the published code reads it")] = None
    """Accepted because published files have it."""

    @model_validator(mode="after")
    def _check_ratio(self) -> Self:
        if len(self.DATASETS_NAME) != len(self.DATASETS_RATIO):
            raise ValueError(
                f"DATASETS_RATIO has {len(self.DATASETS_RATIO)} entries for {len(self.DATASETS_NAME)} DATASETS_NAME"
            )
        return self


class SearchConfig(Section):
    NUMBER: Literal[1] = 1
    """Search frames per sample. The method defines only 1."""
    SIZE: PositiveInt = 256
    """Side of the crop in pixels, a multiple of 16."""
    FACTOR: PositiveFloat = 4.0
    """Side of the cropped square, as a multiple of the target's size sqrt(w·h)."""
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
    """Template frames per sample."""
    CENTER_JITTER: NonNegativeFloat = 0.0
    """As in SEARCH; the published recipes use 0."""
    SCALE_JITTER: NonNegativeFloat = 0.0
    """As in SEARCH; the published recipes use 0."""


class SyntheticConfig(Section):
    SEQUENCES: PositiveInt = 16
    """Number of sequences to write: coins and kites in turn."""
    FRAMES: Annotated[int, Field(ge=20)] = 60
    """Frames of each sequence."""
    HEIGHT: Annotated[int, Field(ge=64)] = 240
    """Frame height in pixels."""
    WIDTH: Annotated[int, Field(ge=64)] = 320
    """Frame width in pixels."""
    SEED: Annotated[int, Field(ge=0)] = 0
    """Seed of the pictures. The same seed gives the same bytes."""
    PATH: Location = "data"
    """Folder in which the data set is written."""


class DataConfig(Section):
    MEAN: Rgb = (0.485, 0.456, 0.406)
    """Channel means (RGB, 0–1) subtracted from the crops."""
    STD: Rgb = (0.229, 0.224, 0.225)
    """Channel deviations that the crops are divided by."""
    MAX_SAMPLE_INTERVAL: PositiveInt = 200
    """Largest distance in frames from a sample's base frame, in every set of videos."""
    SAMPLER_MODE: Literal["order", "causal", "interval", "trident", "stark"] = "order"
    """How a sample's frames are chosen. Only `order`, which every published recipe uses, is supported."""
    LOADER: Literal["tracking"] = "tracking"
    """Name of the published loader. There is only this one."""
    SEQ_FORMAT: Literal["xywh", "whxy", "corner"] = "xywh"
    """Order of the coordinate tokens: (cx, cy, w, h), (w, h, cx, cy) or (x0, y0, x1, y1)."""
    TRAIN: DataTrainConfig = DataTrainConfig()
    SEARCH: SearchConfig = SearchConfig()
    TEMPLATE: TemplateConfig = TemplateConfig()
    # ours
    ROOT: Location | None = None
    """LaSOT folder or URI (`/data/lasot`, `s3://bucket/lasot`). `synthetic`: write and use a small made-up data set.
    It is the same as ROOTS.LASOT, and only one of the two may be set."""
    ROOTS: dict[str, Location] = Field({})
    """Folder or URI of each training set, such as {LASOT: /data/lasot, COCO17: s3://bucket/coco}; `synthetic` for a
    small made-up one. GOT10K stands for every GOT10K_… that has no entry of its own."""
    PARTIAL: tuple[str, ...] = ()
    """Sets of DATASETS_NAME whose copies may lack sequences or chunks, such as [TRACKINGNET]. They are trained on as
    they are; the log and the data set's fingerprint say so. Other incomplete copies are refused."""
    SPLIT: Location = "lasot_train"
    """Which sequences of LaSOT: `lasot_train`, `lasot_test` (the benchmark's own lists), `all` on disk, or a file of
    names."""
    ON_MISMATCH: Literal["error", "drop", "redraw"] = "error"
    """What happens to a sequence whose frames do not fit its boxes (their number, or a gap). `error`: nothing starts.
    `drop`: it is left out. `redraw`: a sample that would show a missing frame is drawn again."""
    MAX_PIXELS: PositiveInt = 1 << 26
    """Most pixels of a frame: 8192 × 8192, twice those of an 8K video, for which decoding takes up to 1.1 GB. A larger
    frame is refused by what its header says. In training it counts as a broken one: its sample is drawn again."""
    DOWNLOAD_FROM: str = "l-lt/LaSOT"
    """Dataset repository on the Hugging Face Hub, one zip per class, that `seqtrack fetch` downloads LaSOT from."""
    SYNTHETIC: SyntheticConfig = SyntheticConfig()
    """The data set that `ROOT: synthetic` stands for, and those of other layouts in ROOTS."""

    def place_of(self, name: str) -> tuple[str, str | None]:
        """The setting that says where a training set is, and its value; None if it is not set."""
        for key in (name, name.partition("_")[0]):
            if key in self.ROOTS:
                return f"DATA.ROOTS.{key}", self.ROOTS[key]
        return ("DATA.ROOT", self.ROOT) if name == "LASOT" else (f"DATA.ROOTS.{name}", None)


class TestIntervals(Section):
    """Frames between template updates when tracking, per benchmark."""

    __test__ = False  # pytest would take the class for a test because of its name

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
    """Settings of online tracking."""

    __test__ = False

    TEMPLATE_FACTOR: PositiveFloat = 4.0
    """What DATA.TEMPLATE.FACTOR is in training."""
    TEMPLATE_SIZE: PositiveInt = 256
    """What DATA.TEMPLATE.SIZE is in training."""
    SEARCH_FACTOR: PositiveFloat = 4.0
    """What DATA.SEARCH.FACTOR is in training."""
    SEARCH_SIZE: PositiveInt = 256
    """What DATA.SEARCH.SIZE is in training."""
    EPOCH: PositiveInt = 500
    """Epoch whose checkpoint is tested."""
    WINDOW: bool = False
    """Whether to weight the centre tokens by a Hanning window."""
    NUM_TEMPLATES: PositiveInt = 1
    """Number of templates that the tracker keeps."""
    UPDATE_INTERVALS: TestIntervals = TestIntervals()
    UPDATE_THRESHOLD: TestThresholds = TestThresholds()
