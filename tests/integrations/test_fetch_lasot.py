"""Downloading LaSOT from a dataset repository: whole classes or none, whatever the server or the zips are like."""

from __future__ import annotations

import io
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from seqtrack import cli
from seqtrack.shown import shown
from tests.integrations.copies import Member, crafted, read_tree, zipped
from tests.integrations.hub_server import Fault, HubServer

REPO = "someone/lasot"


@pytest.fixture
def server(dataset_hub: HubServer) -> HubServer:
    return dataset_hub


@pytest.fixture
def zips(server: HubServer, lasot_root: Path) -> dict[str, bytes]:
    """The repository's files, of two classes packed in different ways."""
    files = {
        "coin.zip": zipped({f"coin/{path}": content for path, content in read_tree(lasot_root / "coin").items()}),
        "data/kite.zip": zipped(
            {f"LaSOT/x/{path}": content for path, content in read_tree(lasot_root / "kite").items()}
            | {"__MACOSX/kite-1/._groundtruth.txt": b"no numbers", "LaSOT/readme.txt": b"hello"}
        ),
    }
    server.add(REPO, files, kind="datasets")
    return files


def fetch(root: Path, classes: str = "coin, kite", repo: str = REPO) -> int:
    return program(f"DATA.ROOT={root}", f"DATA.TRAIN.CLASSES=[{classes}]", f"DATA.DOWNLOAD_FROM={repo}")


def program(*arguments: str) -> int:
    return cli.main(["fetch-lasot", *arguments])


def downloads(server: HubServer, name: str) -> int:
    return sum(line.startswith("GET") and line.endswith(f"{name}.zip") for line in server.requests)


@pytest.mark.parametrize("classes", ["coin, kite", ""], ids=["named", "all"])
def test_the_tree_is_the_one_that_was_packed(
    server: HubServer, zips: dict[str, bytes], lasot_root: Path, tmp_path: Path, classes: str
) -> None:
    assert fetch(tmp_path / "lasot", classes) == 0
    assert read_tree(tmp_path / "lasot") == read_tree(lasot_root)


