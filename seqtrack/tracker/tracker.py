"""Follows targets from frame to frame, as the published tracker does.

Boxes are (left, top, width, height) in pixels of the frame. Source: SeqTrack, section 3.4, and its published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtrack.data.crops import crop_image, crop_region
from seqtrack.data.decoding import ArrayFrame, Frame, Image
from seqtrack.errors import InputError
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tokens import SeqFormat
from seqtrack.tracker.load import load_trained
from seqtrack.tracker.settings import TrackerSettings

MARGIN = 10.0
"""A box is at least this wide and high, and reaches at least this far into the frame, in pixels."""
CONFIDENCE_SCALE = 10.0
"""The published factor of the summed token probabilities."""

BoxLike = Sequence[float] | NDArray[np.floating]
ExactBox = NDArray[np.float64]


class Tracked(NamedTuple):
    """Where the target is in a frame."""

    box_xywh: tuple[float, float, float, float]
    confidence: float
    """Sum of the four tokens' probabilities, windowed if there is a window, × 10. At most 40."""


class TrackerInputError(InputError):
    """A frame or a box that cannot be tracked from. The message says what it is and what would be right."""


class BatchTracker:
    """Follows many targets at once, each in a slot of its own.

    Slots may hold targets of one video or of different videos, and start and end at any time. An accelerator computes
    all slots in one pass of the model, whether they hold targets or not. A CPU, which one image keeps busy, computes
    them one after another: that is no slower (`benchmarks/tracker.py`), and a target's boxes are the same bits in any
    slot, any company and any number of slots.
    """

    def __init__(
        self,
        model: SeqTrack,
        settings: TrackerSettings,
        slots: int = 1,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        together: int | None = None,
    ) -> None:
        """`together`: slots that one pass of the model computes. None: 1 on a CPU, else all."""
        self.settings, self.slots, self.device = settings, slots, torch.device(device)
        self._together = together or (1 if self.device.type == "cpu" else slots)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self._mean, self._std = (
            torch.tensor(values, device=self.device)[:, None, None] for values in (settings.mean, settings.std)
        )
        window = torch.hann_window(settings.bins, periodic=False, device=self.device)
        self._window = window if settings.window else None
        body = model.encoder.body
        shape = (slots, settings.num_templates, body.num_template, body.norm.normalized_shape[0])
        self._templates = torch.zeros(shape, device=self.device)
        """(slots, T, N_template, C): the embedded patches of each slot's templates, kept from frame to frame."""
        self._states: dict[int, _State] = {}

    def start(self, slot: int, frame: Frame | Image, box_xywh: BoxLike) -> None:
        """Begins to follow a target. `frame`: (H, W, 3) RGB uint8. Raises TrackerInputError."""
        picture = as_frame(frame)
        box = check_box(box_xywh, picture)
        self._templates[slot] = self._embed_templates({slot: (picture, box)})[slot]  # all of them the first frame's
        self._states[slot] = _State(box)

    @property
    def running(self) -> frozenset[int]:
        """The slots that hold a target."""
        return frozenset(self._states)

    def stop(self, slot: int) -> None:
        """Forgets the slot's target."""
        del self._states[slot]

    @torch.inference_mode()
    def track(self, frames: Mapping[int, Frame | Image]) -> dict[int, Tracked]:
        """Finds the targets of these slots in their next frames. Raises TrackerInputError for a frame that is none."""
        pictures = {slot: as_frame(frame) for slot, frame in frames.items()}
        search = np.zeros((self.slots, self.settings.search_size, self.settings.search_size, 3), np.uint8)
        sides: dict[int, int] = {}
        for slot, picture in pictures.items():
            region = crop_region(self._states[slot].box, self.settings.search_factor)
            if region.side >= 1:
                search[slot] = crop_image(picture, region, self.settings.search_size)
                sides[slot] = region.side
        answers = self._generate(search, sorted(sides))
        boxes = tokens_to_crop(answers[:, :4], self.settings.bins, self.settings.seq_format).tolist()
        found: dict[int, Tracked] = {}
        renewed: dict[int, tuple[Frame, ExactBox]] = {}
        for slot, picture in pictures.items():
            state = self._states[slot]
            state.frames += 1
            confidence = 0.0
            if slot in sides:  # a target smaller than a pixel cannot be searched for: it stays where it is
                state.box = to_frame(boxes[slot], state.box, sides[slot], picture.width, picture.height)
                confidence = float(answers[slot, 4:].sum()) * CONFIDENCE_SCALE
            x, y, w, h = state.box.tolist()
            found[slot] = Tracked((x, y, w, h), confidence)
            due = self.settings.num_templates > 1 and state.frames % self.settings.update_interval == 0
            if due and confidence > self.settings.update_threshold:
                renewed[slot] = picture, state.box
                state.updates += 1
        for slot, newest in self._embed_templates(renewed).items():
            kept = self._templates[slot]
            self._templates[slot] = torch.cat((kept[:1], kept[2:], newest))
        return found

    def _generate(self, search: Image, wanted: Sequence[int]) -> Tensor:
        """(slots, s, s, 3) crops -> (slots, 8) float32 on the CPU: the four tokens, then their confidences."""
        images = self._normalise(search)
        firsts = sorted({slot - slot % self._together for slot in wanted})
        parts = [slice(first, first + self._together) for first in firsts]
        answers = torch.zeros((self.slots, 8), device=self.device)
        for part in parts:
            with self._autocast:
                found = self.model.generate_with(self._templates[part].flatten(1, 2), images[part], self._window)
            answers[part] = torch.cat((found.tokens.float(), found.confidence.float()), dim=1)
        return answers.cpu()  # the one wait for the device

    def updates(self, slot: int) -> int:
        """How often a template of the slot was renewed."""
        return self._states[slot].updates

    def _embed_templates(self, targets: Mapping[int, tuple[Frame, ExactBox]]) -> dict[int, Tensor]:
        """(1, N_template, C) for each slot."""
        size, factor = self.settings.template_size, self.settings.template_factor
        embedded = {}
        for slot, (picture, box) in targets.items():
            crop = crop_image(picture, crop_region(box, factor), size)
            with torch.inference_mode(), self._autocast:
                embedded[slot] = self.model.encoder.body.embed_templates(self._normalise(crop[None])[:, None]).float()
        return embedded

    def _normalise(self, crops: Image) -> Tensor:
        """(B, s, s, 3) uint8 -> (B, 3, s, s) float32 on the device."""
        images = torch.from_numpy(crops)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return (images.movedim(-1, 1).float() / 255 - self._mean) / self._std


