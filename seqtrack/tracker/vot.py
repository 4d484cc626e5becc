"""Tracks for a client that speaks TraX, such as the VOT toolkit, which names frames and asks where the targets are.

Needs vot-trax, which is the extra `seqtrack[vot]`. Source of the protocol: Čehovin, "TraX: The visual Tracking eXchange
protocol and library", Neurocomputing 2017.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from trax import Image, ImageChannel, Rectangle, Region, Server, TraxException, TraxStatus

from seqtrack.data.decoding import MAX_PIXELS, BrokenFrame, Frame, FrameDecoder
from seqtrack.data.storage import read_file
from seqtrack.failures import explain
from seqtrack.tracker.tracker import BatchTracker, BoxLike, TrackerInputError


class SessionError(Exception):
    """The client is gone, or what it says is not TraX."""


def serve(make_tracker: Callable[[int], BatchTracker], max_pixels: int = MAX_PIXELS) -> None:
    """Answers a TraX client until it ends the session: on the socket that TRAX_SOCKET names, or on stdin and stdout.

    `make_tracker`: a number of targets -> a tracker with as many slots. A session goes through any number of sequences,
    each with any number of targets, which may join in later frames. `max_pixels`: the most that a picture may have.
    Raises SessionError, and TrackerInputError for a frame or a box that cannot be tracked from; the client is told so
    as well.
    """
    os.write(1, b"\n")  # what was printed before may lack the end of its line
    try:
        with _own_streams():
            server = Server(
                [Region.RECTANGLE], [Image.PATH, Image.BUFFER], [ImageChannel.COLOR],
                tracker_name="SeqTrack", tracker_family="SeqTrack", multiobject=True,
            )  # fmt: skip
            try:
                _answer(server, make_tracker, FrameDecoder(max_pixels=max_pixels))
            except Exception as error:
                with suppress(TraxException):
                    server.quit(explain(error))
                raise
    except TraxException as error:
        raise SessionError(str(error)) from error


@contextmanager
def _own_streams() -> Iterator[None]:
    """Leaves stdin and stdout to the protocol alone: what this process prints goes to stderr, also from native code."""
    kept = os.dup(0), os.dup(1)
    os.environ |= {"TRAX_IN": str(kept[0]), "TRAX_OUT": str(kept[1])}
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    try:
        yield
    finally:
        for number, stream in enumerate(kept):
            os.dup2(stream, number)
            os.close(stream)
        os.close(nowhere)
        del os.environ["TRAX_IN"], os.environ["TRAX_OUT"]


def _answer(server: Server, make_tracker: Callable[[int], BatchTracker], decoder: FrameDecoder) -> None:
    groups: list[BatchTracker] = []
    """The targets of the sequence; those of a group began in the same frame."""
    while (request := server.wait()).type != TraxStatus.QUIT:
        if request.type == TraxStatus.INITIALIZE:
            groups = []
        found: list[tuple[Rectangle, dict[str, float]]] = []
        try:
            frame = frame_of(request.image[ImageChannel.COLOR], decoder)
            for group in groups:
                for tracked in group.track(dict.fromkeys(range(group.slots), frame)).values():
                    found.append((Rectangle.create(*tracked.box_xywh), {"confidence": tracked.confidence}))
            boxes = [box_of(region) for region, _ in request.objects or []]
            if boxes:
                groups.append(make_tracker(len(boxes)))
            for slot, box in enumerate(boxes):
                groups[-1].start(slot, frame, box)
                found.append((Rectangle.create(*box), {}))
        except (OSError, BrokenFrame) as error:
            raise TrackerInputError(explain(error)) from error
        server.status(found)


def frame_of(image: Image, decoder: FrameDecoder) -> Frame:
    """A picture as the client sends it: the path of a file, or the bytes of one. Raises OSError and BrokenFrame.

    Clients are not offered to send pixels: vot-trax 4.0.2, reading them, writes past the end of its memory.
    """
    if image.type() == Image.PATH:
        return decoder.open(image.path(), read_file(image.path()))
    return decoder.open("a picture that the client sent", image.buffer())


def box_of(region: Region) -> BoxLike:
    """The smallest upright box around a region, xywh in pixels. Raises TrackerInputError.

    Clients are asked for rectangles. vot-trax's client makes them of polygons and masks; others may send a polygon.
    """
    if region.type == Region.RECTANGLE:
        return region.bounds()
    if region.type == Region.POLYGON:
        points = np.array(list(region))
        return np.concatenate((points.min(axis=0), np.ptp(points, axis=0)))
    raise TrackerInputError(f"{region}: what is tracked are rectangles")
