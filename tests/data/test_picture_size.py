"""A picture's size is known before it is decoded, whatever kind of file it is, and a larger one is refused by name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from seqtrack.config import parse_config
from seqtrack.data.decoding import BrokenFrame, FrameDecoder, TiledFrame
from seqtrack.data.heads import read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.open import open_data
from seqtrack.data.picture_size import picture_pixels
from seqtrack.data.storage import DataError
from seqtrack.data.tiles import TiledJpeg, find_row_offsets
from seqtrack.data.triplets import TripletSource
from seqtrack.errors import InputError
from seqtrack.tracker.lanes import opener
from seqtrack.tracker.sources import SourceError, open_source
from tests.data.packs import local, pack
from tests.tracker.videos import disc, write_video

WIDTH, HEIGHT = 61, 47
PICTURE = cv2.resize(np.random.RandomState(0).randint(0, 256, (8, 10, 3)).astype(np.uint8), (WIDTH, HEIGHT))


def pillow(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(file, kind, **options)
    return file.getvalue()


def opencv(ending: str, picture: np.ndarray = PICTURE) -> bytes:
    return cv2.imencode(ending, picture)[1].tobytes()


def second(kind: str) -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.fromarray(PICTURE[:9, :9].copy()).resize((WIDTH, HEIGHT))]}


KINDS = {
    "jpeg": pillow("JPEG"),
    "progressive": pillow("JPEG", progressive=True),
    "grey jpeg": pillow("JPEG", "L"),
    "png": pillow("PNG"),
    "png of two tones": pillow("PNG", "1"),
    "animated png": pillow("PNG", **second("PNG")),
    "gif": pillow("GIF"),
    "animated gif": pillow("GIF", **second("GIF")),
    "bmp": pillow("BMP"),
    "bmp from the top": opencv(".bmp")[:22] + struct.pack("<i", -HEIGHT) + opencv(".bmp")[26:],
    "lossy webp": pillow("WEBP"),
    "lossless webp": pillow("WEBP", lossless=True),
    "webp with alpha": pillow("WEBP", "RGBA"),
    "animated webp": pillow("WEBP", **second("WEBP")),
    "tiff": pillow("TIFF"),
    "tiff of two pages": pillow("TIFF", **second("TIFF")),
    "tiff of 16 bits": opencv(".tif", PICTURE[..., 0].astype(np.uint16)),
    "jpeg 2000": pillow("JPEG2000"),
    "jpeg 2000 stream": pillow("JPEG2000", no_jp2=True),
    "avif": opencv(".avif"),
    "ppm": opencv(".ppm"),
    "pgm": opencv(".pgm", PICTURE[..., 0]),
    "pbm": pillow("PPM", "1"),
    "pam": opencv(".pam"),
    "pfm": opencv(".pfm", PICTURE.astype(np.float32)),
    "grey pfm": opencv(".pfm", PICTURE[..., 0].astype(np.float32)),
    "sun raster": opencv(".ras"),
    "radiance": opencv(".hdr", PICTURE.astype(np.float32)),
}
"""Every kind of file that OpenCV decodes here."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_says_its_size_in_its_header(kind: str) -> None:
    shown = FrameDecoder(by_region=False).open("a.jpg", KINDS[kind])
    assert (shown.width, shown.height) == (WIDTH, HEIGHT)
    assert picture_pixels(KINDS[kind]) == ((WIDTH, HEIGHT), WIDTH * HEIGHT)


@pytest.mark.parametrize("by_region", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_above_the_limit_is_refused_with_its_size_and_the_setting(
    kind: str, by_region: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = FrameDecoder(by_region, max_pixels=WIDTH * HEIGHT - 1)
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BrokenFrame, match=r"a\.jpg cannot be read \(it has 61 × 47 pixels; at most 2,866 .*MAX_PIXELS"):
        decoder.open("a.jpg", KINDS[kind])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def large_png(side: int = 16_000) -> bytes:
    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(side * 100)) for _ in range(side // 100)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def large_tile() -> bytes:
    """A TIFF of 8 × 8 pixels, stored in a tile of 20,000 × 20,000."""
    content = zlib.compress(bytes(1000))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 20_000, 323: 20_000, 324: 8, 325: len(content)}
    place = 8 + len(content) + len(content) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = content + b"\0" * (len(content) % 2)
    return b"II*\0" + struct.pack("<I", place) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


