from __future__ import annotations

import io
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from seqtrack.data.decoding import BrokenFrame, FrameDecoder

NOISE = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
SMOOTH = cv2.resize(NOISE[:12, :16], (80, 60))


def encode(image: np.ndarray, extension: str = ".jpg") -> bytes:
    return cv2.imencode(extension, image)[1].tobytes()


@pytest.fixture(params=[False, True], ids=["opencv", "nvimgcodec"])
def decoder(request: pytest.FixtureRequest) -> FrameDecoder:
    if request.param:
        pytest.importorskip("nvidia.nvimgcodec", reason="nvidia-nvimgcodec-cu12 is not installed")
    return FrameDecoder(by_region=request.param)


def test_a_jpeg_decodes_to_rgb(decoder: FrameDecoder) -> None:
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    frame = decoder.open("a.jpg", encode(red))
    assert (frame.width, frame.height) == (24, 16)
    pixel = frame.pixels(4, 4, 8, 10)[2, 2]
    assert pixel[0] > 250
    assert pixel[2] < 5


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a jpeg",
        b"\xff\xd8 neither \xff\xd9",
        encode(NOISE)[: len(encode(NOISE)) // 2],
        encode(NOISE, ".png")[:100],
    ],
    ids=["empty", "text", "no picture", "cut off", "cut off png"],
)
def test_broken_bytes_are_refused_by_name(decoder: FrameDecoder, data: bytes) -> None:
    with pytest.raises(BrokenFrame, match=r"^a\.jpg cannot be read \("):
        decoder.open("a.jpg", data).pixels(0, 0, 1, 1)


def pillow(kind: str, mode: str = "RGB", picture: np.ndarray = SMOOTH, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int, **options: Any) -> bytes:
    """A JPEG with this EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow("JPEG", exif=exif, **options)


def exif_of(data: bytes) -> bytes:
    """The EXIF segment of a JPEG."""
    start = data.index(b"\xff\xe1")
    return data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4])]


def depth_16() -> bytes:
    return encode(SMOOTH.astype(np.uint16) * 257, ".png")


THUMBNAIL = pillow("JPEG", picture=SMOOTH[:8, :8].copy())
WITH_THUMBNAIL = pillow("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + THUMBNAIL)
KINDS = {
    **{f"orientation {number}": turned(number) for number in range(1, 9)},
    "turned grey": turned(6, mode="L"),
    "orientation 9": turned(9),
    "two orientations": turned(6)[:2] + exif_of(turned(8)) + turned(6)[2:],
    "exif that is none": pillow("JPEG", exif=b"Exif\0\0nothing of the kind"),
    "cmyk": pillow("JPEG", "CMYK"),
    "rgb in the file": pillow("JPEG", keep_rgb=True),
    "grey": pillow("JPEG", "L"),
    "progressive": pillow("JPEG", progressive=True),
    "bytes after the end": pillow("JPEG") + b"\0" * 1000 + b"camera",
    "a second picture after the end": pillow("JPEG") + pillow("JPEG", "L"),
    "a thumbnail": WITH_THUMBNAIL,
    "bytes between segments": pillow("JPEG")[:20] + b"\0\0\xff\xff" + pillow("JPEG")[20:],
    "png": pillow("PNG"),
    "png with alpha": pillow("PNG", "RGBA"),
    "png with palette": pillow("PNG", "P"),
    "png of two tones": pillow("PNG", "1"),
    "png of 16 bits": depth_16(),
    "webp": pillow("WEBP"),
    "bmp": pillow("BMP"),
    "gif": pillow("GIF"),
}
"""What may be in a file called .jpg, by what it is."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_is_shown_as_imread_shows_it(decoder: FrameDecoder, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(KINDS[kind])
    shown = np.asarray(cv2.imread(str(tmp_path / "a.jpg")))[..., ::-1]
    frame = decoder.open("a.jpg", KINDS[kind])
    assert (frame.height, frame.width) == shown.shape[:2]
    for left, top, right, bottom in (
        (0, 0, frame.width, frame.height),
        (7, 11, 50, 40),
        (frame.width - 9, 0, frame.width, 5),
    ):
        np.testing.assert_array_equal(frame.pixels(left, top, right, bottom), shown[top:bottom, left:right])


