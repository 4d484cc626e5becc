"""Write a trained model as ONNX, for trackers without PyTorch.

The file finds a target in a frame; its metadata say how to cut and normalise the crops. It is compared with PyTorch
by onnxruntime before it appears. Needs pip install 'seqtrack[export]'. Does not start Ray.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from seqtrack.commands.convert_weights import on_this_machine
from seqtrack.commands.program import ProgramError, add_weights, check_extra, say
from seqtrack.errors import InputError
from seqtrack.failures import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    parser.add_argument("--output", metavar="FILE.onnx", required=True, help="file to write")


def run(options: argparse.Namespace) -> int:
    target = file_to_write(options.output)
    check_extra("export", "onnx", "onnxruntime", "onnxscript")
    from seqtrack.tracker.export import CHECKED, ExportError, export
    from seqtrack.tracker.load import load_trained
    from seqtrack.tracker.settings import TrackerSettings

    trained = load_trained(options.weights, options.config)
    recipe = trained.config.RUN.NAME or Path(options.config or trained.source).stem
    say(f"Writing {trained.source} as ONNX and comparing it with PyTorch …")
    try:
        deviation = export(trained.model, TrackerSettings.from_config(trained.config), recipe, target)
    except ExportError as error:
        raise ProgramError(f"{options.output}: was not written: {error}") from error
    batches = " and ".join(map(str, CHECKED))
    say(f"Wrote {target}, {target.stat().st_size / 1e6:,.1f} MB")
    say(f"In batches of {batches}: the same tokens as PyTorch, probabilities at most {deviation:.1e} from its")
    return 0


def file_to_write(output: str) -> Path:
    """Raises InputError for what cannot be the name of a new ONNX file."""
    target = on_this_machine(output)
    if target.suffix != ".onnx":
        raise InputError(f"--output {output}: the file's name ends in .onnx")
    try:
        if target.is_dir():
            raise InputError(f"--output {output}: is a folder; name a file in it")
        if not target.parent.is_dir():
            raise InputError(f"--output {output}: there is no folder {target.parent}")
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--output {output}: cannot be written ({explain(error)})") from error
    return target
