"""Decodes JPEG bytes to the pixels of a part of the picture.

With nvidia-nvimgcodec only the part that is asked for is decoded; without it OpenCV decodes everything. Both give the
same pixels (`tests/data/test_decoding.py`), so which one a machine has does not matter to a run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
START_OF_JPEG = b"\xff\xd8"
END_OF_JPEG = b"\xff\xd9"


def is_cut_off(data: bytes) -> bool:
    """Whether these bytes begin like a JPEG but lack its end."""
    return data.startswith(START_OF_JPEG) and END_OF_JPEG not in data[-256:]


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
    """Opens frames with the fastest library that is installed."""

    def __init__(self, by_region: bool = True) -> None:
        """`by_region=False` uses OpenCV even where nvidia-nvimgcodec is installed."""
        self._by_region = by_region
        self._library = _import_nvimgcodec() if by_region else None
        if self._library is not None:
            self._decoder = self._library.Decoder(
                device_id=self._library.NVIMGCODEC_DEVICE_CPU_ONLY,
                max_num_cpu_threads=1,  # the pipeline runs a process per CPU
                backends=[self._library.Backend(self._library.CPU_ONLY)],
            )

    def __reduce__(self) -> tuple[type[FrameDecoder], tuple[bool]]:
        return FrameDecoder, (self._by_region,)  # another process makes its own decoder

    def open(self, name: str, data: bytes) -> Frame:
        """Opens a frame; `name` is its name in errors. Raises BrokenFrame if the bytes are not a complete picture."""
        if is_cut_off(data):  # decoders would accept its upper part
            raise BrokenFrame(f"{name} cannot be read (the JPEG is cut off)")
        if data.startswith(START_OF_JPEG) and self._library is not None:
            return _RegionFrame(name, data, self._library, self._decoder)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if image is None:
            raise BrokenFrame(f"{name} cannot be read (not a decodable image)")
        return ArrayFrame(np.asarray(image, np.uint8))


class _RegionFrame:
    """A JPEG that nvimgcodec decodes part by part."""

    def __init__(self, name: str, data: bytes, library: Any, decoder: Any) -> None:
        self._name, self._library, self._decoder = name, library, decoder
        try:
            self._stream = library.CodeStream(data)
            self.width, self.height = self._stream.width, self._stream.height
        except RuntimeError as error:
            raise BrokenFrame(f"{name} cannot be read (not a decodable image)") from error

    def pixels(self, left: int, top: int, right: int, bottom: int) -> Image:
        part = self._stream.get_sub_code_stream(region=self._library.Region(top, left, bottom, right))
        decoded = self._decoder.decode(part)
        if decoded is None:
            raise BrokenFrame(f"{self._name} cannot be read (not a decodable image)")
        return np.asarray(decoded.cpu())


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
