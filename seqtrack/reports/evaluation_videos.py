"""Videos of a tracker's worst sequences, with the true box and the one that was found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import NamedTuple
from urllib.parse import quote

import av
import cv2
import numpy as np
from pyarrow import fs
from tqdm import tqdm

from seqtrack.data.decoding import Image
from seqtrack.data.drawing import draw
from seqtrack.data.storage import Root, Span
from seqtrack.data.video_writer import VideoWriter
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.evaluation.summary import Evaluation
from seqtrack.failures import explain
from seqtrack.files import is_file, write_atomically
from seqtrack.locations import filesystem_at
from seqtrack.reports.evaluation_frames import FrameBoxes, FrameReader, frame_boxes, moved
from seqtrack.shown import shown

FORMAT = 1
"""Videos of another format are made again."""
FOLDER = "videos"
"""Where the videos are, beside the page."""
FRAMES = 300
"""Frames of a video, at most. They are at equal distances, so a long sequence is shown faster than it was filmed."""
RATE = Fraction(15)
"""Frames per second."""
SIDE = 640
"""The longer side of a video in pixels. Smaller frames are enlarged, so that the text fits into them."""
AT_ONCE = 10
"""Videos that are made at the same time. An object store's frames are waited for, so there may be more than CPUs."""


class Video(NamedTuple):
    """A video, or why there is none."""

    link: str
    """Its address as seen from the page; empty if there is none."""
    lacking: str = ""


def write_videos(place: str, scored: Evaluation, rows: Sequence[int], colour: tuple[int, int, int]) -> list[Video]:
    """Makes a video of each of these rows of what was scored: `videos/BENCHMARK/TRACKER/SEQUENCE.mp4`.

    `place`: the folder or URI of the page; `colour`: RGB of the found boxes. A video that is there and was made from
    the same boxes, annotation and places of frames is kept. Shows how far it is. Raises OSError or ArrowException if
    the object store of `place` cannot be reached.
    """
    filesystem, path = filesystem_at(place)
    folder = "/".join(map(_file_name, (FOLDER, scored.data.benchmark.name, scored.tracker)))
    clips = [_Clip(scored.data.root, scored.sequences[row], scored.tracks[row], colour) for row in rows]
    stopped, title = Event(), shown(f"Videos of {scored.tracker} on {scored.data.benchmark.title}")
    rarely = 0.5 if sys.stderr.isatty() else 30.0  # seconds
    with (
        tempfile.TemporaryDirectory() as scratch,
        tqdm(total=sum(len(one.numbers) for one in clips), unit="frame", desc=title, mininterval=rarely) as progress,
        ThreadPoolExecutor(AT_ONCE, thread_name_prefix="video") as pool,
    ):

        def advance(frames: int) -> None:
            if stopped.is_set():
                raise CancelledError
            with progress.get_lock():
                progress.update(frames)

        def make(number: int) -> Video:
            clip = clips[number]
            name = f"{folder}/{_file_name(clip.sequence.name)}.mp4"
            try:
                if _sources_of(filesystem, f"{path}/{name}") == clip.sources:
                    advance(len(clip.numbers))
                    return Video(quote(name))
                file = Path(scratch, f"{number}.mp4")
                clip.encode(file, advance)
                filesystem.create_dir(f"{path}/{folder}", recursive=True)
                write_atomically(filesystem, f"{path}/{name}", file.read_bytes())
                return Video(quote(name))
            except Exception as error:  # whatever is wrong with a frame, the page has the numbers
                return Video("", explain(error))

        try:
            return list(pool.map(make, range(len(clips))))
        finally:
            stopped.set()  # after Ctrl-C, threads end at their next frame
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Clip:
    """A sequence to be shown."""

    root: Root
    sequence: BenchmarkSequence
    track: Track
    colour: tuple[int, int, int]

    @property
    def numbers(self) -> range:
        """The frames that are shown, from 0."""
        return range(0, len(self.sequence), -(-len(self.sequence) // FRAMES))

    @property
    def places(self) -> list[str | Span]:
        assert self.sequence.frames is not None
        return [self.sequence.frames[number] for number in self.numbers]

    @property
    def sources(self) -> str:
        """A hash of all that the video is made from, with the places of the frames for their contents."""
        truth = self.sequence.truth
        known = hashlib.sha256(json.dumps([FORMAT, self.colour, self.root.path, self.places]).encode())
        for values in (truth.boxes_xywh, truth.absent, self.track.boxes_xywh):
            known.update(np.ascontiguousarray(values).tobytes())
        return f"sha256 of its sources: {known.hexdigest()}"

    def encode(self, file: Path, advance: Callable[[int], None]) -> None:
        """Raises BrokenFrame, DataError or OSError for a frame that cannot be read."""
        reader = FrameReader(self.root)
        with contextlib.closing(VideoWriter(file, RATE, self.sources, threads=1)) as writer:
            for shown, (number, place) in enumerate(zip(self.numbers, self.places, strict=True)):
                image = reader.decode(place, reader.read(place))
                picture = _picture(image, frame_boxes(self.sequence, self.track, number, self.colour))
                writer.write(picture, shown / float(RATE))
                advance(1)


def _picture(image: Image, known: FrameBoxes) -> Image:
    height, width = image.shape[:2]
    scale = SIDE / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    sized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return draw(np.asarray(sized, np.uint8), moved(known.boxes, 0, 0, scale), known.text)


def _sources_of(filesystem: fs.FileSystem, path: str) -> str | None:
    """What the video at a path says of its sources; None if there is no video."""
    if not is_file(filesystem, path):
        return None
    try:
        with filesystem.open_input_file(path) as file, av.open(file) as container:
            return container.metadata.get("comment")
    except (OSError, av.FFmpegError):
        return None


def _file_name(name: str) -> str:
    """A name that is that of one file or folder, on any disk, and another one for each name."""
    quoted = quote(name, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
