"""A few samples as pictures: what the model sees, where the target is, and where models put it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seqtrack import boxes
from seqtrack.config import Config
from seqtrack.data.crops import Sample
from seqtrack.data.open import open_data
from seqtrack.data.triplets import TripletSource
from seqtrack.model.images import prepare_images
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import Weights
from seqtrack.tokens import tokens_to_boxes

FIRST_NUMBER = 2**62
"""Number of the first sample. Training counts from 0 and never gets this far, so it has not drawn these samples."""
SHOWN = 6


def snapshot_figure(config: Config, models: Sequence[tuple[str, Weights]]) -> Figure:
    """One row per sample: its templates, then its search crop with the true box and the box that each model predicts.

    `models`: title and weights. The same seed gives the same samples. Raises DataError if the data are gone.
    """
    source = TripletSource.from_config(config, open_data(config).mixture)
    samples = [source.sample(FIRST_NUMBER + number)[0] for number in range(SHOWN)]
    predictions = [predict(config, weights, samples) for _, weights in models]
    true_xyxy = boxes.xywh_to_xyxy(torch.from_numpy(np.stack([sample.box_xywh for sample in samples])))
    columns = config.DATA.TEMPLATE.NUMBER + len(models)
    figure = Figure((1.7 * columns, 1.75 * SHOWN), layout="constrained")
    grid = np.atleast_2d(figure.subplots(SHOWN, columns, squeeze=False))
    for row, (sample, axes) in enumerate(zip(samples, grid, strict=True)):
        for number, template in enumerate(sample.template):
            _show(axes[number], template, f"Template {number + 1}" if row == 0 else None)
        for column, (title, _) in enumerate(models):
            search = axes[config.DATA.TEMPLATE.NUMBER + column]
            _show(search, sample.search, title if row == 0 else None)
            _box(search, true_xyxy[row], color="white", linewidth=2.6)
            _box(search, true_xyxy[row], color="#009E73", linewidth=1.4)
            _box(search, predictions[column][row], color="black", linewidth=2.6)
            _box(search, predictions[column][row], color="#E69F00", linewidth=1.4, linestyle="--")
    return figure


@torch.no_grad()
def predict(config: Config, weights: Weights, samples: Sequence[Sample]) -> torch.Tensor:
    """(n, 4) corners, normalised to the search crop, of the boxes that a model with these weights predicts."""
    model = build_model(config)
    model.load_state_dict(weights)
    model.eval()
    mean, std = torch.tensor(config.DATA.MEAN), torch.tensor(config.DATA.STD)
    template = torch.from_numpy(np.stack([sample.template for sample in samples]))
    search = torch.from_numpy(np.stack([sample.search for sample in samples]))
    plain = torch.ones(template.shape[:2])
    written = model.generate(
        prepare_images(template, plain, mean, std), prepare_images(search, plain[:, 0], mean, std)
    ).tokens
    return tokens_to_boxes(written, config.MODEL.BINS, config.DATA.SEQ_FORMAT)


def _show(axes: Axes, image: np.ndarray, title: str | None) -> None:
    axes.imshow(image)
    axes.set_axis_off()
    if title is not None:
        axes.set_title(title, fontsize=9)


def _box(axes: Axes, xyxy: torch.Tensor, **style: object) -> None:
    size = axes.images[0].get_array().shape[0] - 1  # type: ignore[union-attr]
    x0, y0, x1, y1 = (xyxy * size).tolist()
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **style))  # type: ignore[arg-type]
