"""Measures time and memory for building the index of the whole benchmark: 1,400 sequences of 2,500 frames.

python benchmarks/index.py
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from seqtrack.config import Config
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.storage import open_root

CLASSES, SEQUENCES, FRAMES = 70, 20, 2500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        boxes = np.random.default_rng(0).integers(1, 500, (FRAMES, 4))
        text, flags = "\n".join(",".join(map(str, box)) for box in boxes), ",".join("0" * FRAMES)
        for class_number in range(CLASSES):
            for number in range(1, SEQUENCES + 1):
                sequence = Path(folder) / f"class{class_number}" / f"class{class_number}-{number}"
                sequence.mkdir(parents=True)
                (sequence / "groundtruth.txt").write_text(text)
                (sequence / "full_occlusion.txt").write_text(flags)
                (sequence / "out_of_view.txt").write_text(flags)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        index = build_index(Config().with_settings({"DATA.SPLIT": "all"}).DATA, open_root(folder))
        seconds = time.perf_counter() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{len(index.names):,} sequences, {index.num_frames:,} frames in {seconds:.1f} s")
    print(
        f"index {index.table.nbytes / 1e6:.0f} MB; the process grew by at most {grown / 1e3:.0f} MB while building it"
    )


if __name__ == "__main__":
    main()
