"""Writes a made-up data set in LaSOT's layout: coins on tables, kites in the sky, and all that makes tracking hard.

Targets are textured and coloured as their classes are (gold discs; red-and-yellow quadrilaterals) and move, turn, tilt
and change size over moving, muted backgrounds. A cloth or cloud passes over them (partly, then fully) and they leave
the view, with LaSOT's flags saying so. Same settings, same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.config import SyntheticConfig
from seqtrack.locations import lasting

FORMAT = 1
"""Increase this when the pictures change. It is part of the folder's name, so old data are not mistaken for new."""

Image = NDArray[Any]
CLASSES = ("coin", "kite")
_PATCH = 128  # side of a target's texture in pixels


class Scene(NamedTuple):
    """What stays the same over the frames of a sequence."""

    background: Image
    """(2H, 2W, 3) RGB 0–255; frames show a moving part of it."""
    target: Image
    """(128, 128, 4) RGB and alpha 0–1."""
    occluder: Image
    """(128, 128, 4) RGB and alpha 0–1."""


class DrawnFrame(NamedTuple):
    """A finished frame of a sequence."""

    jpeg: bytes
    box: tuple[int, int, int, int] | None
    """x, y, w, h of the target's pixels, from 0; None if it is out of view."""
    seen: float
    """Share of the target within the picture that nothing hides, 0 to 1."""


def ensure_synthetic(settings: SyntheticConfig) -> Path:
    """Folder of the data set with these settings. Writes it first if it does not exist."""
    key = hashlib.sha256(f"{FORMAT} {settings.model_dump_json(exclude={'PATH'})}".encode()).hexdigest()[:10]
    folder = Path(settings.PATH).absolute() / f"synthetic-{key}"
    if not folder.exists():
        write_synthetic(folder, settings)
    return folder


def held_out(settings: SyntheticConfig, sequences: int) -> SyntheticConfig:
    """Settings of sequences of the same kind that are in no training with `settings`."""
    return settings.model_copy(
        update={"SEED": settings.SEED + 1, "SEQUENCES": sequences, "PATH": lasting(settings.PATH)}
    )


