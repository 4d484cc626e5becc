"""Loads a trained model for tracking, from wherever it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from seqtrack.address import find
from seqtrack.config import Config
from seqtrack.locations import parent
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.weights import read_model
from seqtrack.runs.checkpoint import StoredCheckpoint
from seqtrack.runs.folder import RunFolder


class TrainedModel(NamedTuple):
    """A model and the settings that it was trained with."""

    model: SeqTrack
    """The model in evaluation mode, on the CPU."""
    config: Config
    source: str
    """Where it is from, for people."""
    checkpoint: StoredCheckpoint | None = None
    """The run's checkpoint that it is, if it is one that the run's folder has."""
    step: int = 0
    """Training steps after which the checkpoint was written; 0 if it is none."""

    @property
    def epoch(self) -> int | None:
        """The epoch after which the checkpoint was written; None if it is none."""
        return self.step // self.config.steps_per_epoch if self.step else None


def load_trained(source: str, config: str | Path | None = None) -> TrainedModel:
    """The trained model at an address (`seqtrack.address`): a run, a checkpoint, a repository, a file of weights.

    It is verified where it has sums. `config`: its settings (a YAML file or a recipe's name), which only a file needs.
    Raises InputError.
    """
    place = find(source)
    with place.here() as here:
        model, settings = read_model(here, place.shown, config)
    if here.meta is None:
        return TrainedModel(model, settings, place.shown)
    checkpoint = None
    if not place.on_hub:
        filesystem, path = place.stored()
        folder, _, name = path.rpartition("/")
        checkpoint = StoredCheckpoint(RunFolder(filesystem, folder, parent(place.location)[0]), name)
    return TrainedModel(model, settings, place.shown, checkpoint, int(here.meta["step"]))
