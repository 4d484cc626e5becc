"""Zips of dataset repositories: what no honest one has is named, and nothing is unpacked."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from seqtrack.data.storage import DataError
from seqtrack.evaluation.submissions import read_zip
from seqtrack.integrations import archives
from seqtrack.integrations.archives import unpack
from seqtrack.shown import shown
from tests.integrations.copies import Member, crafted, read_tree, zipped

LONG = "x" * 300


def bad(*members: Member) -> bytes:
    """A zip with an honest member before and after."""
    return crafted(Member("coin/coin-1/first"), *members, Member("coin/coin-1/last"))


ODD = {
    "empty name": (bad(Member("")), "'' names no file"),
    "dot": (bad(Member(".")), "'.' names no file"),
    "dots": (bad(Member("./.")), "'./.' names no file"),
    "dot and slashes": (bad(Member(".//.")), "'.//.' names no file"),
    "long name": (bad(Member(LONG)), f"'{LONG[:80]} …' is a longer name than a disk takes"),
    "long name in bytes": (bad(Member("猫" * 86)), " is a longer name than a disk takes"),
    "long folder": (bad(Member(f"coin/{LONG}/a")), " is a longer name than a disk takes"),
    "long path": (bad(Member("/".join(["coin"] * 900))), " is a longer name than a disk takes"),
    "file and folder": (bad(Member("a"), Member("a/b")), "'a' would be a file and the folder of 'a/b'"),
    "folder and file": (bad(Member("a/b/c/d"), Member("a/b")), "'a/b' would be a file and the folder of 'a/b/c/d'"),
    "twice": (bad(Member("a"), Member("a")), "'a' is there twice"),
    "twice in other words": (bad(Member("a/b"), Member("./a//b")), "'./a//b' is there twice"),
    "null": (bad(Member("a\0.jpg")), r"'a\x00.jpg' has a character that cannot be seen"),
    "newline": (bad(Member("a\nb")), r"'a\nb' has a character that cannot be seen"),
    "escape": (bad(Member("a\x1b[31m")), r"'a\x1b[31m' has a character that cannot be seen"),
    "right to left": (bad(Member("a\u202egpj")), r"'a\u202egpj' has a character that cannot be seen"),
    "backslash": (bad(Member("..\\a")), r"'..\\a' points out of its folder"),
    "drive": (bad(Member("C:/a")), "'C:/a' points out of its folder"),
    "drive without slash": (bad(Member("c:a")), "'c:a' points out of its folder"),
    "absolute": (bad(Member("/etc/passwd")), "'/etc/passwd' points out of its folder"),
    "parent": (bad(Member("coin/../../a")), "'coin/../../a' points out of its folder"),
    "parent as a folder": (bad(Member("../", b"")), "'../' points out of its folder"),
    "root as a folder": (bad(Member("/", b"")), "'/' points out of its folder"),
    "link": (bad(Member("a", b"/etc", mode=stat.S_IFLNK | 0o777)), "'a' points out of its folder: it is a link"),
    "device": (bad(Member("a", mode=stat.S_IFCHR | 0o666)), "'a' is no file"),
    "pipe": (bad(Member("a", mode=stat.S_IFIFO | 0o666)), "'a' is no file"),
    "socket": (bad(Member("a", mode=stat.S_IFSOCK | 0o666)), "'a' is no file"),
    "folder with content": (bad(Member("a/")), "'a/' is a folder and has content"),
    "folder by its mode": (bad(Member("a", b"", mode=stat.S_IFDIR | 0o755)), "is a folder by its mode and a file by"),
    "encrypted": (bad(Member("coin/coin-1/a", flags=1)), "'coin/coin-1/a' is encrypted"),
    "strongly encrypted": (bad(Member("coin/coin-1/a", flags=0x40)), "strong encryption"),
    "unknown compression": (bad(Member("coin/coin-1/a", method=97)), "compression method is not supported"),
    "two names": (bad(Member("coin/coin-1/a", inner_name="coin/coin-1/b")), "in directory 'coin/coin-1/a' and header"),
    "bomb": (bad(Member("coin/coin-1/a", size=0xFFFFFFF0)) , "GB are needed to unpack"),
    "no zip": (b"no zip at all", "File is not a zip file"),
    "cut off": (zipped({"a": bytes(1000)})[:500], "File is not a zip file"),
    "nothing": (b"", "File is not a zip file"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with 1 GB free, on every machine."""
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=10**9))


