"""Writes a trained model as an ONNX file that finds a target in a frame, and checks that it does what PyTorch does.

Needs onnx, onnxruntime and onnxscript, which are the extra `seqtrack[export]`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch
from onnxscript import ir
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from safetensors.torch import save
from torch import Tensor, nn

from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import replacing
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracker.settings import TrackerSettings
from seqtrack.tracker.tracker import CONFIDENCE_SCALE, MARGIN, tokens_to_crop

INPUTS, OUTPUTS = ("template", "search", "window"), ("tokens", "confidence", "box")
TOLERANCE = 1e-4
"""How far probabilities of tokens may be from PyTorch's."""
CHECKED = (1, 3)
"""Batch sizes with which a file is checked."""
LARGEST = 2**31 - 2**24
"""Bytes of weights that fit into one ONNX file, whose format ends at 2 GiB."""


class ExportError(Exception):
    """A file that would not do what the model does. The message says in what; there is no file then."""


class FindTarget(nn.Module):
    """What the file computes: the model's box, greedily, and its place in the search crop."""

    def __init__(self, model: SeqTrack) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor, search: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3, h, w), (B, 3, H, W), (bins,) -> (B, 4) tokens, (B, 4) probabilities, (B, 4) box.

        The box is centre x, centre y, width, height as fractions of the search crop.
        """
        tokens, confidence = self.model.generate(template, search, window)
        return tokens, confidence, tokens_to_crop(tokens, self.model.bins, self.model.seq_format)


def export(model: SeqTrack, settings: TrackerSettings, recipe: str, target: Path) -> float:
    """Writes the model, in evaluation mode and on the CPU, into one file. Returns the largest deviation from PyTorch.

    The file appears under its name when it has been checked, and never otherwise. Its metadata are `describe`'s.
    Raises InputError if it cannot be written, and ExportError.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > LARGEST:
        raise InputError(f"the model has {size:,} bytes of weights, and one ONNX file holds {LARGEST:,} at most")
    try:
        with replacing(target) as partial:  # a place where nothing can be written is said before the work
            graph = to_onnx(model, settings)
            graph.metadata_props.update(describe(model, settings, recipe))
            with written(target):
                ir.save(graph, partial)
            del graph  # it is as large as the model
            return largest_deviation(partial, model, settings)
    except OSError as error:
        raise cannot_be_written(target, error) from error


@contextmanager
def written(target: Path) -> Iterator[None]:
    """Says of whatever goes wrong that the file cannot be written."""
    try:
        yield
    except Exception as error:  # those of the system, of protobuf, and of the library that writes
        raise cannot_be_written(target, error) from error


def cannot_be_written(target: Path, error: Exception) -> InputError:
    return InputError(f"{target}: cannot be written ({explain(error)})")


def to_onnx(model: SeqTrack, settings: TrackerSettings) -> ir.Model:
    """The graph of `FindTarget`, for batches of any size. Raises ExportError."""
    batch = torch.export.Dim("batch")
    shapes = {"template": {0: batch}, "search": {0: batch}, "window": {}}
    try:
        with silence():
            program = torch.onnx.export(
                FindTarget(model).eval(),
                (*random_images(settings, 2), search_window(settings)),
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=shapes,
                verbose=False,
            )
            assert program is not None
            ClearMetadataAndDocStringPass()(program.model)  # where each node's code was on this machine
    except Exception as error:  # whatever torch and onnxscript raise
        raise ExportError(f"the model cannot be turned into ONNX ({explain(error)})") from error
    program.model.graph.name, program.model.producer_name = "seqtrack", "seqtrack"
    return program.model


def describe(model: SeqTrack, settings: TrackerSettings, recipe: str) -> dict[str, str]:
    """Everything around the model that a tracker has to know: names and values as JSON.

    `weights_sha256` is that of the weights as safetensors: of `model.safetensors` in a run's checkpoint.
    """
    facts = asdict(settings) | {
        "confidence_scale": CONFIDENCE_SCALE,
        "margin": MARGIN,
        "recipe": recipe,
        "weights_sha256": hashlib.sha256(save(model.state_dict())).hexdigest(),
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def search_window(settings: TrackerSettings) -> Tensor:
    """(bins,) weights of the centre tokens: the tracker's Hann window, or ones if it uses none."""
    return torch.hann_window(settings.bins, periodic=False) if settings.window else torch.ones(settings.bins)


def random_images(settings: TrackerSettings, batch: int) -> tuple[Tensor, Tensor]:
    """(B, T, 3, h, w) templates and (B, 3, H, W) search images, the same for each batch size."""
    generator = torch.Generator().manual_seed(batch)
    sides = settings.template_size, settings.search_size
    template = torch.randn((batch, settings.num_templates, 3, sides[0], sides[0]), generator=generator)
    return template, torch.randn((batch, 3, sides[1], sides[1]), generator=generator)


def largest_deviation(file: Path, model: SeqTrack, settings: TrackerSettings) -> float:
    """How far onnxruntime's probabilities are from PyTorch's. Raises ExportError where it is too far."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for batch in CHECKED:
            inputs = (*random_images(settings, batch), search_window(settings))
            found = session.run(OUTPUTS, {name: one.numpy() for name, one in zip(INPUTS, inputs, strict=True)})
            tokens, confidence, box = map(torch.from_numpy, found)
            expected = FindTarget(model)(*inputs)
            if not torch.equal(tokens, expected[0]) or not torch.allclose(box, expected[2]):
                raise ExportError(f"onnxruntime finds other tokens than PyTorch in a batch of {batch}")
            largest = max(largest, float((confidence - expected[1]).abs().max()))
    except ExportError:
        raise
    except Exception as error:  # whatever onnxruntime raises
        raise ExportError(f"onnxruntime cannot run what was written ({explain(error)})") from error
    if not largest <= TOLERANCE:
        raise ExportError(f"onnxruntime's probabilities are {largest:.1e} from PyTorch's, more than {TOLERANCE:.0e}")
    return largest


@contextmanager
def silence() -> Iterator[None]:
    """Keeps warnings of the export from the terminal: they are about nodes that stay as they are."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
