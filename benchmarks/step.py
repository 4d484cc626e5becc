"""Measures a training step against the published one and against the rate at which this machine multiplies matrices.

    python -m benchmarks.step [--recipe b256] [--batch 2] [--rounds 3] [--compile] [--profile]

The ways take turns in one process, with all cores of a CPU, and so do the products of matrices; compiled ways come
after the others. The published step is our model, set up and trained as `benchmarks/published.py` says. The operations
of a step are counted by torch for one forward and backward pass; those that are computed a second time (activation
checkpointing) are not counted. `--profile` prints what our step spends its time on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch.profiler import profile

from benchmarks.gpu_bench import COMPILED, SHARES, Bench
from benchmarks.gpu_speed import count_flops
from benchmarks.published import published_optimizer, published_step, set_up
from seqtrack.model.compile import compile_blocks
from seqtrack.model.precision import cpu_has_bf16, set_precision
from seqtrack.training.state import TrainState
from seqtrack.training.step import Objective, set_determinism, train_step

SIDE = 4096
"""Of the matrices that are multiplied."""
PUBLISHED, RECOMPUTED = "published, fp32", "published, fp32, activations computed twice"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=SHARES, default="b256")
    parser.add_argument("--batch", type=int, default=2, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way, after one that warms up")
    parser.add_argument("--compile", action="store_true", help="compiled ways too")
    parser.add_argument("--profile", action="store_true", help="print what our step spends its time on")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, compiles=options.compile)
    has_bf16 = bench.on_gpu or cpu_has_bf16()
    precisions = ["fp32", "bf16"] if has_bf16 else ["fp32"]
    ways = [PUBLISHED, RECOMPUTED, *precisions, *(precision + COMPILED for precision in precisions if options.compile)]
    state = TrainState.fresh(bench.config(options.recipe), 0, device)
    state.model.train()
    steps = {way: make_step(bench, state, options.recipe, way, options.batch) for way in ways}
    # Compiled blocks stay compiled, so these ways come after all others.
    turns = [[way for way in ways if way.endswith(COMPILED) == compiled] for compiled in (False, True)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    products: dict[str, list[float]] = {precision: [] for precision in precisions}
    for group in turns:
        if group and group[0].endswith(COMPILED):
            if not compile_blocks(state.model, device):
                raise RuntimeError("torch has no compiler here")
        elif options.profile:
            print_profile(steps["fp32"])
        for number in range(options.rounds + 1):
            for way in group:
                taken = bench.stretch(steps[way], 1)
                if number:
                    seconds[way].append(taken)
            for precision in precisions if number else []:
                products[precision].append(multiply(bench, precision))
    flops = options.batch * count_flops(bench.config(options.recipe))
    name = torch.cuda.get_device_name() if bench.on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{options.recipe}, {options.batch} samples, {flops / 1e12:.2f} TFLOP a step, {name}, torch {torch.__version__}"
    )
    for precision, rates in products.items():
        print(f"product of two {SIDE}² matrices, {precision}: {statistics.median(rates) / 1e9:,.0f} GFLOP/s")
    print("\n| step | seconds | of the published rate | GFLOP/s | of the product's |\n|---|---|---|---|---|")
    published = statistics.median(seconds[PUBLISHED])
    for way, times in seconds.items():
        taken = statistics.median(times)
        rate, peak = flops / taken, statistics.median(products["bf16" if "bf16" in way else "fp32"])
        print(f"| {way} | {taken:.2f} | {published / taken:.2f} × | {rate / 1e9:,.0f} | {rate / peak:.0%} |")


def make_step(bench: Bench, state: TrainState, recipe: str, way: str, batch_size: int) -> Callable[[], object]:
    """What takes one step of a way. It sets up everything in which ways differ, since they share the model."""
    published = way in (PUBLISHED, RECOMPUTED)
    config = bench.config(recipe, "fp32" if published else way)
    objective, batch = Objective(config).to(bench.device), bench.batch(config, batch_size)
    optimizer = published_optimizer(state.optimizer) if published else state.optimizer

    def step() -> object:
        set_determinism(not published)
        set_precision(config.TRAIN.PRECISION, bench.device)
        set_up(state.model, written_out=published, recomputes=way == RECOMPUTED)
        return (published_step if published else train_step)(state.model, optimizer, batch, objective)

    return step


def print_profile(step: Callable[[], object]) -> None:
    """Prints which operations a step spends its time on."""
    step()
    with profile() as profiled:
        step()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


def multiply(bench: Bench, precision: str) -> float:
    """FLOP/s of a product of two large square matrices of random numbers."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE, device=bench.device, dtype=kind) for _ in range(2))
    a @ b  # the first one makes what the others find
    return 2 * SIDE**3 / bench.stretch(lambda: a @ b, 2)


if __name__ == "__main__":
    main()
