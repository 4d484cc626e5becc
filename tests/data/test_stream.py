from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray
import ray.train
from ray.data.block import BlockAccessor
from ray.train.torch import TorchTrainer

from seqtrack.config import Config
from seqtrack.data.batches import HostBatch, Placement, StreamError, StreamPlan, check_batch, make_block
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.mixture import Mixture
from seqtrack.data.storage import StoreError, open_root
from seqtrack.data.stream import BegunBatches, StreamSource, _from_row, _to_row, stream_batches
from seqtrack.data.triplets import TripletSource


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_shares_are_together_the_global_batch_in_order(world_size: int) -> None:
    plan = StreamPlan(batch_size=12, world_size=world_size, steps_per_block=2)
    shares = [plan.sample_numbers(5, rank) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == list(range(60, 72))


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 10), (9, 10), (4, 4)])
@pytest.mark.parametrize("steps_per_block", [1, 3, 20])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_blocks_cover_every_step_of_every_rank_once(
    start: int, stop: int, steps_per_block: int, world_size: int
) -> None:
    plan = StreamPlan(12, world_size, steps_per_block)
    covered: dict[int, list[int]] = {rank: [] for rank in range(world_size)}
    for block in range(plan.num_blocks(start, stop)):
        steps, rank = plan.block_steps(block, start, stop)
        covered[rank] += steps
    assert covered == {rank: list(range(start, stop)) for rank in range(world_size)}


AT_ONCE = 3
PLACEMENT = Placement(1.0, None, {}, AT_ONCE, store_bytes=10 * 2**30)


@pytest.mark.parametrize("steps", [1, 7, 100, 3000])
def test_tasks_have_every_block_once_in_order(steps: int) -> None:
    plan = StreamPlan(12, 2, steps_per_block=5, sample_bytes=600_000)
    tasks = plan.tasks(3, 3 + steps, PLACEMENT)
    assert [block for task in tasks for block in task] == list(range(plan.num_blocks(3, 3 + steps)))


def test_the_first_and_last_tasks_are_short_and_those_between_are_long() -> None:
    sizes = [len(task) for task in StreamPlan(12, 1, 5, sample_bytes=600_000).tasks(0, 5000, PLACEMENT)]
    assert sizes[: 5 * AT_ONCE] == [size for size in (1, 2, 4, 8, 16) for _ in range(AT_ONCE)]
    assert max(sizes) == 32
    assert sizes[-2 * AT_ONCE :] == [1] * (2 * AT_ONCE)


def test_tasks_that_run_at_once_make_no_more_than_their_part_of_the_store() -> None:
    plan = StreamPlan(12, 1, 5, sample_bytes=600_000)  # blocks of 36 MB
    for store_bytes, blocks in ((500_000_000, 4), (1_000_000, 1)):
        placement = Placement(1.0, None, {}, AT_ONCE, store_bytes)
        assert max(len(task) for task in plan.tasks(0, 5000, placement)) == blocks


def test_blocks_hold_few_samples_and_bytes(tiny_config: Config) -> None:
    assert StreamPlan.from_config(tiny_config, 1).steps_per_block == 16  # of 4 samples
    large = tiny_config.with_settings({"DATA.SEARCH.SIZE": 384, "DATA.TEMPLATE.SIZE": 384, "TRAIN.BATCH_SIZE": 16})
    assert StreamPlan.from_config(large, 1).steps_per_block == 4
    many = large.with_settings({"TRAIN.BATCH_SIZE": 1024})
    assert StreamPlan.from_config(many, 64).steps_per_block == 4  # 81 MiB; 5 steps would be more than 96
    small = many.with_settings({"DATA.SEARCH.SIZE": 128, "DATA.TEMPLATE.SIZE": 128})
    assert StreamPlan.from_config(small, 64).steps_per_block == 32  # of 16 samples


@pytest.mark.parametrize(("step", "first"), [(4, 48), (5, 48), (5, 61)])
def test_a_batch_of_another_step_or_of_other_samples_is_refused(step: int, first: int) -> None:
    plan = StreamPlan(12, 1, 1)
    nothing: Any = np.zeros(0)
    batch = HostBatch(step, np.arange(first, first + 12), nothing, nothing, nothing, nothing, nothing, ())
    with pytest.raises(StreamError, match=f"wanted step 5, samples 60 to 71, but .* step {step}, samples {first} to"):
        check_batch(batch, plan, 0, 5)


@pytest.mark.parametrize("fault", ["", "sample 7: no valid draw"])
def test_a_block_is_one_row_of_a_table_and_comes_back_whole(tiny_config: Config, fault: str) -> None:
    root = open_root(str(tiny_config.DATA.ROOT))
    triplets = TripletSource.from_config(tiny_config, Mixture.of_lasot(build_index(tiny_config.DATA, root), root))
    plan = StreamPlan.from_config(tiny_config, 1)
    told = (("one is missing", "two\nlines"), (), ("ü",))
    block = make_block(triplets, plan, range(2, 5), 0)._replace(problems=told, fault=fault)
    row = BlockAccessor.for_block(_to_row(block))
    assert row.num_rows() == 1
    back = _from_row(row.to_batch_format("numpy"))
    np.testing.assert_array_equal(back.steps, [2, 3, 4])
    assert back.arrays.keys() == block.arrays.keys()
    for name, array in block.arrays.items():
        np.testing.assert_array_equal(back.arrays[name], array)
    assert (back.problems, back.fault) == (told, fault)