def test_what_is_there_is_checked_and_not_fetched_again(
    server: HubServer, zips: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(tmp_path, "coin") == 0
    assert fetch(tmp_path, "coin, kite") == 0
    assert downloads(server, "coin") == 1
    assert "coin: 2 sequences, 60 frames, there already" in capsys.readouterr().out
    (tmp_path / "coin/coin-2/img/00000007.jpg").unlink()
    assert fetch(tmp_path, "coin") == 2
    assert "coin-2/img: 1 of 30 annotated frames are missing, first 00000007.jpg" in capsys.readouterr().err
    assert (tmp_path / "coin/coin-2/img/00000008.jpg").exists()


def test_the_same_command_goes_on_after_an_interruption(
    server: HubServer, zips: dict[str, bytes], lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [Fault("GET .*kite.zip", 404, times=1)]
    assert fetch(tmp_path) == 1
    assert "The same command goes on from here." in capsys.readouterr().err
    assert (tmp_path / "coin").exists() and not (tmp_path / "kite").exists()
    assert fetch(tmp_path) == 0
    assert downloads(server, "coin") == 1
    assert read_tree(tmp_path) == read_tree(lasot_root)


@pytest.mark.parametrize("fault", [Fault("GET .*coin.zip", "half"), Fault("GET .*coin.zip", 503)], ids=["half", "503"])
def test_a_download_that_breaks_off_goes_on(
    server: HubServer, zips: dict[str, bytes], lasot_root: Path, tmp_path: Path, fault: Fault
) -> None:
    server.faults = [fault]
    while fetch(tmp_path, "coin"):
        assert downloads(server, "coin") < 5
    assert read_tree(tmp_path / "coin") == read_tree(lasot_root / "coin")


def test_files_that_were_unpacked_are_kept(
    server: HubServer, zips: dict[str, bytes], lasot_root: Path, tmp_path: Path
) -> None:
    """A folder as a kill leaves it: some files are there, one only in part."""
    staged = tmp_path / ".fetching/coin/coin-1"
    staged.mkdir(parents=True)
    shutil.copy(lasot_root / "coin/coin-1/groundtruth.txt", staged)
    (staged / "out_of_view.txt").write_text("0,")
    (staged / "full_occlusion.txt.partial").write_text("0,")
    inode = (staged / "groundtruth.txt").stat().st_ino
    assert fetch(tmp_path, "coin") == 0
    assert read_tree(tmp_path / "coin") == read_tree(lasot_root / "coin")
    assert (tmp_path / "coin/coin-1/groundtruth.txt").stat().st_ino == inode


def test_other_bytes_than_the_hubs_are_refused(
    server: HubServer, zips: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = [Fault("GET .*coin.zip", "corrupt")]
    assert fetch(tmp_path, "coin") == 2
    assert "coin.zip: SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "coin").exists()
    assert fetch(tmp_path, "coin") == 0


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("coin/coin-1/img")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (zipped({"coin/coin-1/a.txt": b"", "coin/coin-1/../../../escaped": b""}), "points out of its folder"),
        (zipped({"/coin/coin-1/escaped": b""}), "points out of its folder"),
        (link(), "points out of its folder"),
        (crafted(Member("coin/coin-1/a.txt"), Member("")), "coin.zip: '' names no file; nothing was unpacked"),
        (crafted(Member("coin/coin-1/img"), Member("coin/coin-1/img/1.jpg")), "would be a file and the folder of"),
        (b"not a zip at all", "cannot be unpacked"),
        (zipped({"kite/kite-1/groundtruth.txt": b"1,2,3,4"}), "class coin has no sequence"),
        (zipped({"coin/coin-1/groundtruth.txt": b"1,2,3"}), "line 1 has 3 numbers, not 4"),
        (
            zipped(
                {f"coin/coin-1/{name}.txt": b"0" for name in ("full_occlusion", "out_of_view")}
                | {"coin/coin-1/groundtruth.txt": b"1,2,3,4"}
            ),
            "1 of 1 annotated frames are missing, first 00000001.jpg",
        ),
    ],
    ids=[
        "parent",
        "absolute",
        "link",
        "empty name",
        "file and folder",
        "no zip",
        "another class",
        "annotations",
        "frames",
    ],
)
def test_a_zip_that_will_not_do_leaves_the_tree_alone(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], archive: bytes, message: str
) -> None:
    server.add(REPO, {"coin.zip": archive}, kind="datasets")
    assert fetch(tmp_path / "lasot", "coin") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lasot/coin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lasot"]


@pytest.mark.parametrize(
    ("classes", "repo", "message"),
    [
        ("coins", REPO, "has no coins.zip; did you mean coin?"),
        ("zebra", REPO, "has no zebra.zip; it has coin, kite"),
        ("coin", "someone/nothing", "DATA.DOWNLOAD_FROM someone/nothing: no such dataset repository"),
    ],
)
def test_what_is_not_there_is_named(
    server: HubServer,
    zips: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    classes: str,
    repo: str,
    message: str,
) -> None:
    assert fetch(tmp_path, classes, repo) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("root", ["s3://bucket/lasot", "synthetic"])
def test_only_a_folder_is_downloaded_into(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(f"DATA.ROOT={root}") == 2
    assert f"DATA.ROOT {root}: not a folder of this machine" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_said_at_once(
    server: HubServer,
    zips: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert fetch(tmp_path) == 2
    assert "GB are needed, 0.0 GB are free" in capsys.readouterr().err
    assert downloads(server, "coin") == 0


@pytest.mark.parametrize("names", [["a/coin.zip", "b/coin.zip"], ["...zip"], ["coin\x1b[31m.zip"], ["x\n/coin.zip"]])
def test_a_zip_whose_name_is_no_class_is_refused(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    server.add(REPO, dict.fromkeys(names, b""), kind="datasets")
    assert fetch(tmp_path / "lasot", "") == 2
    assert capsys.readouterr().err == f"error: {REPO}: {shown(names[-1])} is not the one zip of a class\n"
    assert list(tmp_path.iterdir()) == []
