"""Decodes picture files to the pixels of a part of the picture.

Which pixels a file stands for is decided once: those that OpenCV's `imread` shows in colour, as in published trackers.
So a picture is turned as its EXIF orientation says, grey and palettes become RGB, 16 bits become 8, and alpha is left
out, whatever the file is called. With nvidia-nvimgcodec only the part of a JPEG that is asked for is decoded. It gives
the same pixels (`tests/data/test_decoding.py`), and OpenCV decodes the kinds for which it would not, so which library a
machine has does not matter to a run. Nor does it matter whether a JPEG is read and decoded by tiles (`tiles.py`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.config import DataConfig
from seqtrack.data.heads import NotTiled
from seqtrack.data.jpeg import START_OF_JPEG, JpegHeader, NotAPicture, check_complete, read_header
from seqtrack.data.picture_size import picture_pixels
from seqtrack.data.storage import THIS_MACHINE, StoreError, patiently
from seqtrack.data.tiles import TiledJpeg
from seqtrack.failures import explain
from seqtrack.files import what_came_instead

Image = NDArray[np.uint8]
START = 512
"""Bytes that tell what a file is that holds no picture."""


MAX_PIXELS = DataConfig().MAX_PIXELS
"""Most pixels of a picture that is decoded, unless another limit is given."""
MOST_BYTES = 17
"""Bytes that decoders take for a pixel, at most: 6 for JPEG and PNG, 11 for an animated PNG, 17 for AVIF."""


class BrokenFrame(Exception):
    """A frame that cannot be read; the message names the file and says why."""


class Frame(Protocol):
    """A picture that is decoded on demand."""

    width: int
    height: int

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        """(bottom - top, right - left, 3) RGB of a part that lies within the picture. Raises BrokenFrame."""


class ArrayFrame:
    """A picture that is already decoded."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.height, self.width = image.shape[:2]

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        return self._image[top:bottom, left:right]


class FrameDecoder:
    """Opens frames with the fastest library that is installed.

    Threads may share one that was made with `by_region=False`. Otherwise only one thread at a time may use it and its
    frames: a decoder of nvidia-nvimgcodec that two use at once ends in errors and segmentation faults (version 0.9.0).
    """

    def __init__(self, by_region: bool = True, max_pixels: int = MAX_PIXELS) -> None:
        """`by_region=False` uses OpenCV even where nvidia-nvimgcodec is installed."""
        self._by_region, self.max_pixels = by_region, max_pixels
        self._library = _import_nvimgcodec() if by_region else None
        if self._library is not None:
            self._decoder = self._library.Decoder(
                device_id=self._library.NVIMGCODEC_DEVICE_CPU_ONLY,
                max_num_cpu_threads=1,  # the pipeline runs a process per CPU
                backends=[self._library.Backend(self._library.CPU_ONLY)],
            )

    def __reduce__(self) -> tuple[type[FrameDecoder], tuple[bool, int]]:
        return FrameDecoder, (self._by_region, self.max_pixels)  # another process makes its own decoder

    def open(self, name: str, data: bytes) -> Frame:
        """Opens a frame; `name` is its name in errors.

        Raises BrokenFrame if the bytes are not a complete picture, or have more pixels than are allowed, and StoreError
        where memory does not suffice, which says nothing of the frame.
        """
        header = None
        if data.startswith(START_OF_JPEG):
            try:
                header = read_header(data)
                check_complete(data, header)  # decoders would accept the upper part of a picture
            except NotAPicture as error:
                raise BrokenFrame(f"{name} cannot be read ({error})") from error
        if header is not None and self._library is not None and _both_agree(header):
            check_size(name, (header.width, header.height), header.width * header.height, self.max_pixels)
            return _RegionFrame(name, data, header, self._library, self._decoder)
        return ArrayFrame(_decode_whole(name, data, self.max_pixels))


