"""Zips as dataset repositories have them, and the files of a tree."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Member(NamedTuple):
    """A member as bytes have it, where zipfile would write another one."""

    name: str
    content: bytes = b"content"
    size: int | None = None
    """What both heads say of its size, instead of the truth."""
    mode: int = 0
    flags: int = 0
    method: int = 0
    inner_name: str | None = None
    """The name in the member's own head, if that is another one."""


def crafted(*members: Member) -> bytes:
    """A zip without compression, byte by byte (APPNOTE.TXT 4.3)."""
    out, directory = io.BytesIO(), io.BytesIO()
    for one in members:
        name = one.name.encode()
        inner = name if one.inner_name is None else one.inner_name.encode()
        size = len(one.content) if one.size is None else one.size
        flags = one.flags | 0x800  # names are UTF-8
        common = (flags, one.method, 0, 0x21, zlib.crc32(one.content), len(one.content), size)
        place = out.tell()
        out.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, *common, len(inner), 0) + inner + one.content)
        rest = (len(name), 0, 0, 0, 0, one.mode << 16, place)
        directory.write(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 3 << 8 | 20, 20, *common, *rest) + name)
    start = out.tell()
    out.write(directory.getvalue())
    end = len(directory.getvalue())
    out.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(members), len(members), end, start, 0))
    return out.getvalue()