LYING = pillow("JPEG").replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 40_000, 40_000))
BOMBS = {
    "png": large_png(),
    "a jpeg that lies": LYING,
    "a webp that lies": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(80),
    "a tiff of one large tile": large_tile(),
    "a gif that lies": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(100),
}


def test_pictures_that_would_take_all_memory_take_none(tmp_path: Path) -> None:
    """In a process of its own, whose memory tells what was taken."""
    files = [tmp_path / kind for kind in BOMBS]
    for file in files:
        file.write_bytes(BOMBS[file.name])
    program = """if True:
        import resource, sys
        from pathlib import Path
        from seqtrack.data.decoding import BrokenFrame, FrameDecoder
        most = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        before = most()
        for file in sys.argv[1:]:
            try:
                FrameDecoder().open(file, Path(file).read_bytes()).pixels(0, 0, 1, 1)
            except BrokenFrame as error:
                print(error)
        print(most() - before)
    """
    run = subprocess.run([sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True)
    *said, grown = run.stdout.splitlines()
    assert len(said) == len(BOMBS) and all("DATA.MAX_PIXELS" in line for line in said)
    assert int(grown) < 20_000, f"{grown} KiB"


def test_a_tiled_frame_above_the_limit_is_refused() -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((60, 160, 3), np.uint8), [cv2.IMWRITE_JPEG_RST_INTERVAL, 5])[1].tobytes()
    header = read_header(jpeg)
    tiles = TiledJpeg(read_head(jpeg, header), find_row_offsets(jpeg, header))
    with pytest.raises(BrokenFrame, match=r"a\.jpg cannot be read \(it has 160 × 60 pixels"):
        TiledFrame("a.jpg", tiles, lambda start, stop: jpeg[start:stop], 160 * 60 - 1)


@pytest.mark.parametrize("packed", [False, True])
def test_in_training_a_frame_above_the_limit_is_named_and_its_sample_drawn_again(
    packed: bool, tiny_settings: dict[str, Any], tree: Path, tmp_path: Path
) -> None:
    for path in (tree / "coin/coin-1/img").iterdir():
        path.write_bytes(BOMBS["png"] if path.name.endswith("0.jpg") else cv2.imencode(".jpg", PICTURE)[1].tobytes())
    if packed:
        pack(tree, local(tmp_path / "packed"))
    tiny_settings["DATA"]["ROOT"] = str(tmp_path / "packed" if packed else tree)
    config = parse_config(tiny_settings, "tiny")
    problems = [line for number in range(40) for line in source(config).sample(number)[1]]
    assert any("it has 16,000 × 16,000 pixels" in line for line in problems)
    smaller = config.with_settings({"DATA.MAX_PIXELS": WIDTH * HEIGHT - 1})
    with pytest.raises(DataError, match=r"no valid draw in 100 attempts; broken frames: .* at most 2,866 are decoded"):
        source(smaller).sample(0)  # all frames are larger


def source(config: Any) -> TripletSource:
    return TripletSource.from_config(config, open_data(config).mixture)


def test_elsewhere_it_ends_with_a_line(tree: Path, tmp_path: Path) -> None:
    (tree / "coin/coin-1/img/00000001.jpg").write_bytes(BOMBS["png"])
    said = r"coin-1/img/00000001\.jpg cannot be read \(it has 16,000 × 16,000 pixels; .*--max-pixels elsewhere\)"
    with pytest.raises(InputError, match=said):
        opener(local(tree))("coin/coin-1/img/00000001.jpg")
    with pytest.raises(SourceError, match=said):
        list(open_source(str(tree / "coin/coin-1")).shots())


def test_a_video_above_the_limit_is_refused(tmp_path: Path) -> None:
    video = open_source(str(write_video(tmp_path / "a.mp4", [disc(number)[0] for number in range(3)])))
    video.max_pixels = 1000
    with pytest.raises(SourceError, match=r"a\.mp4: its frames have \d+ × \d+ pixels, more than 1,000 \(--max-pixels"):
        list(video.shots())
