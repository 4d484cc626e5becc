"""How a worker begins: its first batches are made while it imports and builds its model."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Any, cast

import pytest

from seqtrack.data.batches import HostBatch
from seqtrack.data.storage import StoreError
from seqtrack.training.job import begun, joined


def numbered(*steps: int) -> Generator[HostBatch, None, None]:
    """Stands in for batches: their steps."""
    yield from cast(Iterator[Any], steps)


def test_the_first_batch_is_made_before_it_is_asked_for() -> None:
    made = threading.Event()

    def batches() -> Generator[HostBatch, None, None]:
        made.set()
        yield from numbered(3, 4, 5)

    stream = begun(batches())
    assert made.wait(60)
    assert list(stream) == [3, 4, 5]


def test_what_keeps_the_first_batch_from_being_made_is_raised_where_it_is_asked_for() -> None:
    def batches() -> Generator[HostBatch, None, None]:
        raise StoreError("s3://bucket: no answer")
        yield from numbered(3)

    stream = begun(batches())
    with pytest.raises(StoreError, match="no answer"):
        next(stream)


def test_the_end_of_the_loop_ends_the_stream() -> None:
    ended: list[bool] = []

    def streamed() -> Generator[HostBatch, None, None]:
        try:
            yield from numbered(2, 3)
        finally:
            ended.append(True)

    stream = joined(begun(numbered(0, 1)), begun(streamed()))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert ended
