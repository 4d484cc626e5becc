from __future__ import annotations

import pytest

from seqtrack.data.heads import NotTiled, parse_head, read_head
from seqtrack.data.jpeg import read_header
from tests.data.jpegs import GOOD, MCU, UNFIT, encode


def test_a_head_is_read_again_as_it_was() -> None:
    for kind in MCU:
        data = encode(200, 100, kind, interval=0)
        data = data[:2] + b"\xff\xfe\x00\x0bseqtracks" + data[2:]
        head = read_head(data, read_header(data))
        assert parse_head(head.content) == head
        assert b"seqtracks" not in head.content


@pytest.mark.parametrize("content", [b"", b"text", GOOD[:300], GOOD, UNFIT["progressive"][:700]])
def test_what_is_no_head_is_refused(content: bytes) -> None:
    with pytest.raises(NotTiled):
        parse_head(content)


def test_a_scan_of_one_colour_among_three_is_no_tiled_jpeg() -> None:
    start, end = GOOD.index(b"\xff\xda"), read_header(GOOD).scan
    first_of_three = GOOD[:start] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + GOOD[end:]
    with pytest.raises(NotTiled, match="it has several scans"):
        read_head(first_of_three, read_header(first_of_three))
