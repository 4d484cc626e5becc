"""What tracking leaves beside a video: a table, and the text files that the field's tools read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from seqtrack.evaluation.results import box_line, time_line
from seqtrack.tracker.sources import Shot
from seqtrack.tracker.tracker import Tracked

COLUMNS = ("frame", "time", "target", "x", "y", "w", "h", "confidence")


class Tables:
    """`boxes.csv` and, for each target, a text file in the format that all tools share, with its times beside it."""

    def __init__(self, folder: Path, name: str, targets: int, place: Callable[[Path], Path]) -> None:
        """`place`: gives the path that a file is written to for now."""
        names = [name] if targets == 1 else [f"{name}_{target + 1}" for target in range(targets)]
        self.files = [folder / "boxes.csv", *(folder / f"{one}.txt" for one in names)]
        times = [folder / f"{one}_time.txt" for one in names]
        self._open: list[TextIO] = [
            place(path).open("w", encoding="utf-8", newline="") for path in (*self.files, *times)
        ]
        self._csv = csv.writer(self._open[0])
        self._csv.writerow(COLUMNS)
        self._targets = targets

    def write(self, shot: Shot, found: Sequence[Tracked], seconds: float) -> None:
        """`seconds`: what finding the targets took. Boxes have four decimals: to whole pixels, small targets lose."""
        for target, one in enumerate(found):
            line = box_line(one.box_xywh)
            self._csv.writerow([shot.number, f"{shot.seconds:.6f}", target + 1, *line.split(), f"{one.confidence:.4f}"])
            self._open[1 + target].write(line)
            self._open[1 + self._targets + target].write(time_line(seconds / len(found)))

    def close(self) -> None:
        """Raises OSError where what was written last does not fit on the disk; all files are closed then, too."""
        with ExitStack() as stack:
            for file in self._open:
                stack.callback(file.close)
