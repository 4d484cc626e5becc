"""What `benchmarks.kills` counts of faults that are no kills: cases, and how each ended."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seqtrack.config import parse_config
from seqtrack.errors import InputError
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, open_checkpoint, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import checkpoint_name
from seqtrack.training.state import TrainState, generator_states
from tests.checkpoints import DATASET
from tests.settings import make_tiny_settings

EPOCH = 6
"""Steps of an epoch of a tiny run."""
BAD = ("lost", "damaged", "silent")
"""How a case must not end.

`lost`: what was there, and was not replaced by something whole, is gone. `damaged`: what counts as whole is not.
`silent`: what was not written was reported as written, or two wrote where one may.
"""


@dataclass
class Tally:
    """How the cases of all groups ended."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, group: str, endings: Iterable[tuple[str, str]]) -> None:
        """Counts the cases of a group, prints each bad one, and a line for the group.

        `endings`: of each case, its name and its ending, which begins with one of BAD if it is bad.
        """
        began, counts = time.monotonic(), Counter[str]()
        for case, ending in endings:
            kind = ending.split(":")[0].split(",")[0]
            counts[kind] += 1
            if kind in BAD:
                print(f"{group}: {case}: {ending}", flush=True)
        self.counts += counts
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"{group}: {counts.total()} cases: {told or 'none'}, after {time.monotonic() - began:.0f} s", flush=True)

    @property
    def bad(self) -> int:
        return sum(self.counts[kind] for kind in BAD)

    def __str__(self) -> str:
        return f"{self.counts.total()} cases: " + ", ".join(f"{self.counts[kind]} {kind}" for kind in BAD)


def each(run: Callable[[Any], str], cases: Iterable[tuple[str, Any]], together: int) -> Iterator[tuple[str, str]]:
    """Runs cases, so many at a time, and yields the name and the ending of each. What raises is damaged."""

    def one(case: Any) -> str:
        try:
            return run(case)
        except Exception as error:  # whatever it is, what is there cannot be used
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"damaged: {type(error).__name__} {error} ({Path(where.filename).name}, line {where.lineno})"

    with ThreadPoolExecutor(together) as pool:
        running = {pool.submit(one, case): name for name, case in cases}
        for future in as_completed(running):
            yield running[future], future.result()


def name_at(step: int) -> str:
    """Name of a tiny run's checkpoint."""
    return checkpoint_name(*divmod(step, EPOCH))


class TinyRun:
    """Checkpoints of untrained weights, as a run of a tiny model writes them."""

    def __init__(self, folder: Path) -> None:
        """`folder`: what the settings name; nothing is written there."""
        self._config = parse_config(make_tiny_settings(folder / "lasot", folder / "runs"), "tiny")
        torch.set_num_threads(1)
        self._state = TrainState.fresh(self._config, 0, torch.device("cpu"))

    def contents(self, step: int, padding: int = 0) -> Contents:
        """`padding`: bytes that the weights have beside those of the model."""
        self._state.step = step
        ends = range(EPOCH, step + 1, EPOCH)
        self._state.history = [{"epoch": end // EPOCH, "step": end, "loss": 1.0, "iou": 0.5} for end in ends]
        model, training = self._state.snapshot()
        if padding:
            model = {**model, "padding": torch.full((padding // 4,), float(step))}
        meta = self._state.meta(self._config, dataset=DATASET, mlflow_run_id=None)
        return Contents(model, training, [generator_states()], meta)


def opens(run: RunFolder, name: str, step: int | None = None) -> str:
    """Why a checkpoint cannot be used, or is of another step; empty if all is well."""
    try:
        found = open_checkpoint(StoredCheckpoint(run, name)).meta["step"]
    except InputError as error:
        return str(error)
    return "" if step in (None, found) else f"{name}: is of step {found}, not {step}"


def damage(run: RunFolder) -> str:
    """What is wrong with the checkpoints that count as finished; empty if nothing is."""
    return "; ".join(filter(None, (opens(run, name) for name in whole_checkpoints(run))))
