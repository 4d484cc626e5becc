"""A file that holds no weights is named for what it is."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.model.weights import read_weights, save_published, save_safetensors
from tests.model.refusal import refusal

WEIGHTS = {"a": torch.arange(300.0), "b": torch.ones(2, 2)}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0" * 5000, "holds nothing but zeros at its start: a download that was not finished"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "is a Git LFS pointer, not the file itself: `git lfs pull` fetches it",
        ),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body>", "is a web page (HTML)"),
        (b"\xef\xbb\xbf\r\n <HTML><head>", "is a web page (HTML)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an XML text"),
        (gzip.compress(b"weights"), "is compressed by gzip: `gunzip`"),
        (b"\xfd7zXZ\0\0\x04", "is compressed by xz"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.3.0:\x8f", "is an ONNX model, not weights of PyTorch"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "is an HDF5 file"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (pickle.dumps({"a": 1}), "is a pickle that torch.save did not write"),
        (json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode(), "is the list of weights in several files"),
        (b'{"error": "Entry not found"}', "is a text (JSON), not weights"),
        (b"no weights at all", "is no file of weights: it begins with b'no weights at al'"),
        (b"PK\x03\x04 cut short", "is cut off or damaged"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(said)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert refusal(path) == "is no file, but a device or a pipe"


def test_numpy_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    np.savez(tmp_path / "a.npz", a=np.ones(3), b=np.zeros(2))
    assert refusal(tmp_path / "a.npy") == "is a NumPy array, not weights by name"
    assert refusal(tmp_path / "a.npz") == "is an archive of NumPy arrays (.npz), not weights of PyTorch"


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", ["a.pt", "a.pth.tar"])
def test_a_torchscript_archive_is_named_and_never_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / name)
    reached: list[object] = []
    monkeypatch.setattr(torch.jit, "load", reached.append)
    assert refusal(tmp_path / name).startswith("is a TorchScript archive, which holds a program")
    assert not reached


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("extra", [[], ["__MACOSX/._a.pth", ".DS_Store"]])
def test_a_zip_around_one_file_is_named_with_the_file(tmp_path: Path, compression: int, extra: list[str]) -> None:
    save_published(WEIGHTS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.write(tmp_path / "a.pth", "weights/a.pth")
        for name in extra:
            archive.writestr(name, b"")
    assert refusal(tmp_path / "a.zip") == "is a zip archive around weights/a.pth: `unzip` unpacks it"


def test_archives_of_several_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.pth", "b.pth", "readme.md", "d"):
            archive.writestr(name, b"1")
    assert refusal(tmp_path / "a.zip") == "is a zip archive of 4 files (a.pth, b.pth, readme.md …), not weights"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.zip", "a.zip")
    assert refusal(tmp_path / "a.tar") == "is a tar archive: `tar -xf` unpacks it"


def test_a_file_of_torch_that_was_packed_anew_is_named(tmp_path: Path) -> None:
    save_published(WEIGHTS, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as whole,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert refusal(tmp_path / "b.pth").startswith("was packed anew by a zip program")


def save_old(path: Path) -> None:
    torch.save({"net": WEIGHTS}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "save",
    [lambda path: save_published(WEIGHTS, path), save_old, lambda path: save_safetensors(WEIGHTS, path)],
    ids=["archive", "stream", "safetensors"],
)
@pytest.mark.parametrize("kept", [0.001, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named_as_such(tmp_path: Path, save: Callable[[Path], None], kept: float) -> None:
    save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(content[: max(1, int(kept * len(content)))])
    assert refusal(tmp_path / "cut").startswith("is cut off")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "is a folder without model.safetensors: it is empty"),
        (["a.txt"], "is a folder without model.safetensors"),
        (["a.pth", "b.bin", "c.txt"], "is a folder without model.safetensors; it has a.pth, b.bin"),
        (
            ["model.safetensors.index.json", "model-1.safetensors"],
            "holds weights in several files, listed in model.saf",
        ),
        (["checkpoint_epoch_0003", "config.yaml"], "is a run's folder: one of its checkpoints is needed, such as"),
        (["data.pkl", "version"], "is an unpacked file of torch.save"),
    ],
)
def test_a_folder_without_weights_is_named_for_what_it_is(tmp_path: Path, names: list[str], said: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert refusal(tmp_path).startswith(said)


def test_weights_in_a_buffer_that_ends_with_a_zip_directory_stay_what_they_are(tmp_path: Path) -> None:
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    save_old(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes((tmp_path / "a.pth").read_bytes() + empty.getvalue())
    assert read_weights(tmp_path / "b.pth").keys() == WEIGHTS.keys()
