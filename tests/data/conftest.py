"""Trees with tiles, and an object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from PIL import Image

from seqtrack.config import SyntheticConfig
from seqtrack.data.datasets.synthetic import write_synthetic
from tests.data.packs import FRAMES, local, pack
from tests.object_stores import s3_bucket


@pytest.fixture(scope="session")
def wide_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of 640×360, so with four tiles in a row. In the second, frames are of every kind.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("wide") / "tree"
    write_synthetic(root, SyntheticConfig(SEQUENCES=2, FRAMES=FRAMES, HEIGHT=360, WIDTH=640))
    for number, path in enumerate(sorted((root / "kite").rglob("*.jpg"))):
        kind = ["as it is", "grey", "mirrored", "png", "progressive", "422"][number % 6]
        if kind != "as it is":
            rewrite(path, kind)
    return root


def rewrite(path: Path, kind: str) -> None:
    image = cv2.imread(str(path))
    assert image is not None
    flags = {
        "422": [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422],
        "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    }
    if kind == "mirrored":
        exif = Image.Exif()
        exif[0x0112] = 2
        Image.fromarray(image).save(path, "JPEG", exif=exif)
    elif kind == "grey":
        path.write_bytes(cv2.imencode(".jpg", image[..., 0])[1].tobytes())
    else:
        path.write_bytes(cv2.imencode(".png" if kind == "png" else ".jpg", image, flags.get(kind, []))[1].tobytes())


@pytest.fixture(scope="session")
def wide_packed(wide_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`wide_root`, packed with tiles. Tests must not change it."""
    folder = tmp_path_factory.mktemp("wide") / "packed"
    pack(wide_root, local(folder), tiled=True)
    return folder


@pytest.fixture
def changeable(wide_packed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(wide_packed, tmp_path / "packed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """URI of a bucket, and the requests that it has received."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    requests: list[str] = []
    with s3_bucket(requests=requests) as uri:
        yield uri, requests
