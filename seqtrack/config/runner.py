"""Settings of the runner itself: where and on what a run happens, MLflow, the Hugging Face Hub, and benchmarks.

No published configuration has these. None of them changes what a step computes, except the number of workers.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seqtrack.config.settings import Location, NonNegativeFloat, PositiveFloat, PositiveInt, Section


class RunConfig(Section):
    """Where and on what a run happens. Of these, only the number of workers changes what is computed."""

    NAME: str | None = None
    """Name of the run and its folder. Unset: the config's name and the time."""
    STORAGE_PATH: Location = "runs"
    """Folder or URI in which the run's folder is created. If workers run on several machines, all must reach it."""
    WORKERS: PositiveInt = 1
    """Training workers. Must divide TRAIN.BATCH_SIZE."""
    MIN_WORKERS: PositiveInt | None = None
    """Elastic training: from this number up to WORKERS, as many as the cluster has room for. Unset: always WORKERS."""
    MAX_FAILURES: Annotated[int, Field(ge=-1)] = 3
    """How often lost workers are restarted, from the latest checkpoint. -1: without limit. Preempted nodes do not
    count."""
    CPUS_PER_WORKER: PositiveFloat | None = None
    """CPUs of a training worker. Unset: 1, or less, so that half of the CPUs are left for the data pipeline."""
    GPUS_PER_WORKER: NonNegativeFloat | None = None
    """GPUs of a training worker. Unset: 1 if the cluster has GPUs, else 0."""
    DATA_CPUS: PositiveFloat | None = None
    """Most CPUs that the data pipeline may use. Unset: all that are free."""
    DATA_LABELS: dict[str, str] = Field({"seqtrack-role": "data"})
    """Ray labels of the nodes that make samples (cluster.yaml sets them). Other nodes help out when these are full."""
    WORKER_LABELS: dict[str, str] = Field({})
    """Ray labels of the nodes that training workers may run on, such as {ray.io/accelerator-type: A100}. {}: any."""


class MlflowConfig(Section):
    """Experiment tracking. Not in the published configuration."""

    EXPERIMENT: str = "seqtrack"
    """MLflow experiment of the run, unless MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID is set."""
    RUN_NAME: str | None = None
    """Name of the MLflow run. Unset: RUN.NAME."""
    TAGS: dict[str, str] = Field({})
    """Further tags of the MLflow run, added to those that every run has."""
    TRACKING_URI: str | None = None
    """MLflow store. Unset: MLFLOW_TRACKING_URI, else a SQLite file beside the runs."""
    PATIENCE: NonNegativeFloat = 60.0
    """Seconds that a finished run waits for a store that does not accept its data."""
    REQUIRED: bool = False
    """Whether a run stops at its start if its store cannot be opened. false: it warns and trains anyway."""


class HubConfig(Section):
    """Checkpoint upload to the Hugging Face Hub. Not in the published configuration."""

    REPO_ID: str | None = None
    """Repository (`user/name`) to upload checkpoints to. Unset: nothing is uploaded."""
    PRIVATE: bool = True
    """Whether a newly created repository is private."""
    CHECKPOINTS: Literal["all", "last", "best"] = "all"
    """Checkpoints to upload: `all`, each as soon as it is written, or at the end the `last` or the `best` one."""
    BEST_BY: Literal["iou", "loss", "auc"] = "iou"
    """Metric that decides which epoch is best. Its weights become the repository's own, unless CHECKPOINTS is last.
    `auc` is that on the first of EVAL.BENCHMARKS."""
    REQUIRED: bool = False
    """Whether a run stops at its start if the Hub cannot be written to. false: it warns and trains anyway."""
    PATIENCE: NonNegativeFloat = 3600.0
    """Seconds that a finished run waits for its uploads."""


class EvalConfig(Section):
    """Measuring a run's checkpoints on benchmarks. Not in the published configuration."""

    BENCHMARKS: dict[str, Location] = Field({})
    """Benchmarks by name and where each is, such as {lasot: /data/LaSOT}; `synthetic: synthetic` is a drawn one.
    {}: nothing is measured."""
    EVERY_EPOCHS: PositiveInt = 1
    """Checkpoints are measured after every so many epochs, and after the last."""
    SEQUENCES: PositiveInt | tuple[str, ...] | None = None
    """The sequences of each benchmark that are tracked: so many, spread evenly over its list, or these names.
    Unset: all."""
    RESOURCES: dict[Literal["CPU", "GPU"], NonNegativeFloat] | None = None
    """CPUs and GPUs of the cluster on which checkpoints are measured beside the training, such as {CPU: 4, GPU: 1}.
    Unset: what training and data leave free. {}, or where nothing is left: after the training."""
