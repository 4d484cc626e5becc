"""Measures what a crop of a JPEG costs: decoded from the whole frame, by region with nvimgcodec, and by tiles.

    python -m benchmarks.tiles VIDEO_OR_FOLDER [--regions 100000]

Frames are a folder's JPEGs, or those of a video, written as JPEGs of quality 50 (85 KB at 1280×720). The sizes of crops
are those of SeqTrack's search regions: 4 times the square root of a box's area. Everything is tiled first; then the
ways take turns on the same crops, so that other load on the machine affects all of them. Only ratios matter. In the
end, as many random regions as asked for are compared with the whole frame, pixel by pixel: of the frames, and of JPEGs
of noise of every kind.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data.decoding import FrameDecoder, TiledFrame
from seqtrack.data.heads import NotTiled, read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.tiles import TiledJpeg, find_row_offsets
from seqtrack.data.tiling import TiledFile, tile

FRAMES, ROUNDS, PER_PICTURE = 40, 5, 100
CROPS = (160, 272, 400, 600)
"""Sides of search regions. LaSOT's median for boxes of coins and kites is 272."""
KINDS = ("411", "420", "422", "440", "444", "grey")

Region = tuple[int, int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of JPEGs, or a video")
    parser.add_argument("--regions", type=int, default=2_000, help="how many random regions are compared (2000)")
    arguments = parser.parse_args()
    frames = list(read_frames(arguments.source))
    pairs = measure_tiling(frames)
    measure_crops(pairs)
    compare(itertools.cycle([tiled.content for _, tiled in pairs]), arguments.regions)


def read_frames(source: Path) -> Iterator[bytes]:
    """FRAMES JPEGs, spread over the folder or the video."""
    if source.is_dir():
        paths = sorted(source.rglob("*.jpg"))
        yield from (path.read_bytes() for path in paths[:: max(len(paths) // FRAMES, 1)][:FRAMES])
        return
    video = cv2.VideoCapture(str(source))
    step = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // FRAMES, 1)
    for number in range(FRAMES):
        video.set(cv2.CAP_PROP_POS_FRAMES, number * step)
        found, frame = video.read()
        if found:
            yield cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()


def tile_or_none(frame: bytes) -> TiledFile | None:
    try:
        return tile(frame)
    except NotTiled:
        return None


def measure_tiling(frames: list[bytes]) -> list[tuple[bytes, TiledFile]]:
    """Each frame that can be tiled, before and after."""
    began = time.perf_counter()
    results = [tile_or_none(frame) for frame in frames]
    alone = len(frames) / (time.perf_counter() - began)
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tile_or_none, frames))
    together = len(frames) / (time.perf_counter() - began)
    pairs = [(frame, tiled) for frame, tiled in zip(frames, results, strict=True) if tiled is not None]
    if not pairs:
        raise SystemExit(f"none of {len(frames)} frames can be tiled")
    before, after = sum(len(frame) for frame, _ in pairs), sum(len(tiled.content) for _, tiled in pairs)
    print(
        f"{len(pairs)} of {len(frames)} frames can be tiled; {before / len(pairs) / 1000:.0f} KB each, "
        f"{100 * (after / before - 1):+.1f} % as tiles, {len({tiled.head for _, tiled in pairs})} different heads"
    )
    print(f"tiling and comparing: {alone:.0f} frames/s, two threads {together:.0f} frames/s")
    return pairs


def tiled_frame(tiled: TiledFile) -> tuple[TiledFrame, list[int]]:
    """A frame as it is opened from a packed tree, and the bytes that it read, each time."""
    content, read = tiled.content, []

    def part(start: int, stop: int | None) -> bytes:
        read.append(len(content[start:stop]))
        return content[start:stop]

    sizes = np.frombuffer(tiled.row_sizes, "<u2")
    return TiledFrame("a", TiledJpeg.of_sizes(tiled.head, sizes, len(content)), part), read


def measure_crops(pairs: list[tuple[bytes, TiledFile]]) -> None:
    """Prints time and bytes of a crop, for each size of crops and each way to decode."""
    whole, by_region = FrameDecoder(by_region=False), FrameDecoder()
    ways: dict[str, Callable[[int, Region], object]] = {
        "whole frame": lambda number, region: whole.open("a", pairs[number][0]).pixels(*region),
        "nvimgcodec": lambda number, region: by_region.open("a", pairs[number][0]).pixels(*region),
        "tiles": lambda number, region: tiled_frame(pairs[number][1])[0].pixels(*region),
    }
    print(
        "crop   "
        + "".join(f"{way + ', ms':>17}" for way in ways)
        + "   whole/tiles   nvimgcodec/tiles   KB read   share"
    )
    for side in CROPS:
        times: dict[str, list[float]] = {way: [] for way in ways}
        sizes, shares = [], []
        generator = random.Random(side)
        for number in [*range(len(pairs))] * ROUNDS:
            tiled = pairs[number][1]
            header = read_header(tiled.content)
            region = crop_of(generator, side, header.width, header.height)
            for way, decode in ways.items():
                began = time.perf_counter()
                decode(number, region)
                times[way].append(1000 * (time.perf_counter() - began))
            frame, read = tiled_frame(tiled)
            frame.pixels(*region)
            sizes.append(sum(read) / 1000)
            shares.append(sum(read) / len(tiled.content))
        medians = {way: statistics.median(values) for way, values in times.items()}
        print(f"{f'{side}²':<7}" + "".join(f"{value:17.2f}" for value in medians.values()), end="")
        print(f"{medians['whole frame'] / medians['tiles']:14.1f}", end="")
        print(f"{medians['nvimgcodec'] / medians['tiles']:19.1f}{statistics.median(sizes):10.1f}", end="")
        print(f"{100 * statistics.mean(shares):6.0f} %")


def crop_of(generator: random.Random, side: int, width: int, height: int) -> Region:
    """A square within the picture, or what of it is."""
    left, top = generator.randint(0, max(width - side, 0)), generator.randint(0, max(height - side, 0))
    return left, top, min(left + side, width), min(top + side, height)


def compare(tiled: Iterator[bytes], regions: int) -> None:
    """Compares random regions of real frames and of noise, in turn."""
    generator = random.Random(0)
    whole = FrameDecoder(by_region=False)
    different = done = 0
    for turn in itertools.count():
        if done >= regions:
            break
        content = next(tiled) if turn % 2 else noise(generator)
        header = read_header(content)
        picture = whole.open("a", content).pixels(0, 0, header.width, header.height)
        parts = TiledJpeg(read_head(content, header), find_row_offsets(content, header))
        for _ in range(min(PER_PICTURE, regions - done)):
            left, top = generator.randrange(header.width), generator.randrange(header.height)
            right, bottom = generator.randint(left + 1, header.width), generator.randint(top + 1, header.height)
            if generator.random() < 0.7:  # regions of a crop's size
                right, bottom = min(right, left + 300), min(bottom, top + 300)
            part = parts.pixels(content, left, top, right, bottom)
            different += not np.array_equal(part, picture[top:bottom, left:right])
            done += 1
    print(f"{done} random regions of {turn} pictures compared with the whole: {different} differ")
    if different:
        raise SystemExit(1)


def noise(generator: random.Random) -> bytes:
    """A JPEG of smoothed noise with restart markers: any size, resolution of colours and quality."""
    kind = generator.choice(KINDS)
    width, height = generator.randint(1, 700), generator.randint(1, 500)
    mcu = {"grey": 8, "444": 8, "440": 8, "411": 32}.get(kind, 16)
    mcus = -(-width // mcu)
    interval = generator.choice([count for count in range(2, mcus) if mcus % count == 0] + [mcus])
    random_state = np.random.default_rng(generator.randrange(2**32))
    small = random_state.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    image = cv2.resize(small, (width, height))
    flags = [cv2.IMWRITE_JPEG_QUALITY, generator.randint(5, 100), cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    if kind == "grey":
        image = image[..., 0]
    else:
        flags += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{kind}")]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


if __name__ == "__main__":
    main()
