from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.data.decoding import BrokenFrame, FrameDecoder

NOISE = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)


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
