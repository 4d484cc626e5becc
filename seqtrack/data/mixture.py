"""The training sets of a run, and which of them each sample is from.

A sample first draws its set, by DATASETS_RATIO, then a sequence of the set, each as often as any other. The set has a
counter of its own in the sample's generator, and with one set there is no draw, so that runs on one set draw what they
would draw without mixtures.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.storage import Root


@dataclass(frozen=True)
class TrainingSet:
    """A data set that samples are drawn from."""

    name: str
    """One of DATASETS_NAME."""
    index: FrameIndex
    root: Root
    partial: bool = False
    """Whether the copy lacks sequences, which DATA.PARTIAL allows."""


@dataclass(frozen=True)
class Mixture:
    """All sets that a run trains on, in the order of DATASETS_NAME."""

    sets: tuple[TrainingSet, ...]
    ratios: tuple[float, ...]
    """Relative weight of each set."""

    @classmethod
    def of_lasot(cls, index: FrameIndex, root: Root) -> Mixture:
        """LaSOT alone."""
        return cls((TrainingSet("LASOT", index, root),), (1.0,))

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """(S,) the probability of each set."""
        return np.array(self.ratios) / np.sum(self.ratios)

    def draw_set(self, seed: int, number: int, attempt: int) -> int:
        """The set, as a number from 0, of sample `number` at its `attempt`-th try."""
        if len(self.sets) == 1:
            return 0
        generator = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 1, attempt]))
        ends = np.cumsum(self.shares)[:-1]  # the last set has the rest, however the sum is rounded
        return int(np.searchsorted(ends, generator.random(), side="right"))

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.sets]

    @property
    def only_lasot(self) -> bool:
        """Whether this is LaSOT alone, of which logs and descriptions say no more than its sequences."""
        return self.names == ["LASOT"]

    @property
    def num_sequences(self) -> int:
        return sum(len(one.index.lengths) for one in self.sets)

    @property
    def num_frames(self) -> int:
        return sum(one.index.num_frames for one in self.sets)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shares and annotations of all sets. That of one set is its index's."""
        if len(self.sets) == 1:
            return self.sets[0].index.fingerprint
        return hashlib.sha256(json.dumps(self._described_sets).encode()).hexdigest()

    @cached_property
    def description(self) -> dict[str, Any]:
        """Summary of the data for checkpoints: sequences, frames, fingerprint, and those of each set.

        LaSOT alone has its index's description.
        """
        if self.only_lasot:
            return self.sets[0].index.description
        return {
            "sequences": self.num_sequences,
            "frames": self.num_frames,
            "sets": self._described_sets,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def _described_sets(self) -> dict[str, dict[str, Any]]:
        return {
            one.name: {
                "sequences": len(one.index.lengths),
                "frames": one.index.num_frames,
                "share": float(share),
                "partial": one.partial,
                "fingerprint": one.index.fingerprint,
            }
            for one, share in zip(self.sets, self.shares, strict=True)
        }

    def params(self) -> dict[str, Any]:
        """What was found of each set, for the run's page; nothing for LaSOT alone."""
        if self.only_lasot:
            return {}
        return {
            f"found/{name}/{key}": value for name, found in self._described_sets.items() for key, value in found.items()
        }

    def lines(self) -> list[str]:
        """A line about each set for the log; none for LaSOT alone."""
        if self.only_lasot:
            return []
        return [
            f"Set {one.name} : {len(one.index.lengths):,} {'objects' if one.index.stills.any() else 'sequences'}, "
            f"{one.index.num_frames:,} frames, {share:.1%} of the samples, from {one.root.path}"
            + (", an incomplete copy (DATA.PARTIAL)" if one.partial else "")
            for one, share in zip(self.sets, self.shares, strict=True)
        ]
