"""Where frames come from: a video, a folder of pictures, a sequence of a benchmark, a camera or a stream."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data.datasets.annotations import FaultyText, parse_boxes
from seqtrack.data.datasets.frames import PICTURES
from seqtrack.data.decoding import MAX_PIXELS, BrokenFrame, FrameDecoder, Image
from seqtrack.data.jpeg import START_OF_JPEG, read_header
from seqtrack.data.storage import THIS_MACHINE, patiently, read_file
from seqtrack.errors import InputError, did_you_mean
from seqtrack.failures import explain

PICTURES_RATE = Fraction(30)
"""Frames a second at which pictures are shown that do not say when they were taken."""


class SourceError(InputError):
    """A source that cannot be tracked in. The message names it and says why."""


class CutOff(Exception):
    """A source ended before its end. The message says where."""


class Shot(NamedTuple):
    """A frame of a source."""

    number: int
    """Counted from 0 over the source's frames."""
    seconds: float
    """When it is shown, since the first frame."""
    image: Image
    """(H, W, 3) RGB, the way round that it is shown."""
    turned: str = ""
    """Why the picture is shown another way round than it is stored; empty where it is not."""


class Source(Protocol):
    """Frames in order."""

    @property
    def name(self) -> str:
        """What outputs are called after it."""

    @property
    def rate(self) -> Fraction:
        """Frames a second, on average."""

    @property
    def length(self) -> int | None:
        """Number of frames, if it is known."""

    @property
    def annotation(self) -> NDArray[np.float32] | None:
        """(F, 4) boxes xywh that belong to it."""

    max_pixels: int
    """Most pixels of a frame; a larger one is refused before it is decoded."""

    def shots(self) -> Iterator[Shot]:
        """All frames. Raises SourceError, and CutOff after the last frame of a source that is cut off."""


def open_source(source: str) -> Source:
    """Opens a camera by its number, a URL, a video, a folder of pictures, or a LaSOT, OTB or GOT-10k sequence.

    Raises SourceError.
    """
    if source.isdigit():
        return Camera(int(source))
    if "://" in source and not source.startswith("file://"):
        return Video(source, source.rstrip("/").rpartition("/")[2] or "stream")
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_dir():
        return Pictures.in_folder(path)
    if not path.exists():
        there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"{source}: no such file or folder{did_you_mean(path.name, there)}")
    return Video(str(path), path.stem)


class Video:
    """A video file or a stream, decoded by FFmpeg through PyAV: any rate, shown the way round that it was filmed."""

    annotation: NDArray[np.float32] | None = None
    max_pixels = MAX_PIXELS

    def __init__(self, place: str, name: str) -> None:
        self._place, self.name = place, name
        try:
            with av.open(place) as container:
                if not container.streams.video:
                    raise SourceError(f"{place}: holds no video")
                stream = container.streams.video[0]
                if stream.codec_context is None:
                    raise SourceError(f"{place}: its video has a codec that this FFmpeg does not know")
                self.codec = stream.codec_context.codec.name
                self.rate = Fraction(stream.average_rate or stream.guessed_rate or PICTURES_RATE)
                self.length = stream.frames or None
                if self.length is None and container.duration:
                    self.length = round(container.duration / av.time_base * self.rate)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{place}: cannot be read as a video ({_reason(error)})") from error

    def shots(self) -> Iterator[Shot]:
        number, first, seconds = 0, 0.0, 0.0
        try:
            with av.open(self._place) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                self._check_size(stream.codec_context)
                stream.codec_context.options = {"max_pixels": str(self.max_pixels)}  # a stream may change its size
                for frame in container.decode(stream):
                    moment = frame.time if frame.time is not None else number / float(self.rate)
                    first = moment if number == 0 else first
                    seconds = moment - first
                    turned = f"turned by {-frame.rotation % 360}° clockwise, as the file says" if frame.rotation else ""
                    yield Shot(number, seconds, _upright(frame), turned)
                    number += 1
        except (av.FFmpegError, OSError) as error:
            if number == 0:
                raise SourceError(f"{self._place}: no frame can be decoded ({self.codec}: {_reason(error)})") from error
            problem = f"cannot be decoded after frame {number} ({self.codec}: {_reason(error)})"
            raise CutOff(f"{self._place}: {problem}") from error
        if number == 0:
            raise SourceError(f"{self._place}: is empty: no frame can be decoded ({self.codec})")
        if self.length is not None and number < 0.98 * self.length - 2:
            raise CutOff(f"{self._place}: is cut off after {number} of about {self.length} frames")

    def _check_size(self, codec: av.VideoCodecContext) -> None:
        """Raises SourceError."""
        if codec.width * codec.height > self.max_pixels:
            raise SourceError(
                f"{self._place}: its frames have {codec.width:,} × {codec.height:,} pixels, more than "
                f"{self.max_pixels:,} (--max-pixels)"
            )


