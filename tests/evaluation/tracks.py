"""Made-up tracks for real annotations, by the formula of the golden numbers."""

from __future__ import annotations

import numpy as np

from seqtrack.evaluation.curves import Floats


def made_up(truth_xywh: Floats, seed: int, drift: float) -> Floats:
    """A track that drifts from the annotation and half comes back: (F, 4), rounded to hundredths of a pixel."""
    r = np.random.RandomState(seed)
    frames = len(truth_xywh)
    walk = np.cumsum(r.standard_normal((frames, 2)) * drift, axis=0)
    walk -= np.linspace(0, 1, frames)[:, None] * walk[-1] * 0.7
    scale = np.exp(0.15 * r.standard_normal((frames, 2)))
    sides = np.maximum(truth_xywh[:, 2:], 1) * scale
    centre = truth_xywh[:, :2] + truth_xywh[:, 2:] / 2 + walk
    track = np.round(np.concatenate((centre - sides / 2, sides), axis=1), 2)
    track[0] = truth_xywh[0]
    return track