def unpacked(content: bytes, folder: Path) -> Path:
    """Unpacks a zip of a class as `fetch` does. Returns the folder."""
    (folder / "coin.zip").write_bytes(content)
    (folder / "tree").mkdir()
    unpack(folder / "coin.zip", folder / "tree", lambda path: path)
    return folder / "tree"


@pytest.mark.parametrize(("content", "fault"), ODD.values(), ids=ODD)
def test_an_odd_member_is_named_in_one_line_and_nothing_is_unpacked(content: bytes, fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        unpacked(content, tmp_path)
    assert fault in str(raised.value) and shown(str(raised.value)) == str(raised.value)
    assert list((tmp_path / "tree").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coin.zip", "tree"]


@pytest.mark.parametrize("name", [name for name, (_, fault) in ODD.items() if "needed" not in fault])
def test_a_zip_of_results_with_an_odd_member_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "results.zip").write_bytes(ODD[name][0])
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/results.zip: ")):
        read_zip(str(tmp_path / "results.zip"))


def test_what_an_honest_zip_has_is_unpacked(tmp_path: Path) -> None:
    name = "y" * 255
    content = crafted(
        Member("./", b""), Member("coin/", b"", mode=stat.S_IFDIR | 0o755), Member("./coin/a"), Member("coin//b"),
        Member(f"coin/{name}", mode=stat.S_IFREG | 0o600), Member("coin/猫 ü", b""), Member("coin/.hidden"),
        Member("coin/A"), Member("__MACOSX/coin/._a"), Member("coin/._a"), Member("coin/a.partial"),
    )  # fmt: skip
    tree = read_tree(unpacked(content, tmp_path))
    assert sorted(tree) == sorted(
        ["coin/a", "coin/b", f"coin/{name}", "coin/猫 ü", "coin/.hidden", "coin/A", "coin/a.partial"]
    )
    assert tree["coin/a"] == b"content" and tree["coin/猫 ü"] == b""


def test_files_that_would_come_to_one_place_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"x/frame.jpg": b"1", "y/frame.jpg": b"2"}))
    with pytest.raises(DataError, match=r"'frame.jpg' would be one file; nothing was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path, lambda path: PurePosixPath(path.name))
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_names_that_a_disk_takes_for_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "folds_case", lambda folder: True)
    with pytest.raises(DataError, match=r"'coin/A' and 'coin/a' would be one file"):
        unpacked(zipped({"coin/a": b"1", "coin/A": b"2"}), tmp_path)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_there_already_is_not_taken_for_another_kind(there: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"before": b"1", "a/b": b"2"}))
    (tmp_path / "tree").mkdir()
    if there == "file":
        (tmp_path / "tree/a").touch()
    else:
        (tmp_path / "tree/a/b").mkdir(parents=True)
    with pytest.raises(DataError, match=f"is a {there}, and would be a (folder|file); nothing was unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "tree", lambda path: path)
    assert not (tmp_path / "tree/before").exists()


@pytest.mark.parametrize("size", [3, 4096], ids=["smaller", "larger"])
def test_a_size_that_is_not_true_leaves_no_file_of_that_name(size: int, tmp_path: Path) -> None:
    content = crafted(Member("a", b"content", size=size))
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpacked(content, tmp_path)
    assert list((tmp_path / "tree").iterdir()) == []


def test_a_zip_that_is_damaged_in_any_byte_is_unpacked_as_it_was_or_refused(tmp_path: Path) -> None:
    files = {"coin/a": b"content" * 9, "coin/b/c": bytes(100), "coin/d": os.urandom(50)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    draws = random.Random(0)
    for number in range(400):
        data = bytearray(buffer.getvalue())
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            found = read_tree(unpacked(bytes(data), folder))
        except DataError as error:
            assert shown(str(error)) == str(error)
            continue
        assert set(found.values()) <= set(files.values())
