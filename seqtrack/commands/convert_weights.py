"""Convert SeqTrack weights between the published form, safetensors, and a run's checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from seqtrack.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", type=Path, help="published checkpoint, .safetensors, or run's folder")
    parser.add_argument("target", metavar="TO", type=Path, help="file to write: .safetensors, else the published form")


def run(options: argparse.Namespace) -> int:
    from safetensors import SafetensorError

    from seqtrack.model.weights import read_weights, save_published, save_safetensors

    weights = read_weights(options.source)
    save = save_safetensors if options.target.suffix == ".safetensors" else save_published
    try:
        save(weights, options.target)
    except (OSError, RuntimeError, SafetensorError) as error:  # each library raises its own kind
        raise InputError(f"{options.target}: cannot be written ({error})") from error
    print(f"{options.target}: {len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()):,} numbers")
    return 0
