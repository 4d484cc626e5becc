"""Runs the checks of benchmarks/gpu.py, each in a process of its own. It imports nothing heavy."""

from __future__ import annotations

import multiprocessing
import pkgutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Check:
    """A check, and the most time that it may take of nine minutes."""

    name: str
    function: str
    """`module:function`. It is given a `Bench` and the arguments, and yields the lines of a table."""
    seconds: float
    arguments: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What became of a check."""

    name: str
    title: str = ""
    result: str = "passed"
    """`passed`, `failed` (something that should hold does not), `error` (something could not be measured) or
    `skipped`."""
    seconds: float = 0.0
    error: str = ""
    traceback: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def judge(self) -> None:
        """Sets `result` by what is there."""
        if any(row.get("ok") is False for row in self.rows):
            self.result = "failed"
        elif self.error or any("error" in row for row in self.rows):
            self.result = "error"


def run(check: Check, compiles: bool, limit: float) -> Outcome:
    """Runs a check in a process of its own, for `limit` seconds at most, and prints its lines as they come."""
    outcome, began = Outcome(check.name), time.monotonic()
    context = multiprocessing.get_context("forkserver")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(check, compiles, sending))
    process.start()
    sending.close()
    try:
        while True:
            # Processes that it started can hold the connection open, so its end is waited for as well.
            if not wait((receiving, process.sentinel), max(began + limit - time.monotonic(), 0)):
                outcome.error = f"stopped after {limit:.0f} s, its limit; what it had measured until then is kept"
                break
            if not receiving.poll():
                raise EOFError
            message = receiving.recv()
            if message is None:
                break
            for name, value in message.items():
                if name == "row":
                    outcome.rows.append(value)
                    print(f"  {check.name}: {one_line(value)}", flush=True)
                else:
                    setattr(outcome, name, value)
    except EOFError:
        process.join()
        outcome.error = f"its process died (exit code {process.exitcode})"
    finally:
        process.kill()
        process.join()
    outcome.seconds = time.monotonic() - began
    outcome.judge()
    return outcome


def work(check: Check, compiles: bool, sending: Connection) -> None:
    """What a check's process does: sends the title, each line when it is measured, an error, and None at the end."""
    try:
        from benchmarks.gpu_bench import Bench  # imported here, because it imports torch

        function = pkgutil.resolve_name(check.function)
        sending.send({"title": " ".join(function.__doc__.split())})
        for row in function(Bench.here(compiles), *check.arguments):
            sending.send({"row": row})
    except Exception as error:
        sending.send(explained(error))
    sending.send(None)


def explained(error: Exception) -> dict[str, Any]:
    """What is kept of an error that is being handled."""
    first = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"error": first, "traceback": traceback.format_exc().splitlines()[-12:]}


def one_line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {shown(value)}" for name, value in row.items() if name != "traceback")


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
