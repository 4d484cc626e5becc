"""Large JSON files read part by part: the same elements as from all of it at once, and where a fault is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from seqtrack.data.datasets.annotations import FaultyText
from seqtrack.data.datasets.json_stream import read_arrays

PADDING = 1500
"""Characters before what is tested, because the start of a file is looked at as a whole."""
CONTENT = {
    "padding": "x" * PADDING,
    "info": {"who": "ünïcode \u2713 \U0001f40d", "deep": [[[1, {"a": None}]]]},
    "a": [1, -2.5e3, "x,]}", True, {"k": [1, 2, {"b": '\\"'}]}, [], {}, 12345678901234567890],
    "empty": [],
    "b": [{"n": number, "text": "é" * number} for number in range(40)],
    "after": "end",
}


def parts(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


def read(content: bytes, *keys: str, size: int = 7) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {key: [] for key in keys}
    there = read_arrays(parts(content, size), {key: found[key].append for key in keys})
    return {key: found[key] for key in keys if key in there}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_elements_are_those_of_the_whole_file(size: int, indent: int | None, ascii_only: bool) -> None:
    content = json.dumps(CONTENT, indent=indent, ensure_ascii=ascii_only).encode()
    wanted = {key: CONTENT[key] for key in ("a", "b", "empty")}
    assert read(content, "a", "b", "empty", size=size) == wanted


def test_a_key_that_is_not_there_is_not_found() -> None:
    assert read(b'{"a": [1]}', "a", "c") == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  ", "byte 2: is cut off: expected {"),
        (b"<!doctype html><p>", "is a web page"),
        (b"[1]", "byte 0: expected {"),
        (b'{"a": 5}', "byte 6: expected ["),
        (b'{"a": [1, 2}', "byte 11: expected , or ]"),
        (b'{"a": [1, 2', "byte 11: is cut off: expected , or ]"),
        (b'{"a": [1, {"b": ', "byte 16: is cut off (Expecting value)"),
        (b'{"a": [1, "b', "byte 10: is cut off (Unterminated string starting at)"),
        (b'{"a": [1, xyz, "' + b"b" * 50 + b'"]}', "byte 10: Expecting value"),
        ('{"é": 1, "a": [xyz, "'.encode() + b"b" * 50 + b'"]}', "byte 16: Expecting value"),
        (b"\xef\xbb\xbf" + b'{"a": [xyz, "' + b"b" * 50 + b'"]}', "byte 10: Expecting value"),
        (b'{"a": [1, 2], 5: 6}', "byte 14: expected a name in double quotes"),
        (b'{"a": [1, 2]} {', "byte 14: more follows after the end"),
        (b'{"a": [1, "\xff"]}', "byte 11: is not text in UTF-8"),
        (b'{"a": [1, "\xc3x"]}', "byte 11: is not text in UTF-8"),
        (b'{"a": [' + b"9" * 5000 + b"]}", "byte 7: Exceeds the limit"),
        (b'{"a": [' + b"[" * 100_000, "byte 7: "),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_a_fault_is_named_with_its_byte(content: bytes, message: str, size: int) -> None:
    with pytest.raises(FaultyText) as fault:
        read(content, "a", size=size if len(content) < 1000 else 1 << 14)
    assert str(fault.value).startswith(message)


def test_an_element_that_is_refused_is_named_with_its_byte() -> None:
    def take(value: int) -> None:
        if value > 2:
            raise FaultyText(f"{value} is too large")

    with pytest.raises(FaultyText, match=r"^byte 14: a: 3 is too large$"):
        read_arrays(parts(b'{"a": [1, 2,  3]}', 4), {"a": take})
