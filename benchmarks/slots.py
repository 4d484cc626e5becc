"""Measures what TRAIN.SLOTS costs: steps with several numbers of slots, and its sum against DistributedDataParallel's.

    python -m benchmarks.slots [--config configs/demo.yaml] [--batch 32] [--elements 90000000]

All ways take turns, so that other load on the machine affects all of them. Only the ratios matter.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.checkpoint import made_up_batch
from seqtrack.config import load_config
from seqtrack.training.slots import SlotGradients, tree_sum
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, backward, set_determinism, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what slots cost.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--elements", type=int, default=90_000_000, help="of a gradient; B256 has about as many")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    measure_steps(options)
    for workers in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure_reduction, (workers, folder, options), nprocs=workers)


def measure_steps(options: argparse.Namespace) -> None:
    """Prints the time of one worker's step for each number of slots."""
    torch.set_num_threads(1)
    set_determinism(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(options.config, [f"TRAIN.BATCH_SIZE={options.batch}"])
    state = TrainState.fresh(config, 0, device)
    objective = Objective(config).to(device)
    state.model.train()
    batch = Batch(*(part.to(device) for part in made_up_batch(config, options.batch)))
    ways = {"no slots": backward} | {f"SLOTS={slots}": SlotGradients(state, slots, 0, 1) for slots in (1, 2, 4, 8)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.steps):
        for name, way in ways.items():
            began = time.perf_counter()
            train_step(state.model, state.optimizer, batch, objective, way).tolist()  # waits for the device
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    print(f"One worker ({torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU, 1 thread'}):")
    for name, seconds in medians.items():
        print(f"  {name:<9} {1000 * seconds:8.1f} ms a step of {options.batch}, {seconds / medians['no slots']:.2f} ×")


def measure_reduction(rank: int, workers: int, folder: str, options: argparse.Namespace) -> None:
    """Prints how long workers take to sum gradients that are already computed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", workers), rank=rank, world_size=workers)
    # Divided as into layers, because DDP fills its buckets layer by layer.
    parameters = nn.ParameterList(torch.zeros(options.elements // 100) for _ in range(100))
    ddp = DistributedDataParallel(_Sum(parameters))
    gradient = torch.full((options.elements,), float(rank))
    times: dict[str, list[float]] = {"tree": [], "DDP": []}
    for _ in range(options.rounds):
        for name, values in times.items():
            dist.barrier()
            began = time.perf_counter()
            if name == "tree":
                tree_sum([gradient.clone()], rank, workers)
            else:
                ddp.zero_grad()
                ddp().backward()
            values.append(time.perf_counter() - began)
    if rank == 0:
        tree, other = (statistics.median(values[1:]) for values in times.values())
        print(
            f"{workers} workers, {options.elements / 1e6:.0f} M elements: tree {tree:.2f} s, DDP {other:.2f} s, "
            f"{tree / other:.2f} ×"
        )
    dist.destroy_process_group()


class _Sum(nn.Module):
    """A module whose backward takes almost no time, so that the reduction of its gradients is all that is measured."""

    def __init__(self, parameters: nn.ParameterList) -> None:
        super().__init__()
        self.parts = parameters

    def forward(self) -> Tensor:
        return torch.stack([part.sum() for part in self.parts]).sum()


if __name__ == "__main__":
    main()
