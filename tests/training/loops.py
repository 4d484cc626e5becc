"""The training loop in a test: the same data, steps and checkpoints as on a cluster, without Ray."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from seqtrack.config import Config, parse_config
from seqtrack.data.batches import HostBatch, StreamPlan, make_batches
from seqtrack.data.open import open_data
from seqtrack.data.triplets import TripletSource
from seqtrack.lease import Lease
from seqtrack.model.weights import Weights
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, write_checkpoint
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.runs.log import MetricsFile, RunLogHandler
from seqtrack.training.coordination import OwnerCheck
from seqtrack.training.loop import Ended, Surroundings, TrainingLoop
from seqtrack.training.slots import SlotGradients
from seqtrack.training.state import TrainState, restore
from seqtrack.training.step import Backward, backward, set_determinism
from tests.settings import make_tiny_settings

CPU = torch.device("cpu")


class FolderSink:
    """Writes checkpoints into the run's folder at once."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def wait(self) -> None: ...

    def problem(self) -> str:
        return ""

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None:
        if contents is not None:
            write_checkpoint(contents, StoredCheckpoint(self.run, name))


def trained_run(lasot_root: Path, folder: Path) -> Path:
    """The folder of a run that ended well, with the checkpoints of two epochs and its settings."""
    config = parse_config(make_tiny_settings(lasot_root, folder), "tiny")
    train(config)
    write_settings(config, RunFolder.of(config))
    return folder / "tiny"


def train(
    config: Config,
    start: StoredCheckpoint | None = None,
    rank: int = 0,
    world_size: int = 1,
    weights: Weights | None = None,
    before: Callable[[TrainState], None] = lambda state: None,
    lease: Lease | None = None,
    **outside: Any,
) -> Ended:
    """Trains the run that the settings name, in its folder. Raises what the loop raises.

    `lease`: on the folder, which is given up as soon as another job has it. `before` sees the state before the first
    step. `outside` replaces parts of the loop's surroundings.
    """
    run = RunFolder.of(config)
    run.create()
    if lease is not None:
        run = run.under(lease)
        outside = {"reason_to_end": OwnerCheck(run), **outside}
    set_determinism(config.TRAIN.DETERMINISTIC)
    torch.set_num_threads(config.threads or 1)
    data = open_data(config)
    triplets = TripletSource.from_config(config, data.mixture)
    plan = StreamPlan.from_config(config, world_size)
    dataset, hardware = data.mixture.description, f"cpu, {torch.get_num_threads()} threads"
    log = logging.getLogger("seqtrack")
    log.setLevel(logging.INFO)
    handler: logging.Handler = RunLogHandler(run) if rank == 0 else logging.NullHandler()
    log.addHandler(handler)
    try:
        state = TrainState.fresh(config, rank, CPU, weights)
        resumed_from = restore(state, start, config, dataset, (), rank, hardware, run) if start else None
        before(state)
        model: torch.nn.Module = state.model
        gradients: Backward = backward
        if config.TRAIN.SLOTS is not None:
            gradients = SlotGradients(state, config.TRAIN.SLOTS, rank, world_size)
        elif world_size > 1:
            model = DistributedDataParallel(state.model)

        def batches() -> Generator[HostBatch, None, None]:
            for step in range(state.step, config.total_steps):
                yield from make_batches(triplets, plan, [step], rank)

        facts = {
            "resumed_from": resumed_from,
            "world_size": world_size,
            "hardware": hardware,
            "dataset": dataset,
            "code_revision": "test",
            "mlflow_run_id": None,
        }
        metrics_file = MetricsFile(run, state.step) if rank == 0 else None
        surroundings = replace(Surroundings(batches(), FolderSink(run), facts, metrics_file), **outside)
        return TrainingLoop(config, state, model, gradients, rank, world_size, CPU, surroundings).run()
    finally:
        handler.flush()
        log.removeHandler(handler)


def start_together(work: Callable[..., None], arguments: tuple[Any, ...], world_size: int) -> None:
    """Runs `work(rank, *arguments)`, a function of a module, in as many processes, and waits for them.

    What they import is imported once for all of them, and for all tests.
    """
    multiprocessing.set_forkserver_preload(["tests.training.pair", "tests.training.slot_group"])
    torch.multiprocessing.start_processes(work, arguments, nprocs=world_size, start_method="forkserver")


def train_together(work: Callable[[int, int], None], folder: Path, world_size: int = 2) -> None:
    """Runs `work(rank, world_size)`, a function of a module, in as many processes that can talk to each other."""
    (folder / "store").unlink(missing_ok=True)
    start_together(_join, (work, str(folder / "store"), world_size), world_size)


def _join(rank: int, work: Callable[[int, int], None], store: str, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    work(rank, world_size)
    dist.barrier()
    dist.destroy_process_group()


def named(settings: dict[str, Any], name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """The settings of a run with this name and these changes."""
    return parse_config(settings, "test").with_settings({"RUN.NAME": name} | dict(changes or {}))


def checkpoint_of(config: Config, name: str) -> StoredCheckpoint:
    return StoredCheckpoint(RunFolder.of(config), name)