class Tracker:
    """Follows one target: `initialize`, then `track` for each frame."""

    def __init__(
        self,
        model: SeqTrack,
        settings: TrackerSettings,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self._batch = BatchTracker(model, settings, 1, device, precision)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        config: str | Path | None = None,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        benchmark: str = "DEFAULT",
    ) -> Tracker:
        """A tracker of the trained model at `source`, as `load_trained`. Raises InputError.

        `benchmark`: the key in TEST.UPDATE_INTERVALS that says how often templates are renewed.
        """
        trained = load_trained(source, config)
        return cls(trained.model, TrackerSettings.from_config(trained.config, benchmark), device, precision)

    def initialize(self, frame: Image, box_xywh: BoxLike, bgr: bool = False) -> None:
        """Begins to follow a target. `frame`: (H, W, 3) uint8, RGB unless `bgr`. Raises TrackerInputError."""
        self._batch.start(0, _as_rgb(frame, bgr), box_xywh)

    def track(self, frame: Image, bgr: bool = False) -> Tracked:
        """Finds the target in the next frame, which may have another size. Raises TrackerInputError."""
        if not self._batch.running:
            raise TrackerInputError("track() before initialize(): there is no target yet")
        return self._batch.track({0: _as_rgb(frame, bgr)})[0]

    @property
    def updates(self) -> int:
        """How often a template was renewed."""
        return self._batch.updates(0)


class _State:
    """A target that is followed."""

    def __init__(self, box: ExactBox) -> None:
        self.box = box
        """The target's last box: (4,) float64 xywh."""
        self.frames = 0
        """Frames since the first."""
        self.updates = 0


def as_frame(frame: Frame | Image) -> Frame:
    """A decoded picture as a Frame; a Frame as it is. Raises TrackerInputError."""
    if not isinstance(frame, np.ndarray):
        return frame
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise TrackerInputError(
            f"a frame of shape {frame.shape} and type {frame.dtype}: frames are (height, width, 3) arrays of uint8"
        )
    return ArrayFrame(frame)


def check_box(box_xywh: BoxLike, frame: Frame) -> ExactBox:
    """(4,) float64. Raises TrackerInputError unless it is a box of some size that touches the frame."""
    box = np.asarray(box_xywh, np.float64)
    shown = ",".join(f"{value:g}" for value in box.reshape(-1))
    if box.shape != (4,) or not np.isfinite(box).all():
        raise TrackerInputError(f"box {shown}: a box is four finite numbers, x,y,w,h in pixels")
    x, y, w, h = box.tolist()
    if w <= 0 or h <= 0:
        raise TrackerInputError(f"box {shown}: its width and height must be above 0 (x,y,w,h in pixels)")
    if x >= frame.width or y >= frame.height or x + w <= 0 or y + h <= 0:
        raise TrackerInputError(f"box {shown}: lies outside the frame, which has {frame.width} × {frame.height} pixels")
    return box


def tokens_to_crop(tokens: Tensor, bins: int, seq_format: SeqFormat) -> Tensor:
    """(B, 4) tokens -> (B, 4) float32 centre x, centre y, width, height as fractions of the crop."""
    a, b, c, d = (tokens / (bins - 1)).unbind(-1)
    if seq_format == "corner":
        return torch.stack(((a + c) / 2, (b + d) / 2, c - a, d - b), dim=-1)
    return torch.stack((c, d, a, b) if seq_format == "whxy" else (a, b, c, d), dim=-1)


def to_frame(found_cxcywh: Sequence[float], last: ExactBox, side: int, width: int, height: int) -> ExactBox:
    """A box in the search crop (fractions of it) -> (4,) float64 xywh in the frame, clipped as published.

    `last`: the box that the crop was cut around. `side`: the crop's, in pixels of the frame.
    """
    cx, cy, w, h = (value * side for value in found_cxcywh)
    left, top = last[0] + 0.5 * last[2] - 0.5 * side, last[1] + 0.5 * last[3] - 0.5 * side
    x0, y0 = cx + left - 0.5 * w, cy + top - 0.5 * h
    x1, y1 = x0 + w, y0 + h
    x0, x1 = min(max(0.0, x0), width - MARGIN), min(max(MARGIN, x1), width)
    y0, y1 = min(max(0.0, y0), height - MARGIN), min(max(MARGIN, y1), height)
    return np.array([x0, y0, max(MARGIN, x1 - x0), max(MARGIN, y1 - y0)])


def _as_rgb(frame: Image, bgr: bool) -> Image:
    return np.ascontiguousarray(frame[..., ::-1]) if bgr else frame
