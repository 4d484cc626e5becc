"""Damages valid files in many ways and reads them: each reader returns, or raises InputError, soon, in little memory.

    python -m benchmarks.fuzz --seconds 60 [--reader weights --reader shards] [--seed 7]

Each reader (tests/readers.py) runs in a process of its own, whose memory is limited. Hypothesis chooses what is damaged
and how: bits, cuts, removed and repeated parts, numbers, and parts that such files have. A finding is any other error;
an input that takes more than 10 s; memory of more than 256 MiB beyond what the process had; a process that dies; code
from the file that was run, for which some of the files are attacks. It prints, for each reader:

    weights: 21,000 inputs, 1,312 read, 19,688 refused, at most 3 MiB each

A finding's input is kept, its line says where, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from seqtrack.errors import InputError
from tests.readers import CANARY, READERS, Original, Reader

MOST_SECONDS = 10
"""Longest time for one input."""
MOST_BYTES = 256 << 20
"""Most memory for one input."""
LIMIT_BYTES = 1 << 30
"""Address space of a process beyond what it has when it begins: more than that fails."""
DEEPEST = 1200
"""Python's own limit of nested calls, and what hypothesis needs."""
ROUND = 500
"""Inputs after which hypothesis begins anew, with another seed."""
EXTREMES = (0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


class Damaged(NamedTuple):
    """An input: what it was, and its content now."""

    original: Original
    content: bytes

    def __repr__(self) -> str:
        return f"{self.original.name}, {len(self.content)} bytes"


class Finding(AssertionError):
    """A reader did what it must not."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files, and say what the readers did.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each reader")
    parser.add_argument("--reader", action="append", choices=[*READERS], help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="of the damage; unset: another one each time")
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    number = random.randrange(10**6) if options.seed is None else options.seed
    names = options.reader or [*READERS]
    if options.in_folder is not None:
        return fuzz(names[0], options.in_folder, number, options.seconds)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"Seed {number}, in {folder}", flush=True)
    found = [name for name in names if not fuzz_apart(name, folder / name, number, options.seconds)]
    if found:
        print(f"findings: {', '.join(found)}; the inputs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def fuzz_apart(name: str, folder: Path, number: int, seconds: float) -> bool:
    """Whether a reader, in a process of its own, did all it should."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.fuzz", "--reader", name, "--in-folder", str(folder)]
    ended = subprocess.run([*command, "--seed", str(number), "--seconds", str(seconds)])
    if ended.returncode < 0:
        what = "took too long" if ended.returncode == -signal.SIGALRM else signal.Signals(-ended.returncode).name
        print(f"{name}: FINDING: {what}; its input: {folder / 'input'}", flush=True)
    return ended.returncode == 0


def fuzz(name: str, folder: Path, number: int, seconds: float) -> int:
    """Reads damaged files until the time is over, in this process."""
    (folder / "files").mkdir()
    reader, trial = READERS[name](folder / "files"), Trial(folder)
    used = read_status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    ends, counted, code = time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends and not code:
        try:
            read_many(reader, trial, number * 1_000_003 + counted, ROUND, ends)
        except Exception as error:
            kept = f"its input: {folder / 'input'}"
            (folder / "traceback").write_text(traceback.format_exc(), "utf-8")
            print(f"{name}: FINDING: {type(error).__name__}: {str(error)[:300]}; {kept}", flush=True)
            code = 1
        counted += 1
    print(
        f"{name}: {trial.read + trial.refused:,} inputs, {trial.read:,} read, {trial.refused:,} refused, "
        f"at most {trial.most_bytes / 2**20:.0f} MiB each",
        flush=True,
    )
    return code


class Trial:
    """Reads inputs one by one, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read = self.refused = self.most_bytes = 0

    def run(self, reader: Reader, damaged: Damaged) -> None:
        """Raises Finding, or whatever else than InputError the reader raises."""
        (self.folder / "input").write_bytes(damaged.content)
        (self.folder / "input.of").write_text(damaged.original.name, "utf-8")
        damaged.original.place(damaged.content)
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forgets the highest memory use
        before = read_status("VmRSS")
        deepest = sys.getrecursionlimit()
        sys.setrecursionlimit(DEEPEST)  # hypothesis allows more
        signal.alarm(MOST_SECONDS)
        try:
            reader.read()
            self.read += 1
        except InputError as error:
            self.refused += 1
            if ran_out_of_memory(error):
                raise Finding(f"more than {LIMIT_BYTES >> 20} MiB were asked for") from error
        finally:
            signal.alarm(0)
            sys.setrecursionlimit(deepest)
            damaged.original.undo()
        grown = read_status("VmHWM") - before
        self.most_bytes = max(self.most_bytes, grown)
        if grown > MOST_BYTES:
            raise Finding(f"{grown >> 20} MiB of memory")
        if (self.folder / "files" / CANARY).exists():
            raise Finding("code from the file was run")


def read_many(reader: Reader, trial: Trial, number: int, count: int, ends: float = float("inf")) -> None:
    """Reads `count` damaged files, or as many as there is time for. Raises the first finding, made small."""

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(damaged_files(reader))
    def read_one(damaged: Damaged) -> None:
        if time.monotonic() < ends:
            trial.run(reader, damaged)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_one()


@st.composite
def damaged_files(draw: st.DrawFn, reader: Reader) -> Damaged:
    """One of a reader's files after one to six damages."""
    original = draw(st.sampled_from(reader.originals))
    content = original.content
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3, 6)))):
        content = damage(draw, content, reader)
    return Damaged(original, content)


def damage(draw: st.DrawFn, content: bytes, reader: Reader) -> bytes:
    """The content with one damage anywhere."""
    start = draw(st.integers(0, len(content)))
    end = min(start + draw(st.sampled_from((1, 2, 4, 8, 30, 200, 2000))), len(content))
    before, part, after = content[:start], content[start:end], content[end:]
    kind = draw(st.sampled_from(("bit", "cut", "remove", "repeat", "number", "word", "words over", "splice", "bytes")))
    if kind == "bit":
        return before + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in part[:1]) + content[start + 1 :]
    if kind == "cut":
        return before
    if kind == "remove":
        return before + after
    if kind == "repeat":
        return before + part * draw(st.sampled_from((2, 3, 50))) + after
    if kind == "number":
        width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
        value: Any = draw(st.sampled_from(EXTREMES)) % 256**width
        return before + value.to_bytes(width, order) + content[start + width :]
    if kind == "splice":
        other = draw(st.sampled_from(reader.originals)).content
        at = draw(st.integers(0, len(other)))
        return before + other[at : at + 200] + after
    word = draw(st.binary(max_size=8)) if kind == "bytes" else draw(st.sampled_from(reader.words))
    return before + word + (content[start + len(word) :] if kind == "words over" else content[start:])


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is behind an error."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, MemoryError) or "allocate" in str(current) or "out of memory" in str(current):
            return True
        current = current.__cause__ or current.__context__
    return False


def read_status(name: str) -> int:
    """One of this process's sizes in bytes, as Linux counts them."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
