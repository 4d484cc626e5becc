"""Reads the structure of a JPEG file without decoding it: size, colours, EXIF orientation, and where the picture ends.

Source: ITU-T T.81, annex B (markers and segments); Exif 2.3 for the orientation.
"""

from __future__ import annotations

import re
import struct
import warnings
from dataclasses import dataclass

from PIL import Image

START_OF_JPEG = b"\xff\xd8"
END_OF_JPEG = b"\xff\xd9"
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of the segment that holds width and height."""
_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a segment."""
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_TAG = (_ORIENTATION.to_bytes(2, "big"), _ORIENTATION.to_bytes(2, "little"))
_MARKER = re.compile(rb"\xff+([^\xff\x00\xd0-\xd7])", re.DOTALL)
"""The next marker after compressed data, in which 0xff is followed by 0, or by the number of a restart interval."""


class NotAPicture(ValueError):
    """A file that is not a JPEG with a picture. The message says why, without the file's name."""


class CutOff(NotAPicture):
    """The file ends before the picture does."""


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its compressed data."""

    width: int
    """Columns as stored. With an orientation of 5 to 8 this is the height of the picture."""
    height: int
    components: int
    """1: grey, 3: colour, 4: CMYK."""
    precision: int
    """Bits of a component."""
    orientation: int | None
    """EXIF orientation, 1 to 8: how the stored picture is mirrored and turned to be shown. None: it cannot be told."""
    scan: int
    """Where the first compressed data begin in the file."""

    @property
    def turned(self) -> bool:
        """Whether rows are shown as columns."""
        return (self.orientation or 1) >= 5


def read_header(data: bytes) -> JpegHeader:
    """Reads all that comes before the compressed data. Raises NotAPicture."""
    if not data.startswith(START_OF_JPEG):
        raise NotAPicture("not a JPEG")
    position, size, orientations = 2, None, []
    marker = None
    try:
        while marker != _SCAN:
            found = _MARKER.search(data, position)  # decoders skip what stands between two segments
            if found is None:
                raise CutOff("the JPEG is cut off")
            marker, position = found[1][0], found.end()
            if marker in _ALONE:
                continue
            if marker == _END:
                raise NotAPicture("a JPEG without a picture")
            (length,) = struct.unpack_from(">H", data, position)
            if marker in _FRAMES and size is None:
                size = struct.unpack_from(">BHHB", data, position + 2)
            elif marker == _APP1 and data.startswith(_EXIF, position + 2):
                orientations.append(_orientation(data[position + 2 : position + length]))
            position += length
    except struct.error as error:
        raise CutOff("the JPEG is cut off") from error
    if size is None:
        raise NotAPicture("a JPEG without a picture")
    precision, height, width, components = size
    orientation = orientations[0] if len(orientations) == 1 else None if orientations else 1
    return JpegHeader(width, height, components, precision, orientation, position)


def is_cut_off(data: bytes) -> bool:
    """Whether these bytes begin like a JPEG but end before its picture does."""
    try:
        check_complete(data, read_header(data))
    except NotAPicture as fault:
        return isinstance(fault, CutOff)
    return False


def check_complete(data: bytes, header: JpegHeader) -> None:
    """Raises CutOff unless the picture ends in the file. What comes after its end does not matter.

    A damaged byte in compressed data can look like a marker, so a segment counts only if another marker follows it.
    """
    if data.endswith(END_OF_JPEG) and len(data) - len(END_OF_JPEG) >= header.scan:
        return  # compressed data do not contain these two bytes, so nearly every file is done with here
    position = header.scan
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == _END:
            return
        if marker not in _ALONE and position + 2 <= len(data):
            (length,) = struct.unpack_from(">H", data, position)
            if marker == _SCAN or data[position + length : position + length + 1] == b"\xff":
                position += length
    raise CutOff("the JPEG is cut off")


def _orientation(segment: bytes) -> int | None:
    """The orientation in an EXIF segment, 1 if it has none; None where decoders may read a damaged one differently."""
    exif = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow only warns where it leaves out what it cannot read
        try:
            exif.load(segment)
        except Exception:  # Pillow passes on whatever its reader raises
            return None
    if _ORIENTATION not in exif and not any(tag in segment for tag in _TAG):
        return 1
    value = exif.get(_ORIENTATION)
    return value if value in range(1, 9) else None
