"""Checks of benchmarks/gpu.py on speed and memory: steps, determinism, the tracker, the largest batch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_bench import COMPILED, LEFT_OUT, Bench, Row, attempt
from benchmarks.published import published_optimizer, published_step, set_up
from seqtrack.config import Config
from seqtrack.model.compile import compile_blocks
from seqtrack.model.precision import set_precision
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.tokens import SENTENCE_LENGTH
from seqtrack.tracker import BatchTracker, TrackerSettings
from seqtrack.training.slots import SlotGradients
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, backward, set_determinism, train_step

LARGER = (2, 4, 8)
"""Multiples of the published batch that are measured too."""
Precision = Literal["bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
TARGETS = (1, 4, 16, 64)
LARGEST = 2048
"""The largest batch that is tried."""
SLOTS = 8
TURNS = 3


def count_flops(config: Config) -> float:
    """Floating-point operations of forward and backward for one sample, without what checkpointing computes again."""
    search, template = config.DATA.SEARCH, config.DATA.TEMPLATE
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_model(config).train()
        logits = model(
            torch.empty(1, template.NUMBER, 3, template.SIZE, template.SIZE),
            torch.empty(1, 3, search.SIZE, search.SIZE),
            torch.empty(1, SENTENCE_LENGTH, dtype=torch.long),
        )
        logits.sum().backward()
    return float(counter.get_total_flops())


def speed(bench: Bench, recipe: str) -> Iterator[Row]:
    """Steps of a recipe: as published (`benchmarks/published.py`, activations computed twice), then ours."""
    share, config = bench.share(recipe), bench.config(recipe)
    flops = count_flops(config)
    peaks = {}
    for precision in bench.ways("bf16", "tf32", "fp32"):
        peaks[precision] = bench.peak(precision)
        yield {"way": f"product of two matrices, {precision}", "TFLOP/s": peaks[precision] / 1e12}
    state, _ = bench.start(config)
    larger = LARGER if bench.on_gpu else LARGER[:1]

    def row(way: str, times: int = 1, published: bool = False) -> Row:
        batch = share * times
        started = {"way": f"published recipe, {way}" if published else way, "batch": batch}
        return attempt(started, partial(_measure_step, bench, state, way, batch, published, recipe))

    def rated(row: Row) -> Row:
        if "ms a step" in row:
            rate = flops * row["samples/s"]
            precision = next(name for name in peaks if name in row["way"])
            row |= {"TFLOP/s": rate / 1e12, "share of peak": rate / peaks[precision]}
        return row

    for way in bench.ways("fp32", "tf32"):
        yield rated(row(way, published=True))
    for way in bench.ways("fp32", "tf32", "bf16"):
        yield rated(row(way))
    for times in larger:
        yield rated(row("bf16", times))
    if bench.compiles:
        yield from map(rated, [row(f"bf16{COMPILED}"), row(f"bf16{COMPILED}", larger[0])])
    else:
        yield {"way": f"bf16{COMPILED}", "note": LEFT_OUT}


def _measure_step(bench: Bench, state: TrainState, way: str, size: int, published: bool, recipe: str) -> Row:
    """Times steps of a state that exists, since large models take seconds to make. A compiled one stays compiled."""
    config = bench.config(recipe, way)
    set_determinism(not published)
    set_precision(config.TRAIN.PRECISION, bench.device)
    set_up(state.model, written_out=published, recomputes=published)
    if way.endswith(COMPILED) and not state.compiled:
        state.compiled = compile_blocks(state.model, bench.device)
        if not state.compiled:
            raise RuntimeError("torch has no compiler here; the log says why")
    batch, objective = bench.batch(config, size), Objective(config).to(bench.device)

    optimizer = published_optimizer(state.optimizer) if published else state.optimizer

    def step() -> object:
        return (published_step if published else train_step)(state.model, optimizer, batch, objective)

    first = bench.stretch(step, 1)
    seconds = bench.seconds_of(step)
    row: Row = {"samples/s": size / seconds, "ms a step": 1000 * seconds, "GiB": bench.peak_gib(step)}
    return row | ({"first step, s": first} if state.compiled else {})


def determinism(bench: Bench) -> Iterator[Row]:
    """Steps with deterministic kernels alone against steps with the fastest ones, in turns."""
    for precision in PRECISIONS:
        yield attempt({"precision": precision}, partial(_measure_determinism, bench, precision))


def _measure_determinism(bench: Bench, precision: str) -> Row:
    config = bench.config(bench.recipe, precision)
    state, objective = bench.start(config)
    batch = bench.batch(config, config.TRAIN.BATCH_SIZE)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(TURNS if bench.on_gpu else 1):
        for enabled, found in times.items():
            set_determinism(enabled)
            found.append(bench.seconds_of(lambda: train_step(state.model, state.optimizer, batch, objective)))
    on, off = (statistics.median(times[enabled]) for enabled in (True, False))
    return {"ms deterministic": 1000 * on, "ms not": 1000 * off, "slower by": f"{on / off - 1:+.1%}"}


def tracker(bench: Bench) -> Iterator[Row]:
    """The tracker by number of targets, on frames of 1280×720 that are decoded already."""
    config = bench.config(bench.recipe)
    torch.manual_seed(0)
    model = build_model(config)
    for precision in PRECISIONS:
        for targets in TARGETS if bench.on_gpu else TARGETS[:2]:
            started = {"precision": precision, "targets": targets}
            yield attempt(started, partial(_measure_tracker, bench, config, model, precision, targets))


def _measure_tracker(bench: Bench, config: Config, model: SeqTrack, precision: Precision, targets: int) -> Row:
    set_precision("fp32", bench.device)
    followed = BatchTracker(model, TrackerSettings.from_config(config), targets, bench.device, precision)
    frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    for slot in range(targets):
        followed.start(slot, frame, (600.0, 300.0, 80.0, 60.0))
    frames = dict.fromkeys(range(targets), frame)
    seconds = bench.seconds_of(lambda: followed.track(frames))
    return {
        "ms a frame of all": 1000 * seconds,
        "targets/s": targets / seconds,
        "GiB": bench.peak_gib(lambda: followed.track(frames)),
    }


def largest(bench: Bench) -> Iterator[Row]:
    """The largest batch that fits into the GPU's memory, found by doubling."""
    for recipe in ("b256", "l384") if bench.on_gpu else (bench.recipe,):
        state, _ = bench.start(bench.config(recipe, "bf16"))
        for checkpointing, slots in ((False, None), (True, None), (False, SLOTS)):
            row = {"recipe": recipe, "precision": "bf16", "checkpointing": checkpointing, "slots": slots}
            yield attempt(row, partial(_find_largest, bench, recipe, state, checkpointing, slots))


def _find_largest(bench: Bench, recipe: str, state: TrainState, checkpointing: bool, slots: int | None) -> Row:
    config = bench.config(recipe, "bf16", SLOTS=slots)
    objective = Objective(config).to(bench.device)
    state.model.encoder.body.use_checkpoint = checkpointing
    gradients = SlotGradients(state, slots, 0, 1) if slots else backward
    size, found = bench.share(recipe), Row()
    most = LARGEST if bench.on_gpu else size
    while size <= most:
        try:
            batch = bench.batch(config, size)

            def step(batch: Batch = batch) -> object:
                return train_step(state.model, state.optimizer, batch, objective, gradients)

            memory = bench.peak_gib(step)
            found = {"largest batch": size, "GiB": memory, "samples/s": size / bench.stretch(step, 2)}
        except torch.OutOfMemoryError:
            break
        size *= 2
    torch.cuda.empty_cache()  # outside of the handler, because the error holds on to tensors; does nothing on a CPU
    if not found:
        raise RuntimeError(f"not even the published batch of {size} fits")
    return found | {"note": "larger ones were not tried"} if size > most else found
