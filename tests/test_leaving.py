"""How a process ends: with the exit code of its program, whatever threads are left, and whatever signal came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.training.runs import REPOSITORY

PROGRAM = """
import atexit, os, signal, sys, tempfile, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from seqtrack.commands.program import prepare_output, run_as_process, run_program
from seqtrack.errors import InputError, Stopped

INSIDE

def program():
    atexit.register(print, "said at exit", file=sys.stderr)
    threading.Thread(target=inside, name="inside", daemon=True).start()
    begun.wait(30)
    print("begun", flush=True)
    END

prepare_output()
run_as_process(lambda: run_program(program, "To go on: again"))
"""
INSIDE = {
    "torch": """
import torch
begun, a = threading.Event(), torch.rand(300, 300, requires_grad=True)
def inside():
    while True:  # forwards, and backwards, whose threads are of C++
        (a @ a).sum().backward()
        begun.set()
""",
    "pyarrow": """
import pyarrow as pa, pyarrow.compute as pc
begun, a = threading.Event(), pa.array(range(2000000))
def inside():
    while True:
        pc.sort_indices(a)
        begun.set()
""",
    "grpc": """
import grpc
begun = threading.Event()
def inside():
    begun.set()
    while True:
        try:
            grpc.channel_ready_future(grpc.insecure_channel("127.0.0.1:9")).result(timeout=0.01)
        except grpc.FutureTimeoutError:
            pass
""",
    "OpenCV": """
import cv2, numpy as np
begun, a = threading.Event(), np.zeros((2000, 2000, 3), np.uint8)
def inside():
    while True:
        cv2.GaussianBlur(a, (0, 0), 5)
        begun.set()
""",
}
ENDS = {
    "return 0": (0, ""),
    "raise Stopped(15)": (143, ""),
    "os.kill(os.getpid(), 15); time.sleep(60)": (143, ""),
    "os.kill(os.getpid(), 2); time.sleep(60)": (130, "\nTo go on: again\n"),
    "raise InputError('x')": (2, "error: x\n"),
    "sys.exit(3)": (3, ""),
}


def start(inside: str, end: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("INSIDE", INSIDE[inside]).replace("END", end)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "end"),
    [*((one, "raise Stopped(15)") for one in INSIDE if one != "OpenCV"), *(("OpenCV", end) for end in ENDS)],
)
def test_a_thread_that_is_inside_of_a_library_changes_no_exit_code(inside: str, end: str) -> None:
    """The interpreter would often abort beneath it, with 134 and a C++ stack."""
    process = start(inside, end)
    _, said = process.communicate(timeout=120)
    code, expected = ENDS[end]
    assert (process.returncode, said) == (code, f"{expected}said at exit\n")


def test_a_second_signal_ends_a_program_at_once() -> None:
    lasting = "try:\n        time.sleep(60)\n    finally:\n        print('ending', flush=True); time.sleep(60)"
    process = start("OpenCV", lasting)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_output_that_waits_to_be_written_is_written() -> None:
    process = start("OpenCV", "print('last words', end=''); return 0")
    assert process.communicate(timeout=120)[0] == "begun\nlast words"
