"""Loads a trained model for tracking, from wherever it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from seqtrack.config import SETTINGS_FILE, Config, load_config
from seqtrack.locations import as_path, is_uri
from seqtrack.model.file_kinds import MODEL_FILE, SUFFIXES
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import WeightsError, fetch_pretrained, load_weights, read_model
from seqtrack.runs.checkpoint import NAME, StoredCheckpoint, find_checkpoint

SCHEME = "hf://"


class TrainedModel(NamedTuple):
    """A model and the settings that it was trained with."""

    model: SeqTrack
    """The model in evaluation mode, on the CPU."""
    config: Config
    source: str
    """Where it is from, for people."""
    checkpoint: StoredCheckpoint | None = None
    """The run's checkpoint that it is, if it is one."""

    @property
    def epoch(self) -> int | None:
        """The epoch after which the checkpoint was written; None if it is none."""
        return self.step // self.config.steps_per_epoch if self.step else None

    @property
    def step(self) -> int:
        """Training steps after which the checkpoint was written; 0 if it is none."""
        found = NAME.fullmatch(self.checkpoint.name) if self.checkpoint is not None else None
        return int(found[1]) * self.config.steps_per_epoch + int(found[2] or 0) if found else 0


def load_trained(source: str, config: str | Path | None = None) -> TrainedModel:
    """The trained model at `source`.

    `source`: a run's folder or URI (its newest checkpoint; `RUN/3`: the one after epoch 3) or a checkpoint's;
    `hf://user/repo[@revision][/checkpoints/NAME]`; or a file of weights, published (`.pth.tar`) or `.safetensors`.
    `config`: its settings (a YAML file or a recipe's name), which only a file needs. Raises InputError.
    """
    if source.startswith(SCHEME):
        user, _, rest = source.removeprefix(SCHEME).strip("/").partition("/")
        repo, _, path = rest.partition("/")
        repo, _, revision = repo.partition("@")
        return TrainedModel(*read_model(fetch_pretrained(f"{user}/{repo}", revision or None, path), source), source)
    if not is_uri(source):
        place = Path(as_path(source)).expanduser()
        if place.is_file():
            return _from_file(place, config)
        if (place / MODEL_FILE).is_file() and not NAME.fullmatch(place.name):
            return TrainedModel(*read_model(place, source), source)
        if place.suffix in SUFFIXES:
            raise WeightsError(f"{source}: no such file")
    stored = find_checkpoint(source)
    with stored.local() as folder:
        return TrainedModel(*read_model(folder, stored.path), stored.path, stored)


def _from_file(file: Path, config: str | Path | None) -> TrainedModel:
    if config is None and (file.parent / SETTINGS_FILE).is_file():
        config = file.parent / SETTINGS_FILE
    if config is None:
        raise WeightsError(f"{file}: holds weights only; --config NAME|FILE names the settings they were trained with")
    settings = load_config(config)
    model = build_model(settings)
    load_weights(model, file)
    return TrainedModel(model.eval(), settings, str(file))
