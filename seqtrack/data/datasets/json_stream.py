"""Reads a large JSON file part by part: the elements of its arrays one after another, never all of them at once."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from typing import Any

from seqtrack.data.datasets.annotations import FaultyText
from seqtrack.files import what_came_instead

LONGEST_VALUE = 64 << 20
"""Characters after which a value that has not ended is a fault."""
_NEAR_THE_END = 16
"""A fault this close to the end of what was read may be that of a word or number that goes on."""
_START = 1000
"""Characters by which a file is recognised that is something else."""
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_arrays(parts: Iterator[bytes], takers: Mapping[str, Callable[[Any], None]]) -> set[str]:
    """Gives each element of the named arrays of a JSON object to its taker, in the order of the file.

    `parts`: the file's bytes. `takers`: key of the object -> what takes an element of the array there, and raises
    FaultyText if it is not what it should be. Other keys are passed over. Returns the keys that were there. Raises
    FaultyText with the position in bytes.
    """
    text = _Text(parts)
    found = set()
    text.expect("{")
    for _ in text.members("}"):
        key = text.value()
        if not isinstance(key, str):
            text.fail("expected a name in double quotes")
        text.expect(":")
        if key not in takers:
            text.value()
            continue
        found.add(key)
        text.expect("[")
        for _ in text.members("]"):
            element = text.value()
            try:
                takers[key](element)
            except FaultyText as fault:
                text.fail(f"{key}: {fault}")
    if text.peek():
        text.fail("more follows after the end", at_next=True)
    return found


class _Text:
    """The part of the file that is being looked at."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._next = 0
        """Where in `_text` the next value begins."""
        self._last = 0
        """Where the last value began."""
        self._bytes_before = 0
        """Bytes of the file before `_text`."""
        self._bytes_read = 0
        self._ended = False
        while len(self._text) < _START and self._read():
            pass
        if self._text.startswith("\ufeff"):  # a byte order mark
            self._text, self._bytes_before = self._text[1:], 3
        instead = what_came_instead(self._text[:_START].encode())
        if instead is not None:
            raise FaultyText(instead)

    def peek(self) -> str:
        """The next character that is not space, or nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._next)
            self._next = space.end() if space else self._next
            if self._next < len(self._text) or not self._read():
                return self._text[self._next : self._next + 1]

    def expect(self, wanted: str) -> None:
        if self.peek() != wanted:
            self.fail(f"expected {wanted}", at_next=True)
        self._last = self._next
        self._next += 1

    def members(self, end: str) -> Iterator[None]:
        """Yields where each member of an array or object begins, and passes over the commas and the end."""
        if self.peek() != end:
            yield
            while self.peek() == ",":
                self._next += 1
                yield
        if self.peek() != end:
            self.fail(f"expected , or {end}", at_next=True)
        self._next += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        self._last = self._next
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._next)
            except JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated string")
                goes_on = open_string or error.pos >= len(self._text) - _NEAR_THE_END
                if goes_on and len(self._text) - self._next < LONGEST_VALUE and self._read():
                    continue
                self._last = error.pos
                self.fail(f"is cut off ({error.msg})" if self._ended and goes_on else error.msg)
            except (RecursionError, ValueError) as error:  # nested too deeply; a number with thousands of digits
                self.fail(str(error))
            if end < len(self._text) or not self._read():
                self._next = end
                return value

    def fail(self, what: str, at_next: bool = False) -> None:
        """Raises FaultyText with the position of the last value, or of what comes next."""
        place = self._next if at_next else self._last
        byte = self._bytes_before + len(self._text[:place].encode())
        if self._ended and at_next and place >= len(self._text):
            what = f"is cut off: {what}"
        raise FaultyText(f"byte {byte}: {what}")

    def _read(self) -> bool:
        """Reads more, at least as much as is still looked at, so that long values do not take quadratic time."""
        if self._ended:
            return False
        keep = min(self._next, self._last)
        self._bytes_before += len(self._text[:keep].encode())
        kept = [self._text[keep:]]
        self._next, self._last = self._next - keep, self._last - keep
        wanted = len(kept[0])
        while not self._ended and wanted >= 0:
            part = next(self._parts, None)
            held = len(self._decoder.getstate()[0])  # the first bytes of a character whose others are yet to come
            try:
                kept.append(self._decoder.decode(part or b"", final=part is None))
            except UnicodeDecodeError as error:
                byte = self._bytes_read - held + error.start
                raise FaultyText(f"byte {byte}: is not text in UTF-8 ({error.reason})") from error
            self._bytes_read += len(part or b"")
            self._ended = part is None
            wanted -= len(kept[-1])
        self._text = "".join(kept)
        return len(self._text) > len(kept[0])
