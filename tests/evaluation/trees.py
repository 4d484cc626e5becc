"""Small copies of benchmarks, with empty files for frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from seqtrack.evaluation.benchmarks import BenchmarkData, benchmark_named, open_benchmark

BOX = "10,20,30,40\n"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_frames(folder: Path, numbers: Iterable[int], digits: int = 8, ending: str = ".jpg") -> None:
    for number in numbers:
        write(folder / f"{number:0{digits}d}{ending}")


def write_lasot(root: Path, name: str, frames: int = 3, flags: bool = True) -> Path:
    folder = root / name.rpartition("-")[0] / name
    write(folder / "groundtruth.txt", BOX * frames)
    if flags:
        write(folder / "full_occlusion.txt", ",".join("0" * frames))
        write(folder / "out_of_view.txt", ",".join("0" * (frames - 1) + "1"))
    write_frames(folder / "img", range(1, frames + 1))
    return folder


def write_got10k(root: Path, part: str, number: int, frames: int = 3) -> Path:
    folder = root / part / f"GOT-10k_{part.capitalize()}_{number:06d}"
    write(folder / "groundtruth.txt", BOX * (frames if part == "val" else 1))
    if part == "val":
        write(folder / "cover.label", "8\n" * (frames - 1) + "0\n")
        write(folder / "meta_info.ini", "[METAINFO]\nobject_class: bear\nresolution: (1920, 1080)\n")
    write_frames(folder, range(1, frames + 1))
    return folder


def write_trackingnet(root: Path, name: str, frames: int = 12) -> None:
    write(root / f"TEST/anno/{name}.txt", BOX)
    write_frames(root / "TEST/frames" / name, range(frames), digits=1)


def opened(name: str, root: Path, with_frames: bool = True) -> BenchmarkData:
    return open_benchmark(benchmark_named(name), str(root), with_frames)
