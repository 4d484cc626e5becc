"""What processes of the tests of leases do. Imports little, because each of eight processes imports it."""

from __future__ import annotations

from typing import Any

from seqtrack.lease import OwnedError, owned
from seqtrack.locations import child, filesystem_at


def own(location: str, take_over: bool = False) -> Any:
    return owned(*filesystem_at(location), location, take_over)


def claim_all(location: str, rounds: int, barrier: Any, results: Any) -> None:
    """Claims the folders `run-0`, `run-1` … at the same time as all others, and says of each what came of it."""
    for number in range(rounds):
        barrier.wait()
        try:
            with own(child(location, f"run-{number}")):
                results.put((number, "owned"))
                barrier.wait()  # until all have won or lost
        except OwnedError:
            results.put((number, "refused"))
            barrier.wait()
