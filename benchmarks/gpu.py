"""Checks and measures everything that needs a GPU, in one run of some minutes, without Ray and MLflow.

    python -m benchmarks.gpu [--minutes 9] [--only exact speed_b256] [--output gpu.json]

Each check runs in a process of its own, so that one that fails, hangs or runs out of memory is reported and the others
go on. The most valuable come first, each has a limit of time, and those for which none is left are named. After each
check the results so far are in the JSON file. At the end, tables of all of them are printed as Markdown. Without a GPU
the same checks run on the CPU with the demo's model, in seconds; its compiled ways only with `--compile`.

It needs torch 2.11, torchvision, timm, numpy, opencv, pyarrow, safetensors, huggingface_hub, pydantic and pyyaml.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_run import Check, Outcome, one_line, run, shown

HELD_BACK = 5.0
"""Seconds of the time that are kept for the end."""
MACHINE = Check("machine", "benchmarks.gpu_machine:machine", 60)
FIRST = (
    Check("golden", "benchmarks.gpu_exact:golden", 40),
    Check("exact", "benchmarks.gpu_exact:exact", 150),
)
LAST = (
    Check("slots", "benchmarks.gpu_exact:slots", 30),
    Check("copies", "benchmarks.gpu_copies:copies", 35),
    Check("tracker", "benchmarks.gpu_speed:tracker", 40),
    Check("determinism", "benchmarks.gpu_speed:determinism", 30),
)
LARGEST = Check("largest", "benchmarks.gpu_speed:largest", 60)
SPEED_SECONDS = {"b256": 70, "l256": 50, "l384": 70, "b384": 50}


def checks(on_gpu: bool) -> list[Check]:
    """All checks, the most valuable first."""
    speed = [
        Check(f"speed_{recipe}", "benchmarks.gpu_speed:speed", seconds, (recipe,))
        for recipe, seconds in (SPEED_SECONDS if on_gpu else {"demo": 60}).items()
    ]
    return [*FIRST, speed[0], *LAST, *speed[1:2], LARGEST, *speed[2:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks only")
    parser.add_argument("--compile", action="store_true", help="compiled ways on a CPU too")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    try:
        options.output.touch()
    except OSError as error:
        parser.error(f"--output {options.output}: {error.strerror}")
    began = time.monotonic()
    ends = began + 60 * options.minutes - HELD_BACK
    # All processes are copies of one that has imported torch, since this takes seconds. It never touches the GPU.
    multiprocessing.set_forkserver_preload(["benchmarks.gpu_exact", "benchmarks.gpu_speed", "benchmarks.gpu_copies"])
    found = run(MACHINE, options.compile, MACHINE.seconds)
    machine = found.rows[0] if found.rows else {"error": found.error, "traceback": found.traceback}
    every = checks(machine.get("device") == "cuda")
    if unknown := set(options.only or ()) - {check.name for check in every}:
        parser.error(f"--only {' '.join(sorted(unknown))}: the checks are {', '.join(check.name for check in every)}")
    outcomes: list[Outcome] = []
    for check in every:
        if options.only and check.name not in options.only:
            continue
        planned = check.seconds * options.minutes / 9
        limit = min(planned, ends - time.monotonic())
        if limit < planned / 3:
            outcome = Outcome(check.name, result="skipped", error=f"no time was left of {options.minutes:g} minutes")
        else:
            outcome = run(check, options.compile, limit)
        print(f"{check.name}: {outcome.result} after {outcome.seconds:.0f} s {outcome.error}".rstrip(), flush=True)
        outcomes.append(outcome)
        results = {"machine": machine, "minutes": options.minutes, "checks": [asdict(one) for one in outcomes]}
        options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"\n{report(machine, outcomes)}\n\n{time.monotonic() - began:.0f} s; all numbers are in {options.output}")
    sys.exit(any(outcome.result in ("failed", "error") for outcome in outcomes))


def report(machine: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """All results as Markdown."""
    parts = [one_line(machine)]
    for outcome in outcomes:
        parts.append(f"### {outcome.name}: {outcome.result}")
        parts += filter(None, [outcome.title, outcome.error, table(outcome.rows)])
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a column for each key, in the order in which they first come."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "traceback"]
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
