"""Convert SeqTrack weights between the published form, safetensors, and a run's checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from seqtrack.commands.program import say
from seqtrack.errors import InputError
from seqtrack.locations import absolute, is_uri


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="FROM", help="a run, RUN/3, a checkpoint, hf://user/repo, or a file of weights"
    )
    parser.add_argument("target", metavar="TO", help="file to write: .safetensors, else the published form")


def run(options: argparse.Namespace) -> int:
    from safetensors import SafetensorError

    from seqtrack.address import find
    from seqtrack.model.weights import read_weights, save_published, save_safetensors

    target, place = on_this_machine(options.target), find(options.source)
    with place.here() as here:
        weights = read_weights(here.path, place.shown)
    save = save_safetensors if target.suffix == ".safetensors" else save_published
    try:
        save(weights, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library raises its own kind
        raise InputError(f"{options.target}: cannot be written ({error})") from error
    say(f"{target}: {len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()):,} numbers")
    return 0


def on_this_machine(location: str) -> Path:
    """Raises InputError for a URI of an object store."""
    path = absolute(location)
    if is_uri(path):
        raise InputError(f"{location}: is no file of this machine; name one here")
    return Path(path)
