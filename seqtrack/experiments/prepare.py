"""From settings to a run that can start: everything that can be known before a cluster is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyarrow import ArrowException

from seqtrack.cluster.resources import Resources
from seqtrack.config import Config, SyntheticConfig, check_supported
from seqtrack.data.datasets.lasot import BENCHMARK_SPLITS
from seqtrack.data.datasets.synthetic import ensure_synthetic
from seqtrack.data.datasets.synthetic_sets import ensure_synthetic_set
from seqtrack.data.open import Data, open_data
from seqtrack.data.stamp import FrameStamp
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.experiments.benchmarks import SYNTHETIC, open_for_run
from seqtrack.locations import absolute, lasting
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import Weights, starting_weights
from seqtrack.runs.checkpoint import (
    SUMS_FILE,
    OpenedCheckpoint,
    StoredCheckpoint,
    find_checkpoint,
    open_checkpoint,
)
from seqtrack.runs.compatibility import FRAMES, changed_since, check_allowed, check_model_fits
from seqtrack.runs.folder import RunFolder, open_run
from seqtrack.runs.history import own_checkpoint
from seqtrack.runs.log import append_to_log
from seqtrack.runs.origin import LOCATION_FILE, START, check_origin
from seqtrack.sums import CheckpointError
from seqtrack.transfer import send


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings, data, folder and start have been opened and checked."""

    config: Config
    """The settings with absolute paths."""
    data: Data
    run: RunFolder
    start: OpenedCheckpoint | None
    """Where it starts; None for a new run."""
    continued: bool
    """Whether `start` is the run's own newest checkpoint."""
    weights: Weights
    """Initial weights of a new run; parameters that are missing keep their random values."""
    weights_source: str
    """Where the weights are from, for the log."""
    allow_changed: frozenset[str]
    """Settings, packages or `dataset` that may differ from the checkpoint's."""
    benchmarks: tuple[BenchmarkData, ...]
    """What EVAL.BENCHMARKS names: where its checkpoints are measured."""

    @property
    def step(self) -> int:
        """Steps that earlier starts of the run have trained."""
        return int(self.start.meta["step"]) if self.start is not None and self.continued else 0


def prepare(
    config: Config,
    resume_from: OpenedCheckpoint | str | None = None,
    allow_changed: Collection[str] = (),
    data: Data | None = None,
    benchmarks: tuple[BenchmarkData, ...] | None = None,
    asked: str | None = None,
    weights: tuple[Weights, str] | None = None,
) -> PreparedRun:
    """Opens and checks all that a training needs. A run that has checkpoints is continued from the newest.

    `resume_from`: where a run without checkpoints starts. If it is a location (as `open_start` takes it), it is opened
    only for such a run: when the run is continued later, it may be gone. But it must be what the run began from;
    `asked`: the location, if `resume_from` is open. `allow_changed`: settings, packages or `dataset` that may differ
    from the checkpoint's. `data`: given if `config` is settled and its data are open, as for the second phase of an
    experiment or the trials of a sweep; `benchmarks`: given if they are open; `weights`: given if they have been read
    (as by `starting_weights`). Raises InputError.
    """
    if data is None:
        config, data = open_experiment(config)
    data = data.stamped()
    run = open_run(config, allow_changed)
    benchmarks = open_for_run(config) if benchmarks is None else benchmarks
    try:
        own = own_checkpoint(run)
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{run.location}: cannot be read ({error})") from error
    start: OpenedCheckpoint | None = None
    if own is not None:
        start = open_checkpoint(own)
        if (asked := resume_from if isinstance(resume_from, str) else asked) is not None:
            check_origin(asked, start, run)
    else:
        start = open_start(resume_from) if isinstance(resume_from, str) else resume_from
    if start is None:
        read, source = weights or starting_weights(config)
        return PreparedRun(config, data, run, None, False, read, source, frozenset(allow_changed), benchmarks)
    check_start(config, start, data.mixture.description, allow_changed, own is not None, data.frames)
    if data.frames is not None:
        data = replace(data, notes=(*data.notes, *data.frames.notes(start.meta.get(FRAMES))))
    return PreparedRun(config, data, run, start, own is not None, {}, start.path, frozenset(allow_changed), benchmarks)


def open_experiment(config: Config) -> tuple[Config, Data]:
    """The settings with absolute paths, and the data they name. Raises ConfigError or DataError."""
    check_supported(config)
    config = settle_paths(config)
    return config, open_data(config).stamped()