def test_a_blocks_samples_are_those_of_their_numbers(tiny_config: Config) -> None:
    root = open_root(str(tiny_config.DATA.ROOT))
    triplets = TripletSource.from_config(tiny_config, Mixture.of_lasot(build_index(tiny_config.DATA, root), root))
    plan = StreamPlan.from_config(tiny_config, 2)
    for batch in make_block(triplets, plan, range(3, 6), 1).batches():
        check_batch(batch, plan, 1, batch.step)
        for position, number in enumerate(batch.numbers.tolist()):
            sample, _ = triplets.sample(number)
            np.testing.assert_array_equal(batch.template[position], sample.template)
            np.testing.assert_array_equal(batch.search[position], sample.search)
            np.testing.assert_array_equal(batch.boxes_xywh[position], sample.box_xywh)
            np.testing.assert_array_equal(batch.brightness[position], sample.brightness)


def numbered(*steps: int) -> Generator[HostBatch, None, None]:
    """Stands in for batches: their steps."""
    yield from cast(Iterator[Any], steps)


def test_the_first_batch_is_made_before_it_is_asked_for() -> None:
    made = threading.Event()

    def batches() -> Generator[HostBatch, None, None]:
        made.set()
        yield from numbered(3, 4, 5)

    stream = BegunBatches(batches(), numbered(6))
    assert made.wait(60)
    assert list(iter(lambda: next(stream, None), None)) == [3, 4, 5, 6]


def test_what_keeps_the_first_batch_from_being_made_is_raised_where_it_is_asked_for() -> None:
    def batches() -> Generator[HostBatch, None, None]:
        raise StoreError("s3://bucket: no answer")
        yield from numbered(3)

    stream = BegunBatches(batches())
    with pytest.raises(StoreError, match="no answer"):
        next(stream)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_end_of_the_loop_ends_the_stream(taken: int) -> None:
    """Whether it had been reached or not: its first batch is made in any case, and nothing more."""
    ended = threading.Event()

    def streamed() -> Generator[HostBatch, None, None]:
        try:
            yield from numbered(2, 3)
        finally:
            ended.set()

    stream = BegunBatches(numbered(0, 1), streamed())
    assert [next(stream) for _ in range(taken)] == [0, 1, 2][:taken]
    stream.close()
    assert ended.wait(60)


def train_function(settings: dict[str, Any]) -> dict[int, list[Any]]:
    """Collects the batches that each rank received."""
    context = ray.train.get_context()
    rank, plan = context.get_world_rank(), settings["plan"]
    received = []
    batches = stream_batches(settings["source"], plan, rank, settings["start"], settings["stop"], most_steps=7)
    for step, batch in enumerate(batches, settings["start"]):
        check_batch(batch, plan, rank, step)
        received.append((batch.step, batch.numbers.tolist(), int(batch.search.astype(np.int64).sum())))
    ray.get(settings["collector"].put.remote(rank, received))
    return {}


@ray.remote(num_cpus=0)
class Collector:
    def __init__(self) -> None:
        self.received: dict[int, list[Any]] = {}

    def put(self, rank: int, received: list[Any]) -> None:
        self.received[rank] = received

    def get(self) -> dict[int, list[Any]]:
        return self.received


def test_the_stream_delivers_every_step_in_order_to_every_worker(
    cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    """Its batches come from three streams, of 7, 7 and 1 steps.

    One and two workers are what whole runs are compared with (`tests/training/test_continuing.py`).
    """
    world_size = 3
    root = open_root(str(tiny_config.DATA.ROOT))
    triplets = TripletSource.from_config(tiny_config, Mixture.of_lasot(build_index(tiny_config.DATA, root), root))
    collector = Collector.remote()  # type: ignore[attr-defined]
    placement = Placement(cpus_per_task=0.5, most_cpus=1.0, labels={"seqtrack-role": "data"})  # which no node has
    settings = {
        "source": StreamSource.of(triplets, ray.put(triplets.mixture), placement),
        "plan": StreamPlan(batch_size=6, world_size=world_size, steps_per_block=2),
        "start": 3,
        "stop": 18,
        "collector": collector,
    }
    TorchTrainer(
        train_function,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=world_size, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path), name="stream"),
    ).fit()
    received = ray.get(collector.get.remote())
    for position, step in enumerate(range(3, 18)):
        numbers = [number for rank in range(world_size) for number in received[rank][position][1]]
        assert numbers == list(range(6 * step, 6 * step + 6))
        pixels = sum(received[rank][position][2] for rank in range(world_size))
        assert pixels == sum(int(triplets.sample(number)[0].search.astype(np.int64).sum()) for number in numbers)
