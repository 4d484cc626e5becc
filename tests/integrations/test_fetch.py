"""Downloading GOT-10k and TrackingNet from copies on the Hub, and what is said about sets without one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seqtrack import cli
from tests.integrations.copies import read_tree, zipped
from tests.integrations.hub_server import Fault, HubServer

REPO = "someone/copy"
NAMES = {"GOT10K": "GOT10K_train_full", "TRACKINGNET": "TRACKINGNET"}


def got10k(tree: dict[str, bytes], layout: str) -> dict[str, bytes]:
    """A copy's files. Both have parts that are not of the training set."""
    listed = tree["train/list.txt"]
    videos = {path.removeprefix("train/"): content for path, content in tree.items() if path != "train/list.txt"}
    other = {"GOT-10k_Val_000001/groundtruth.txt": b"1,2,3,4", "list.txt": b"GOT-10k_Val_000001"}
    if layout == "plain":
        return {f"full_data/train/{path}": content for path, content in videos.items()} | {
            "full_data/train/list.txt": listed,
            **{f"full_data/val/{path}": content for path, content in other.items()},
        }
    names = sorted({path.partition("/")[0] for path in videos})
    parts = [
        {path: content for path, content in videos.items() if path.partition("/")[0] in some}
        for some in (names[:2], names[2:])
    ]
    return {
        "train/GOT-10k_Train_split_01.zip": zipped(parts[0]),
        "train/GOT-10k_Train_split_02.zip": zipped(
            {f"train/train/{path}": content for path, content in parts[1].items()}
            | {"__MACOSX/GOT-10k_Train_000003/._groundtruth.txt": b"x", "train/list.txt": listed}
        ),
        "val_data.zip": zipped({f"val/{path}": content for path, content in other.items()}),
    }


def trackingnet(tree: dict[str, bytes], layout: str) -> dict[str, bytes]:
    if layout == "plain":  # as the set itself is laid out: annotations, and a zip for each sequence
        files = {path: content for path, content in tree.items() if "/anno/" in path}
        for folder in {path.rpartition("/")[0] for path in tree if "/frames/" in path}:
            frames = {path.rpartition("/")[2]: tree[path] for path in tree if path.startswith(f"{folder}/")}
            files[f"data/{folder.replace('frames', 'zips')}.zip"] = zipped(frames)
        return files | {"TEST.zip": zipped({"anno/x.txt": b"1,2,3,4"}), "README.md": b"# copy"}
    chunks = sorted({path.partition("/")[0] for path in tree})
    return {
        f"{chunk}.zip": zipped(
            {path if chunk == chunks[0] else path.partition("/")[2]: tree[path] for path in tree if chunk in path}
        )
        for chunk in chunks
    }


COPIES = {"GOT10K": got10k, "TRACKINGNET": trackingnet}


def fetch(kind: str, root: Path, *more: str) -> int:
    name = NAMES[kind]
    settings = [f"DATA.ROOTS={{{name}: {root}}}", f"DATA.PARTIAL=[{name}]", *more]
    return cli.main(["fetch", "--set", name, "--from", REPO, *settings])


def without_notes(tree: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in tree.items() if not path.startswith(".")}


def downloads(server: HubServer) -> list[str]:
    return [line for line in server.requests if line.startswith("GET") and "/resolve/" in line]


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("layout", ["zips", "plain"])
def test_the_tree_is_the_one_that_was_copied_however_the_copy_is_laid_out(
    kind: str, layout: str, dataset_hub: HubServer, synthetic_sets: Path, tmp_path: Path
) -> None:
    tree = read_tree(synthetic_sets / kind)
    dataset_hub.add(REPO, COPIES[kind](tree, layout), kind="datasets")
    assert fetch(kind, tmp_path / "a") == 0
    assert without_notes(read_tree(tmp_path / "a")) == tree
    assert not any("val" in line or "TEST" in line for line in downloads(dataset_hub))
    before = len(downloads(dataset_hub))
    assert fetch(kind, tmp_path / "a") == 0
    assert len(downloads(dataset_hub)) == before