def settle_paths(config: Config) -> Config:
    """Writes the synthetic data sets that are asked for, and makes local paths absolute: workers run elsewhere."""
    settled: dict[str, Any] = {
        "RUN.STORAGE_PATH": lasting(config.RUN.STORAGE_PATH),
        "DATA.SYNTHETIC.PATH": lasting(config.DATA.SYNTHETIC.PATH),
    }
    made_up = config.with_settings(settled).DATA.SYNTHETIC
    if config.DATA.ROOT is not None:
        settled["DATA.ROOT"] = _settle_root("LASOT", config.DATA.ROOT, made_up)
    if config.DATA.ROOTS:
        settled["DATA.ROOTS"] = {key: _settle_root(key, place, made_up) for key, place in config.DATA.ROOTS.items()}
    if config.DATA.SPLIT not in (*BENCHMARK_SPLITS, "all"):
        settled["DATA.SPLIT"] = absolute(config.DATA.SPLIT)
    if config.EVAL.BENCHMARKS:
        places = config.EVAL.BENCHMARKS.items()
        settled["EVAL.BENCHMARKS"] = {name: place if place == SYNTHETIC else absolute(place) for name, place in places}
    if config.MODEL.WEIGHTS is not None:
        settled["MODEL.WEIGHTS"] = absolute(config.MODEL.WEIGHTS)
    if config.MODEL.ENCODER.PRETRAIN_FILE is not None:
        settled["MODEL.ENCODER.PRETRAIN_FILE"] = absolute(config.MODEL.ENCODER.PRETRAIN_FILE)
    return config.with_settings(settled)


def _settle_root(name: str, place: str, made_up: SyntheticConfig) -> str:
    """An absolute path or URI of a training set; of a made-up one, which is written, if `place` asks for it."""
    if place != SYNTHETIC:
        return absolute(place)
    if name == "LASOT":
        return str(ensure_synthetic(made_up))
    return str(ensure_synthetic_set(name.partition("_")[0], made_up))  # all sets of GOT-10k share one tree


def open_start(location: str) -> OpenedCheckpoint:
    """The checkpoint that an address means (`seqtrack.address`), verified. Raises InputError."""
    return open_checkpoint(find_checkpoint(location))


def check_start(
    config: Config,
    start: OpenedCheckpoint,
    dataset: dict[str, Any],
    allow_changed: Collection[str] = (),
    finished_is_fine: bool = False,
    frames: FrameStamp | None = None,
) -> None:
    """Raises CheckpointError if going on from a checkpoint would not be exact, or nothing is left to train."""
    meta, path = start.meta, start.path
    with torch.device("meta"):
        model = build_model(config)
    check_model_fits(start.shapes, model, path)
    if meta["steps_per_epoch"] != config.steps_per_epoch:
        raise CheckpointError(
            f"{path}: has {meta['steps_per_epoch']} steps an epoch, these settings {config.steps_per_epoch}"
        )
    check_allowed(changed_since(meta, config, dataset, frames), allow_changed, path)
    if meta["step"] >= config.total_steps and not finished_is_fine:
        raise CheckpointError(
            f"{path}: has finished epoch {meta['epoch']}, and TRAIN.EPOCH is {config.TRAIN.EPOCH}: nothing is left "
            f"to train (TRAIN.EPOCH={meta['epoch'] + config.TRAIN.EPOCH} goes on)"
        )


def keep_start(start: StoredCheckpoint, run: RunFolder) -> StoredCheckpoint:
    """A copy of this machine's checkpoint in the run's folder, where every worker can read it."""
    kept = StoredCheckpoint(run.child(START), start.name)
    try:
        kept.run.create()
        kept.run.write(LOCATION_FILE, f"{start.run.location}\n")
        send(Path(start.path), kept.run.filesystem, kept.path, last=[SUMS_FILE])
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{kept.path}: cannot be written ({error})") from error
    return kept


def log_start(prepared: PreparedRun, resources: Resources) -> None:
    """Writes the head of the run's log."""
    config, mixture = prepared.config, prepared.data.mixture
    gpus = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    lines = [
        *(f"Setting {line}" for line in config.without_effect()),
        *prepared.data.notes,
        *mixture.lines(),
        f"Run {config.RUN.NAME} : {mixture.num_sequences} sequences, {mixture.num_frames:,} frames, "
        f"{config.DATA.TRAIN.SAMPLE_PER_EPOCH:,} samples and {config.steps_per_epoch:,} steps an epoch, "
        f"{config.TRAIN.EPOCH} epochs, seed {config.SEED}",
        f"Starting weights : {prepared.weights_source}",
        *evaluation_lines(prepared, resources),
        f"Starting {config.RUN.WORKERS} worker(s) with {resources.cpus_per_worker:g} CPU{gpus} each …",
    ]
    append_to_log(prepared.run, lines)


def evaluation_lines(prepared: PreparedRun, resources: Resources) -> Iterator[str]:
    """What a run's log says beforehand of its evaluation."""
    share = resources.evaluation
    where = f"beside the training, with {share.cpus:g} CPUs and {share.gpus:g} GPUs" if share else "after the training"
    for data in prepared.benchmarks:
        if prepared.config.EVAL.SEQUENCES is None:
            yield from data.notes
        yield f"Checkpoints are measured on {data.benchmark.title}, {data.coverage}, {where}"