def write_synthetic(folder: Path, settings: SyntheticConfig) -> None:
    """Writes the data set as `folder`, which appears only when it is complete. Raises OSError."""
    with unfinished_folder(folder) as unfinished:
        for number in range(settings.SEQUENCES):
            name = CLASSES[number % 2]
            sequence = unfinished / name / f"{name}-{number // 2 + 1}"
            _write_sequence(sequence, name, np.random.default_rng([settings.SEED, number]), settings)


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which becomes `folder` at the end, and disappears if something is raised."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")  # several processes may write the same folder
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def draw_frames(name: str, rng: np.random.Generator, settings: SyntheticConfig) -> Iterator[DrawnFrame]:
    """The frames of a sequence of the class `name`. Raises OSError if OpenCV cannot encode one."""
    scene = _make_scene(name, rng, settings.HEIGHT, settings.WIDTH)
    path = _Path(rng, name, settings)
    for frame in range(settings.FRAMES):
        pixels, in_view, seen = _render(scene, path, frame, settings.HEIGHT, settings.WIDTH)
        bgr = cv2.cvtColor(np.clip(pixels, 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
        done, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if not done:
            raise OSError(f"OpenCV could not encode frame {frame + 1} of a {name}")
        share = float(seen.sum() / in_view.sum()) if in_view.any() else 0.0
        x, y, w, h = cv2.boundingRect(in_view.astype(np.uint8))
        yield DrawnFrame(jpeg.tobytes(), (x, y, w, h) if in_view.any() else None, share)


def _write_sequence(folder: Path, name: str, rng: np.random.Generator, settings: SyntheticConfig) -> None:
    (folder / "img").mkdir(parents=True)
    boxes, occluded, absent = [], [], []
    for number, frame in enumerate(draw_frames(name, rng, settings), start=1):
        (folder / "img" / f"{number:08d}.jpg").write_bytes(frame.jpeg)
        x, y, w, h = frame.box or (-1, -1, 0, 0)
        boxes.append(f"{x + 1},{y + 1},{w},{h}")
        absent.append(int(frame.box is None))
        occluded.append(int(frame.box is not None and frame.seen == 0))
    (folder / "groundtruth.txt").write_text("\n".join(boxes) + "\n", "utf-8")
    (folder / "full_occlusion.txt").write_text(",".join(map(str, occluded)) + "\n", "utf-8")
    (folder / "out_of_view.txt").write_text(",".join(map(str, absent)) + "\n", "utf-8")
    text = "a golden coin moving on a table" if name == "coin" else "a red and yellow kite flying in the sky"
    (folder / "nlp.txt").write_text(text + "\n", "utf-8")


class _Path:
    """Where target, occluder and camera are in each frame: sums of slow sines with random phases."""

    def __init__(self, rng: np.random.Generator, name: str, settings: SyntheticConfig) -> None:
        self.height, self.width, self.frames = settings.HEIGHT, settings.WIDTH, settings.FRAMES
        self.phases = rng.uniform(0, 2 * np.pi, 8)
        self.periods = rng.uniform(35, 90, 8)
        self.size = min(self.height, self.width) * rng.uniform(0.14, 0.24)
        self.spin = rng.uniform(1, 5) * rng.choice((-1, 1))  # degrees a frame
        self.swing = name == "kite"
        self.hidden_at = rng.uniform(0.25, 0.45) * self.frames
        self.away_at = rng.uniform(0.65, 0.85) * self.frames
        self.side = rng.choice((-1, 1))

    def _wave(self, which: int, frame: int) -> float:
        return float(np.sin(2 * np.pi * frame / self.periods[which] + self.phases[which]))

    def target(self, frame: int) -> tuple[float, float, float, float, float]:
        """Centre x, y, side in pixels, aspect, angle in degrees."""
        x = self.width * (0.5 + 0.2 * self._wave(0, frame) + 0.08 * self._wave(1, 2 * frame))
        y = self.height * (0.5 + 0.2 * self._wave(2, frame) + 0.08 * self._wave(3, 2 * frame))
        # A swoop out of the view and back, over a sixth of the sequence.
        swoop = np.clip(1 - abs(frame - self.away_at) / (self.frames / 12), 0, 1)
        x += self.side * self.width * 0.95 * float(np.sin(np.pi / 2 * swoop))
        side = self.size * float(np.exp(0.4 * self._wave(4, frame)))
        aspect = 1 - 0.25 * (1 + self._wave(5, frame)) / 2
        angle = 35 * self._wave(6, frame) if self.swing else self.spin * frame
        return x, y, side, aspect, angle

    def occluder(self, frame: int) -> tuple[float, float, float, float, float] | None:
        """What `target` gives, for the occluder, which passes during a sixth of the sequence; None at other times."""
        progress = (frame - self.hidden_at) / (self.frames / 12)
        if abs(progress) > 1:
            return None
        x, y, side, _, _ = self.target(frame)
        return x + progress * 2.2 * side, y, 1.9 * side, 1.0, 0.0

    def camera(self, frame: int) -> tuple[int, int]:
        """Left and top of the frame in the background."""
        x = self.width * (0.5 + 0.4 * self._wave(7, frame))
        y = self.height * (0.5 + 0.3 * self._wave(3, frame))
        return int(x), int(y)


def _render(
    scene: Scene, path: _Path, frame: int, height: int, width: int
) -> tuple[Image, NDArray[np.bool_], NDArray[np.bool_]]:
    """(H, W, 3) picture, (H, W) where the target is, (H, W) where it is not hidden."""
    left, top = path.camera(frame)
    picture = scene.background[top : top + height, left : left + width].copy()
    in_view = _paste(picture, scene.target, path.target(frame)) > 0.5
    seen = in_view
    placement = path.occluder(frame)
    if placement is not None:
        seen = in_view & (_paste(picture, scene.occluder, placement) < 0.5)
    return picture, in_view, seen


def _paste(picture: Image, patch: Image, placement: tuple[float, float, float, float, float]) -> Image:
    """Draws the patch into the picture in place; returns its (H, W) alpha there."""
    x, y, side, aspect, angle = placement
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    linear = np.array([[cos * aspect, -sin], [sin * aspect, cos]]) * side / _PATCH
    shift = np.array([x, y]) - linear @ np.array([_PATCH / 2, _PATCH / 2])
    height, width = picture.shape[:2]
    drawn = cv2.warpAffine(patch, np.column_stack((linear, shift)), (width, height), flags=cv2.INTER_LINEAR)
    alpha = drawn[..., 3:]
    picture *= 1 - alpha
    picture += drawn[..., :3] * alpha
    return alpha[..., 0]


def _make_scene(name: str, rng: np.random.Generator, height: int, width: int) -> Scene:
    if name == "coin":
        palette = rng.uniform((95, 85, 80), (135, 120, 115), (2, 3))  # greyish browns
        target = _coin(rng)
    else:
        palette = rng.uniform((120, 140, 155), (165, 185, 200), (2, 3))  # pale, overcast blues
        target = _kite(rng)
    background = _texture(rng, 2 * height, 2 * width, palette, grain=6)
    occluder = np.ones((_PATCH, _PATCH, 4), np.float32)
    occluder[..., :3] = _texture(rng, _PATCH, _PATCH, palette * 0.75, grain=12)
    occluder[..., 3] = _disc(0.49)
    return Scene(background, target, occluder)


def _texture(rng: np.random.Generator, height: int, width: int, palette: NDArray[np.float64], grain: float) -> Image:
    """Blotches between two colours at several scales, and grain."""
    mix = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.5), (12, 0.3), (40, 0.2)):
        noise = rng.random((cells, cells), dtype=np.float32)
        mix += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    blend = palette[0] + (palette[1] - palette[0]) * mix[..., None]
    return (blend + 90 * (mix[..., None] - 0.5) + rng.normal(0, grain, (height, width, 1))).astype(np.float32)


