"""Loads a trained model for tracking, from wherever it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download

from seqtrack.config import SETTINGS_FILE, Config, load_config, parse_config
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.locations import is_uri
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import META_FILE, MODEL_FILE, WeightsError, load_weights
from seqtrack.runs.checkpoint import find_checkpoint

SCHEME = "hf://"


class TrainedModel(NamedTuple):
    """A model and the settings that it was trained with."""

    model: SeqTrack
    """In evaluation mode, on the CPU."""
    config: Config
    source: str
    """Where it is from, for people."""


def load_trained(source: str, config: str | Path | None = None) -> TrainedModel:
    """The trained model at `source`.

    `source`: a run's folder or URI (its newest checkpoint; `RUN/3`: the one after epoch 3) or a checkpoint's;
    `hf://user/repo[@revision][/checkpoints/NAME]`; or a file of weights, published (`.pth.tar`) or `.safetensors`.
    `config`: its settings (a YAML file or a recipe's name), which only a file needs. Raises InputError.
    """
    if source.startswith(SCHEME):
        return _from_folder(_download(source), source)
    if not is_uri(source) and Path(source).expanduser().is_file():
        return _from_file(Path(source).expanduser(), config)
    if not is_uri(source) and (Path(source).expanduser() / MODEL_FILE).is_file():
        return _from_folder(Path(source).expanduser(), source)
    if not is_uri(source) and source.endswith((".safetensors", ".pth", ".tar", ".pt")):
        raise WeightsError(f"{source}: no such file")
    stored = find_checkpoint(source)
    with stored.local() as folder:
        return _from_folder(folder, stored.path)


def _from_file(file: Path, config: str | Path | None) -> TrainedModel:
    if config is None and (file.parent / SETTINGS_FILE).is_file():
        config = file.parent / SETTINGS_FILE
    if config is None:
        raise WeightsError(f"{file}: holds weights only; --config NAME|FILE names the settings they were trained with")
    settings = load_config(config)
    model = build_model(settings)
    load_weights(model, file)
    return TrainedModel(model.eval(), settings, str(file))


def _from_folder(folder: Path, shown: str) -> TrainedModel:
    """From a checkpoint, or a copy of a Hub repository."""
    if not (folder / MODEL_FILE).is_file():
        raise WeightsError(f"{shown}: holds no model ({MODEL_FILE} is missing)")
    if (folder / META_FILE).is_file():
        try:
            values = json.loads((folder / META_FILE).read_text("utf-8"))["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{shown}/{META_FILE}: is damaged ({explain(error)})") from error
        config = parse_config(values, f"{shown}/{META_FILE}")
    elif (folder / SETTINGS_FILE).is_file():
        config = load_config(folder / SETTINGS_FILE)
    else:
        raise WeightsError(f"{shown}: has neither {SETTINGS_FILE} nor {META_FILE}, which say what model it is")
    model = build_model(config)
    load_weights(model, folder / MODEL_FILE)
    return TrainedModel(model.eval(), config, shown)


def _download(source: str) -> Path:
    """Downloads a model of the Hub into the client's cache and returns its folder there."""
    user, _, rest = source.removeprefix(SCHEME).strip("/").partition("/")
    repo, _, path = rest.partition("/")
    repo, _, revision = repo.partition("@")
    wanted = [f"{path}/{name}" if path else name for name in (MODEL_FILE, SETTINGS_FILE, META_FILE)]
    try:
        root = snapshot_download(
            f"{user}/{repo}",
            revision=revision or None,
            allow_patterns=wanted,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except InputError:
        raise
    except Exception as error:  # the Hub's client passes on whatever its parts raise
        raise WeightsError(f"{source}: cannot be had from the Hub ({explain(error)})") from error
    return Path(root, path)
