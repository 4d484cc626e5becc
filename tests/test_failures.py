"""What the errors of other libraries become."""

from __future__ import annotations

import errno

import pytest

from seqtrack.failures import explain


class RayTaskError(Exception):
    """An error like Ray's: it carries the error of a task, and prints its traceback."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("\x1b[36mray::read()\x1b[39m (pid=1)\n  File …")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "/data/x: no space is left there"),
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "/data: permission is denied"),
        (ValueError("first\nsecond"), "first"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("\n\n \x1b[31mred\x1b[0m\n"), "RuntimeError: red"),
        (RayTaskError(ValueError("the box is empty")), "the box is empty"),
        (ValueError("postgresql://me:secret@host/db is down"), "postgresql://host/db is down"),
        (ValueError("mysql://me:se/cr@et@host/db is down"), "mysql://host/db is down"),
        (ValueError("Illegal header value b'Bearer se cret'"), "Illegal header value b'Bearer '"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "the Python package x is not installed"),
        (ValueError("x" * 1000), "x" * 298 + " …"),
    ],
)
def test_an_error_is_explained_in_one_line(error: Exception, said: str) -> None:
    assert explain(error) == said


def test_an_empty_error_is_explained_by_its_cause() -> None:
    error = RuntimeError()
    error.__cause__ = ValueError("the store is locked")
    assert explain(error) == "the store is locked"
