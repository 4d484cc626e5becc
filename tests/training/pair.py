"""Runs that two processes train together for tests of the loop: whole, resumed, and with a faulty worker."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from seqtrack.data.batches import HostBatch, StreamPlan, make_batches
from seqtrack.data.open import open_data
from seqtrack.data.triplets import TripletSource
from seqtrack.training.loop import BrokenDataError, DivergedError
from seqtrack.training.state import TrainState
from tests.training.loops import checkpoint_of, named, train

STARTS = ("checkpoint_epoch_0001", "checkpoint_epoch_0001_step_000030")
PLAIN = {"MODEL.DECODER.DROPOUT": 0.0, "MODEL.ENCODER.DROP_PATH": 0.0}
"""Without random numbers in the model, losses on different numbers of workers agree to rounding."""

LONG = {"DATA.TRAIN.SAMPLE_PER_EPOCH": 2400, "TRAIN.EPOCH": 1, "TRAIN.CHECKPOINT_EVERY_STEPS": None}
"""An epoch that is long enough for nodes to come and go."""


def run(rank: int, world_size: int, settings: dict[str, Any]) -> None:
    """Trains `pair`, and `pair-from-…` from its checkpoints; `plain-2` and `plain-1-to-2`; `faulty` and `lacking`."""
    whole = named(settings, "pair")
    train(whole, None, rank, world_size)
    for start in STARTS:
        train(named(settings, f"pair-from-{start}"), checkpoint_of(whole, start), rank, world_size)
    plain_1, plain_2 = named(settings, "plain-1", PLAIN), named(settings, "plain-2", PLAIN)
    train(plain_2, None, rank, world_size)
    train(named(settings, "plain-1-to-2", PLAIN), checkpoint_of(plain_1, STARTS[0]), rank, world_size)

    def flip_a_bit(state: TrainState) -> None:
        if rank == 1:
            list(state.model.parameters())[3].detach().view(torch.int32).view(-1)[-1] ^= 1

    faulty = named(settings, "faulty", {"TRAIN.SLOTS": 2})  # data-parallel training would copy rank 0's weights
    try:
        train(faulty, None, rank, world_size, before=flip_a_bit)
    except DivergedError as error:
        Path(settings["RUN"]["STORAGE_PATH"], f"faulty-{rank}.json").write_text(json.dumps(str(error)))

    def lack_samples() -> Generator[HostBatch, None, None]:
        data = open_data(lacking)
        triplets, plan = TripletSource.from_config(lacking, data.mixture), StreamPlan.from_config(lacking, 2)
        for batch in make_batches(triplets, plan, range(lacking.total_steps), rank):
            yield batch._replace(fault="sample 12: no valid draw" if (batch.step, rank) == (3, 1) else "")

    lacking = named(settings, "lacking")
    try:
        train(lacking, None, rank, world_size, batches=lack_samples())
    except BrokenDataError as error:
        Path(settings["RUN"]["STORAGE_PATH"], f"lacking-{rank}.json").write_text(json.dumps(str(error)))


def run_long(rank: int, world_size: int, settings: dict[str, Any]) -> None:
    """`long`."""
    train(named(settings, "long", LONG), None, rank, world_size)
