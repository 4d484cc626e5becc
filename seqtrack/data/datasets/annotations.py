"""Reads numbers from annotation files as people have them.

Published files have one comma-separated line for each box. Editors and other tools leave byte order marks, carriage
returns, tabs, spaces, a comma at a line's end, or blank lines before and after: all of that is read. What could mean
two things is refused with its line.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray

MAX_BOX_SIDE = 16_384
"""Largest width or height of a box in pixels: twice that of an 8K video. A larger one is a mistake."""

LARGEST = float(np.finfo(np.float32).max)
"""Largest number that is read. What is larger is taken for infinite."""

_NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|nan)", re.IGNORECASE)
_ODD = re.compile(r"[\r\t ]|,\n|,$")
"""What published files do not have."""


class FaultyText(ValueError):
    """A text that is not numbers. The message says why and in which line, without the file's name."""


def parse_boxes(data: bytes) -> NDArray[np.float32]:
    """(F, 4) boxes in pixels from a file with a box a line. Raises FaultyText."""
    return parse_exact_boxes(data).astype(np.float32)


def parse_exact_boxes(data: bytes) -> NDArray[np.float64]:
    """The same boxes with all digits of the file: an overlap may be right at a threshold. Raises FaultyText."""
    boxes, first_line = parse_numbers(data, columns=4)
    too_large = np.flatnonzero((boxes[:, 2:] > MAX_BOX_SIDE).any(axis=1))
    if len(too_large):
        w, h = boxes[too_large[0], 2:].tolist()
        raise FaultyText(
            f"line {first_line + int(too_large[0])}: a box of {w:,.0f} × {h:,.0f} pixels, larger than any video "
            f"(at most {MAX_BOX_SIDE:,} a side)"
        )
    return boxes


def parse_flags(data: bytes) -> NDArray[np.uint8]:
    """(F,) flags, 0 or 1, from a file with all of them in a line or one a line. Raises FaultyText."""
    flags = parse_numbers(data, columns=None)[0].reshape(-1)
    wrong = np.flatnonzero((flags != 0) & (flags != 1))
    if len(wrong):
        raise FaultyText(f"entry {wrong[0] + 1} is {flags[wrong[0]]:g}, not 0 or 1")
    return flags.astype(np.uint8)


def parse_numbers(data: bytes, columns: int | None) -> tuple[NDArray[np.float64], int]:
    """A row for each line, and the number of the first line. With `columns`, each line must have that many numbers.

    Raises FaultyText.
    """
    text, first_line = _decode(data)
    if not text:
        raise FaultyText("is empty")
    try:
        numbers = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float64, ndmin=2, comments=None)
    except (ValueError, OverflowError):
        raise FaultyText(_find_fault(text, first_line, columns)) from None
    wrong_width = columns is not None and numbers.shape[1] != columns
    if wrong_width or len(numbers) != text.count("\n") + 1 or (np.abs(numbers) > LARGEST).any():
        raise FaultyText(_find_fault(text, first_line, columns))
    return numbers, first_line


def decode_text(data: bytes) -> str:
    """Text of a file in UTF-8 or, with a byte order mark, UTF-16. Raises FaultyText."""
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FaultyText(f"is not text ({error.reason} at byte {error.start})") from error


def _decode(data: bytes) -> tuple[str, int]:
    """The text between the blank lines around it, with commas as its only separators, and its first line's number."""
    text = decode_text(data)
    if _ODD.search(text):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", text).strip(" \t")
        text = re.sub(r"[ \t]*,[ \t]*|[ \t]+", ",", text)
        text = re.sub(r",+(?=\n|$)", "", text)
    body = text.lstrip("\n")
    return body.rstrip("\n"), 1 + len(text) - len(body)


def _find_fault(text: str, first_line: int, columns: int | None) -> str:
    """Says which line cannot be read, and why. Slow, so it is called only for the error message."""
    width = columns
    for line_number, line in enumerate(text.split("\n"), start=first_line):
        if not line:
            return f"line {line_number} is blank, and others follow"
        fields = line.split(",")
        width = width or len(fields)
        if len(fields) != width:
            return f"line {line_number} has {len(fields)} numbers, not {width}: {line[:60]!r}"
        for field in fields:
            if re.fullmatch(r"[-+]?inf(inity)?", field, re.IGNORECASE):
                return f"line {line_number}: {field} is not a finite number"
            if not _NUMBER.fullmatch(field):
                return f"line {line_number}: {field[:40]!r} is not a number"
            if abs(float(field)) > LARGEST:
                return f"line {line_number}: {field[:40]} is not a finite number"
    return "cannot be read as comma-separated numbers"