def _disc(radius: float) -> NDArray[np.float32]:
    """(128, 128) mask: 1 inside a centred circle. `radius` is a fraction of the side."""
    y, x = np.mgrid[0:_PATCH, 0:_PATCH].astype(np.float32) + 0.5
    distance = np.hypot(x - _PATCH / 2, y - _PATCH / 2)
    return np.clip(radius * _PATCH - distance, 0, 1)


def _coin(rng: np.random.Generator) -> Image:
    gold = np.array((rng.uniform(215, 250), rng.uniform(160, 190), rng.uniform(20, 60)), np.float32)
    face = np.ones((_PATCH, _PATCH, 4), np.float32)
    y, x = np.mgrid[0:_PATCH, 0:_PATCH].astype(np.float32) / _PATCH - 0.5
    shine = 1 + 0.25 * np.cos(3 * np.arctan2(y, x) + rng.uniform(0, 6)) * np.hypot(x, y) * 2
    face[..., :3] = gold * shine[..., None]
    relief = np.zeros((_PATCH, _PATCH), np.uint8)
    cv2.circle(relief, (_PATCH // 2, _PATCH // 2), int(0.40 * _PATCH), 255, 4, cv2.LINE_AA)
    cv2.putText(relief, str(rng.integers(1, 10)), (42, 86), cv2.FONT_HERSHEY_DUPLEX, 2.2, 255, 8, cv2.LINE_AA)
    face[..., :3] *= 1 - 0.45 / 255 * relief[..., None].astype(np.float32)
    face[..., 3] = _disc(0.49)
    return face


def _kite(rng: np.random.Generator) -> Image:
    red = np.array((rng.uniform(200, 240), rng.uniform(20, 50), rng.uniform(20, 50)), np.float32)
    yellow = np.array((rng.uniform(235, 255), rng.uniform(200, 230), rng.uniform(20, 60)), np.float32)
    waist = rng.uniform(0.32, 0.45)
    tip, right, tail, left = np.array([(0.5, 0.02), (0.94, waist), (0.5, 0.98), (0.06, waist)]) * _PATCH
    middle = np.array((0.5, waist)) * _PATCH
    kite = np.zeros((_PATCH, _PATCH, 4), np.float32)
    for corner1, corner2, colour in (
        (tip, right, red),
        (right, tail, yellow),
        (tail, left, red),
        (left, tip, yellow),
    ):
        panel = np.array([middle, corner1, corner2]).round().astype(np.int32)
        cv2.fillConvexPoly(kite, panel, (*colour.tolist(), 1.0))
    for corner in (tip, right, tail, left):
        ends = [tuple(point.round().astype(int).tolist()) for point in (middle, corner)]
        cv2.line(kite, ends[0], ends[1], (60.0, 20.0, 20.0, 1.0), 3)
    return kite