def test_zips_within_a_zip_are_unpacked(dataset_hub: HubServer, synthetic_sets: Path, tmp_path: Path) -> None:
    tree = read_tree(synthetic_sets / "TRACKINGNET")
    inner = {path.removeprefix("data/"): content for path, content in trackingnet(tree, "plain").items()}
    dataset_hub.add(
        REPO,
        {f"TRAIN_{n}.zip": zipped({path: inner[path] for path in inner if f"TRAIN_{n}/" in path}) for n in range(4)},
        kind="datasets",
    )
    assert fetch("TRACKINGNET", tmp_path / "a") == 0
    assert without_notes(read_tree(tmp_path / "a")) == tree


@pytest.mark.parametrize("fault", [404, "half", "corrupt"])
def test_the_same_command_goes_on_after_an_interruption(
    fault: int | str, dataset_hub: HubServer, synthetic_sets: Path, tmp_path: Path
) -> None:
    tree = read_tree(synthetic_sets / "GOT10K")
    dataset_hub.add(REPO, got10k(tree, "zips"), kind="datasets")
    dataset_hub.faults = [Fault("GET .*split_02.zip", fault, times=1)]
    tries = 1
    while fetch("GOT10K", tmp_path):
        tries += 1
        assert tries < 4 and not (tmp_path / "train/GOT-10k_Train_000003").exists()
    assert sum("split_01" in line for line in downloads(dataset_hub)) == 1
    assert without_notes(read_tree(tmp_path)) == tree


@pytest.mark.parametrize(
    ("member", "said"),
    [("../../escaped/0.jpg", "points out of its folder"), ("/anno/escaped.txt", "points out of its folder")],
)
def test_a_zip_that_would_write_elsewhere_leaves_the_tree_alone(
    member: str, said: str, dataset_hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_hub.add(REPO, {"TRAIN_0.zip": zipped({"anno/a.txt": b"1,2,3,4", member: b"x"})}, kind="datasets")
    assert fetch("TRACKINGNET", tmp_path / "a") == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and not (tmp_path / "a/TRAIN_0").exists()


def test_what_a_copy_lacks_is_named(
    dataset_hub: HubServer, synthetic_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_hub.add(REPO, trackingnet(read_tree(synthetic_sets / "TRACKINGNET"), "zips"), kind="datasets")
    assert fetch("TRACKINGNET", tmp_path, "DATA.PARTIAL=[]") == 2
    assert "8 of 12 chunks are missing: TRAIN_4, " in capsys.readouterr().err
    assert fetch("TRACKINGNET", tmp_path) == 0


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_a_full_disk_is_said_before_a_zip_is_unpacked(
    dataset_hub: HubServer,
    synthetic_sets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset_hub.add(REPO, {"TRAIN_0.zip": zipped({"anno/a.txt": b"1,2,3,4" * 99_999})}, kind="datasets")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("seqtrack.integrations.set_download.check_space", lambda *_: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert fetch("TRACKINGNET", tmp_path) == 2
    assert "GB are needed to unpack TRAIN_0.zip, 0.0 GB are free" in capsys.readouterr().err
    assert not (tmp_path / "TRAIN_0").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [({"README.md": b"#"}, f"{REPO}: has no file of TRACKINGNET"), (None, f"{REPO}: no such dataset repository")],
)
def test_a_repository_that_will_not_do_is_named(
    files: dict[str, bytes] | None,
    said: str,
    dataset_hub: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if files is not None:
        dataset_hub.add(REPO, files, kind="datasets")
    assert fetch("TRACKINGNET", tmp_path) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("root", ["s3://bucket/set", "synthetic"])
def test_only_a_folder_is_downloaded_into(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fetch", "--set", "TRACKINGNET", "--from", REPO, f"DATA.ROOTS={{TRACKINGNET: {root}}}"]) == 2
    assert f"DATA.ROOTS.TRACKINGNET {root}: not a folder of this machine" in capsys.readouterr().err


def test_a_file_whose_name_steers_a_terminal_is_refused(
    dataset_hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_hub.add(REPO, {"TRAIN_0/anno/a\x1b[31m.txt": b"1,2,3,4"}, kind="datasets")
    assert fetch("TRACKINGNET", tmp_path / "a") == 2
    assert r"'TRAIN_0/anno/a\x1b[31m.txt' has a character that cannot be seen" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