class TiledFrame:
    """A JPEG of which only the rows of tiles are read that are needed, and all of it where these are damaged."""

    def __init__(
        self,
        name: str,
        tiles: TiledJpeg,
        read: Callable[[int, int | None], bytes],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """`read(start, stop)` gives these bytes of the file, to its end for None. Its errors are passed on.

        Raises BrokenFrame if the frame has too many pixels.
        """
        self._name, self._tiles, self._read, self._max_pixels = name, tiles, read, max_pixels
        self.width, self.height = tiles.grid.width, tiles.grid.height
        check_size(name, (self.width, self.height), self.width * self.height, max_pixels)
        self._whole: Frame | None = None

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        if self._whole is None:
            start, stop = self._tiles.byte_range(top, bottom)
            try:
                return self._tiles.pixels(self._read(start, stop), left, top, right, bottom, start)
            except NotTiled:
                whole = FrameDecoder(by_region=False, max_pixels=self._max_pixels)
                self._whole = whole.open(self._name, self._read(0, None))
            if (self._whole.width, self._whole.height) != (self.width, self.height):
                raise BrokenFrame(f"{self._name} cannot be read (it is another picture than was packed)")
        return self._whole.pixels(left, top, right, bottom)


class _RegionFrame:
    """A JPEG that nvimgcodec decodes part by part."""

    def __init__(self, name: str, data: bytes, header: JpegHeader, library: Any, decoder: Any) -> None:
        self._name, self._data, self._library, self._decoder = name, data, library, decoder
        self.width, self.height = header.width, header.height
        if header.turned:
            self.width, self.height = header.height, header.width
        self._whole: Image | None = None
        try:
            self._stream = library.CodeStream(data)
        except RuntimeError:
            self._stream = None

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        if self._stream is not None:
            part = self._stream.get_sub_code_stream(region=self._library.Region(top, left, bottom, right))
            decoded = self._decoder.decode(part)
            if decoded is not None:
                return np.asarray(decoded.cpu())
        if self._whole is None:  # OpenCV is more tolerant of odd files
            self._whole = _decode_whole(self._name, self._data, self.width * self.height)
        return self._whole[top:bottom, left:right]


def check_size(name: str, size: tuple[int, int], pixels: int, most: int) -> None:
    """Raises BrokenFrame if a picture of this width and height, or what is decoded at a time of it, is too large."""
    if pixels > most:
        width, height = size
        parts = "" if pixels == width * height else f" in parts of {pixels:,}"
        raise BrokenFrame(
            f"{name} cannot be read (it has {width:,} × {height:,} pixels{parts}; at most {most:,} are decoded: "
            "DATA.MAX_PIXELS in training, --max-pixels elsewhere)"
        )


def small_picture(data: bytes) -> Image | None:
    """(H / 8, W / 8, 3) a JPEG at an eighth of its size; None if it cannot be decoded.

    Raises StoreError where memory does not suffice.
    """
    if not data.startswith(START_OF_JPEG):
        return None
    try:
        return _decode_whole("a frame", data, MAX_PIXELS, cv2.IMREAD_REDUCED_COLOR_8)
    except BrokenFrame:
        return None


def _decode_whole(name: str, data: bytes, max_pixels: int, form: int = cv2.IMREAD_COLOR_RGB) -> Image:
    """(H, W, 3) RGB, or another form that OpenCV knows. Raises BrokenFrame, and StoreError for want of memory."""
    found = picture_pixels(data) if data else None
    if found is not None:
        check_size(name, *found, max_pixels)

    def decode() -> Image | None:
        """None if it is not a picture. Raises MemoryError."""
        if found is None:
            return None
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), form)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(explain(error)) from error
            raise BrokenFrame(f"{name} cannot be read ({explain(error)})") from error
        if image is None:
            # A decoder that finds no memory says no more than one that finds no picture.
            np.empty((found[1], MOST_BYTES), np.uint8)
        return None if image is None else np.asarray(image, np.uint8)

    try:
        image = patiently(decode, THIS_MACHINE, name)
    except OSError as error:
        raise StoreError(f"{name}: cannot be decoded ({explain(error)})") from error
    if image is None:
        instead = what_came_instead(data[:START])
        raise BrokenFrame(f"{name} cannot be read ({f'it {instead}' if instead else 'not a decodable image'})")
    return image


def _both_agree(header: JpegHeader) -> bool:
    """Whether nvimgcodec shows the pixels that OpenCV shows: not for CMYK, nor where the orientation is unclear."""
    return header.precision == 8 and header.components in (1, 3) and header.orientation is not None


def _import_nvimgcodec() -> Any:
    """The library, or None if it is not installed."""
    try:
        with _stderr_closed():
            return importlib.import_module("nvidia.nvimgcodec")
    except ImportError:
        return None


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Hides what native code writes to stderr: on import, the library lists each missing GPU codec."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
