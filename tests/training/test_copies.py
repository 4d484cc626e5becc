"""Batches on their way to the device."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import numpy as np
import pytest
import torch

from seqtrack.data.batches import HostBatch
from seqtrack.training.copies import DeviceBatches
from seqtrack.training.step import Batch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


def host_batch(step: int) -> HostBatch:
    generator = np.random.default_rng(step)
    batch = HostBatch(
        step,
        np.arange(4),
        generator.integers(0, 256, (4, 2, 32, 32, 3), np.uint8),
        generator.integers(0, 256, (4, 32, 32, 3), np.uint8),
        generator.random((4, 4), np.float32),
        generator.random((4, 3), np.float32),
        np.arange(4),
        (),
    )
    for name in Batch._fields:
        getattr(batch, name).flags.writeable = False  # as Ray's object store gives them
    return batch


def three_batches() -> Generator[HostBatch, None, None]:
    yield from map(host_batch, range(3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_come_in_order_with_their_values(device: str, ahead: bool) -> None:
    batches = DeviceBatches(three_batches(), torch.device(device), lambda: 0.0)
    for step in range(3):
        host, on_device, _ = batches.next()
        if ahead and step < 2:
            batches.fetch_ahead()
        assert host.step == step
        for name, tensor in zip(Batch._fields, on_device, strict=True):
            assert tensor.device.type == device
            assert np.array_equal(tensor.cpu().numpy(), getattr(host_batch(step), name)), name
    with pytest.raises(StopIteration):
        batches.next()


def test_a_failure_belongs_to_the_batch_that_is_missing() -> None:
    def failing() -> Generator[HostBatch, None, None]:
        yield host_batch(0)
        raise OSError("the store is gone")

    batches = DeviceBatches(failing(), torch.device("cpu"), lambda: 0.0)
    batches.next()
    batches.fetch_ahead()
    with pytest.raises(OSError, match="the store is gone"):
        batches.next()


def test_the_wait_for_a_batch_is_told_with_it() -> None:
    ticks = itertools.accumulate([1.0, 0.25, 1.0, 0.5])  # each batch takes as long as the second of two looks says
    batches = DeviceBatches(three_batches(), torch.device("cpu"), lambda: next(ticks))
    batches.fetch_ahead()
    assert [batches.next().waited, batches.next().waited] == [0.25, 0.5]