@dataclass
class Pictures:
    """Picture files in order, with the boxes beside them if it is a sequence of a benchmark."""

    name: str
    files: tuple[Path, ...]
    annotation: NDArray[np.float32] | None = None
    rate: Fraction = PICTURES_RATE
    max_pixels: int = MAX_PIXELS

    @classmethod
    def in_folder(cls, folder: Path) -> Pictures:
        """Reads a folder of pictures, or a sequence of LaSOT, OTB (both with `img/`) or GOT-10k."""
        place = next((folder / inner for inner in ("img", "imgs") if (folder / inner).is_dir()), folder)
        try:
            found = patiently(lambda: list(place.iterdir()), THIS_MACHINE, str(place))
        except OSError as error:
            raise SourceError(f"{place}: cannot be read ({explain(error)})") from error
        files = tuple(
            sorted(
                (path for path in found if path.suffix.lower() in PICTURES and path.name[0] != "."),
                key=_by_number,
            )
        )
        if not files:
            raise SourceError(f"{folder}: holds no pictures ({', '.join(PICTURES)})")
        truth = next((file for name in GROUND_TRUTHS if (file := folder / name).is_file()), None)
        try:
            annotation = None if truth is None else parse_boxes(read_file(truth))
        except (OSError, FaultyText) as error:
            raise SourceError(f"{truth}: {explain(error)}") from error
        return cls(folder.resolve().name, files, annotation)

    @property
    def length(self) -> int | None:
        return len(self.files)

    def shots(self) -> Iterator[Shot]:
        decoder = FrameDecoder(by_region=False, max_pixels=self.max_pixels)
        for number, file in enumerate(self.files):
            try:
                data = read_file(file)
                frame = decoder.open(str(file), data)
            except (BrokenFrame, OSError) as error:
                if number == 0:
                    raise SourceError(explain(error)) from error
                raise CutOff(f"{explain(error)}; {number} of {len(self.files)} frames come before it") from error
            picture = frame.pixels(0, 0, frame.width, frame.height)
            yield Shot(number, float(number / self.rate), picture, _how_turned(data))


GROUND_TRUTHS = ("groundtruth.txt", "groundtruth_rect.txt", "groundtruth_rect.1.txt")
"""Files with the boxes of a sequence: LaSOT and GOT-10k, OTB, OTB with several targets."""


class Camera:
    """A camera of this machine."""

    annotation: NDArray[np.float32] | None = None
    length: int | None = None
    max_pixels = MAX_PIXELS

    def __init__(self, number: int) -> None:
        self.name, self._number = f"camera-{number}", number
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise SourceError(f"{number}: there is no camera of this number, or another program uses it")
        self.rate = Fraction(self._capture.get(cv2.CAP_PROP_FPS) or 30).limit_denominator(1000)

    def shots(self) -> Iterator[Shot]:
        began = time.perf_counter()
        for number in itertools.count():
            done, image = self._capture.read()
            if not done:
                raise CutOff(f"camera {self._number} gives no more frames after {number}")
            yield Shot(number, time.perf_counter() - began, np.ascontiguousarray(image[..., ::-1], np.uint8))


def _upright(frame: av.VideoFrame) -> Image:
    """(H, W, 3) RGB, turned as the file says: phones film sideways and note the rotation."""
    image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _how_turned(data: bytes) -> str:
    """The words for Shot.turned, from the EXIF orientation of a JPEG that can be decoded."""
    orientation = read_header(data).orientation if data.startswith(START_OF_JPEG) else 1
    if orientation == 1:
        return ""
    return "turned as its EXIF orientation says" + ("" if orientation is None else f", {orientation} of 1 to 8")


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _reason(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", explain(error))
