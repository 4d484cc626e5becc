"""What machine benchmarks/gpu.py runs on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_bench import Bench, Row
from seqtrack.environment import code_revision, installed_versions

PACKAGES = ("triton", "timm", "numpy", "opencv-python", "opencv-python-headless", "pyarrow", "pydantic")


def machine(bench: Bench) -> Iterator[Row]:
    """The machine and its software."""
    row: Row = {"device": bench.device.type}
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        row |= {
            "GPU": properties.name,
            "GPU memory, GiB": properties.total_memory / 2**30,
            "multiprocessors": properties.multi_processor_count,
            "compute capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    versions = {name: version for name, version in installed_versions(PACKAGES).items() if version != "not installed"}
    yield row | {
        "CPU": _processor(),
        "CPUs": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **versions,
        "code": code_revision(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    return found[1] if found else "unknown"
