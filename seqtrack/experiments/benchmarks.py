"""The benchmarks that settings and commands name, opened."""

from __future__ import annotations

import numpy as np

from seqtrack.config import Config, ConfigError, SyntheticConfig
from seqtrack.data.datasets.synthetic import ensure_synthetic, held_out
from seqtrack.evaluation.benchmarks import (
    BENCHMARKS,
    Benchmark,
    BenchmarkData,
    folder_of_sequences,
    open_benchmark,
)

SYNTHETIC, HELD_OUT = "synthetic", 8
"""A benchmark of drawn sequences that the demo has not seen, and how many."""


def benchmark_of(name: str) -> Benchmark:
    """A known benchmark; for another name, a folder of sequences in LaSOT's layout."""
    return BENCHMARKS.get(name) or folder_of_sequences(name)


def drawn(settings: SyntheticConfig) -> str:
    """Folder of the drawn sequences that are in no training with these settings."""
    return str(ensure_synthetic(held_out(settings, HELD_OUT)))


def open_for_run(config: Config) -> tuple[BenchmarkData, ...]:
    """What EVAL.BENCHMARKS names, each with the sequences of EVAL.SEQUENCES. Raises InputError."""
    opened = []
    for name, place in config.EVAL.BENCHMARKS.items():
        place = drawn(config.DATA.SYNTHETIC) if place == SYNTHETIC else place
        data = open_benchmark(benchmark_of(name), place)
        if any(one.withheld for one in data.sequences):
            raise ConfigError(
                f"EVAL.BENCHMARKS {name}: its annotations are not public, so its server alone can score; "
                "`seqtrack evaluate` writes the zip for it"
            )
        opened.append(part_of(data, config.EVAL.SEQUENCES))
    return tuple(opened)


def part_of(data: BenchmarkData, sequences: int | tuple[str, ...] | None) -> BenchmarkData:
    """So many sequences, spread evenly over the list and always the same, or those of these names.

    Raises InputError for a name that is not there.
    """
    if sequences is None:
        return data
    if isinstance(sequences, int):
        rows = np.linspace(0, len(data.sequences) - 1, min(sequences, len(data.sequences))).round().astype(int)
        sequences = tuple(data.sequences[row].name for row in np.unique(rows))
    return data.only(sequences)
