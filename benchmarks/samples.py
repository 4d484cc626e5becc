"""Measures how fast one process makes samples from 1280×720 frames, with and without decoding by region.

    python benchmarks/samples.py

The frames are made up. The two ways take turns, so that other load on the machine affects both. Only their ratio
matters.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from seqtrack.config import Config, SyntheticConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.decoding import FrameDecoder
from seqtrack.data.mixture import Mixture
from seqtrack.data.storage import open_root
from seqtrack.data.triplets import TripletSource

ROUNDS, SAMPLES = 7, 60


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "lasot"
        write_synthetic(root, SyntheticConfig(SEQUENCES=4, FRAMES=60, HEIGHT=720, WIDTH=1280))
        config = Config().with_settings(
            {"DATA.ROOT": str(root), "DATA.SPLIT": "all", "DATA.TEMPLATE.NUMBER": 2, "DATA.MAX_SAMPLE_INTERVAL": 400}
        )
        opened = open_root(str(root))
        by_region = TripletSource.from_config(config, Mixture.of_lasot(build_index(config.DATA, opened), opened))
        whole = dataclasses.replace(by_region, decoder=FrameDecoder(by_region=False))
        rates: dict[str, list[float]] = {"by region": [], "whole frames": []}
        for turn in range(ROUNDS):
            for name, source in (("by region", by_region), ("whole frames", whole)):
                began = time.perf_counter()
                for number in range(SAMPLES):
                    source.sample(turn * SAMPLES + number)
                rates[name].append(SAMPLES / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        print(f"{name}: {rate:.0f} samples/s (median of {ROUNDS})")
    print(f"by region is {medians['by region'] / medians['whole frames']:.2f}× as fast")


if __name__ == "__main__":
    main()