def test_a_picture_that_is_shown_turned_has_its_sides_exchanged(decoder: FrameDecoder) -> None:
    sizes = {number: decoder.open("a.jpg", turned(number)) for number in range(1, 9)}
    assert [(frame.width, frame.height) for frame in sizes.values()] == [(80, 60)] * 4 + [(60, 80)] * 4


@pytest.mark.parametrize("kind", ["plain", "progressive", "thumbnail", "turned"])
def test_a_jpeg_that_is_cut_off_anywhere_is_refused(decoder: FrameDecoder, kind: str) -> None:
    data = {
        "plain": pillow("JPEG"),
        "progressive": pillow("JPEG", progressive=True),
        "thumbnail": WITH_THUMBNAIL,
        "turned": turned(6),
    }[kind]
    for size in range(2, len(data) - 1, 7):
        with pytest.raises(BrokenFrame, match=r"^a\.jpg cannot be read \(the JPEG is cut off\)"):
            decoder.open("a.jpg", data[:size])


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"),
        (b"\0" * 500, "it holds nothing but zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "it is a web page"),
        (b"\xff\xd8\xff\xd9", "a JPEG without a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_named_for_what_it_is(decoder: FrameDecoder, data: bytes, what: str) -> None:
    with pytest.raises(BrokenFrame, match=rf"^a\.jpg cannot be read \({what}"):
        decoder.open("a.jpg", data)


def test_a_decoder_can_be_sent_to_another_process(decoder: FrameDecoder) -> None:
    frame = pickle.loads(pickle.dumps(decoder)).open("a.jpg", encode(NOISE))
    np.testing.assert_array_equal(frame.pixels(0, 0, 80, 60), decoder.open("a.jpg", encode(NOISE)).pixels(0, 0, 80, 60))


def pictures(folder: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[::40])


def assert_parts_are_equal(data: bytes, seed: int) -> None:
    """Compares ten random parts of a picture, decoded by nvimgcodec and by OpenCV."""
    generator = random.Random(seed)
    whole, parts = FrameDecoder(by_region=False).open("a", data), FrameDecoder().open("a", data)
    assert (whole.width, whole.height) == (parts.width, parts.height)
    for _ in range(10):
        left, right = sorted(generator.sample(range(whole.width + 1), 2))
        top, bottom = sorted(generator.sample(range(whole.height + 1), 2))
        np.testing.assert_array_equal(parts.pixels(left, top, right, bottom), whole.pixels(left, top, right, bottom))


@pytest.mark.parametrize("subsampling", ["IMWRITE_JPEG_SAMPLING_FACTOR_420", "IMWRITE_JPEG_SAMPLING_FACTOR_444"])
@pytest.mark.parametrize("channels", [1, 3])
def test_parts_have_the_pixels_of_the_whole(subsampling: str, channels: int) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvidia-nvimgcodec-cu12 is not installed")
    image = NOISE if channels == 3 else NOISE[..., 0]
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, subsampling), cv2.IMWRITE_JPEG_QUALITY, 80]
    assert_parts_are_equal(cv2.imencode(".jpg", image, flags)[1].tobytes(), seed=0)


def test_parts_of_real_frames_have_the_pixels_of_the_whole(shared_data: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvidia-nvimgcodec-cu12 is not installed")
    for seed, data in enumerate(pictures(shared_data / "sequences")):
        assert_parts_are_equal(data, seed)


def test_odd_pictures_have_the_same_pixels_in_parts_and_as_a_whole(shared_data: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvidia-nvimgcodec-cu12 is not installed")
    for seed, path in enumerate(sorted((shared_data / "field").glob("*.jpg"))):
        assert_parts_are_equal(path.read_bytes(), seed)


def test_damaged_exif_is_read_alike_by_both_decoders() -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvidia-nvimgcodec-cu12 is not installed")
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(turned(generator.randint(1, 8)))
        segment = data.index(b"\xff\xe1")
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(segment + 4, segment + len(exif_of(bytes(data))))] = generator.randrange(256)
        assert_parts_are_equal(bytes(data), seed=0)
