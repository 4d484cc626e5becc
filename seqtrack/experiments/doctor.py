"""Checks what a run with these settings would need, without starting anything or writing to any server."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from seqtrack.config import Config
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.locations import as_path, is_uri, lasting

PATIENCE = 8.0
"""Seconds that a check may take; a server that hangs is named for it."""
GIB = 2**30
LEAST_MEMORY, LEAST_SHM, LEAST_DISK = 2 * GIB, GIB, GIB
"""Bytes that must be free: for the demo's processes, for Ray's samples under way, for a few checkpoints."""
LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, which Ray opens below its temporary folder."""
RAYS_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


class Unfit(Exception):
    """A check failed. The first argument says what is wrong, the second how to mend it."""


class Finding(NamedTuple):
    """What a check found."""

    name: str
    fits: bool | None
    """None: it is not needed, or only worth knowing."""
    said: str
    mend: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """The findings, in order. Each check stands alone: whatever one raises is its finding."""
    checks: dict[str, Callable[[], str]] = {
        "Python": platform.python_version,
        "packages": check_packages,
        "CPUs": check_cpus,
        "memory": check_memory,
        "shared memory": check_shm,
        "disk": partial(check_disk, config),
        "GPUs": partial(check_gpus, config),
        "Ray": check_ray,
        "MLflow": partial(check_mlflow, config),
        "Hub": partial(check_hub, config),
        "data": partial(check_data, config),
        "decoder": check_decoder,
        "jpegtran": check_jpegtran,
    }
    pool = ThreadPoolExecutor(len(checks))
    started = {name: pool.submit(check) for name, check in checks.items()}
    for name, future in started.items():
        yield _finding(name, future)
    pool.shutdown(wait=False, cancel_futures=True)


def _finding(name: str, future: Future[str]) -> Finding:
    try:
        said = future.result(PATIENCE)
    except Unfit as unfit:
        return Finding(name, False, *unfit.args)
    except InputError as error:
        return Finding(name, False, str(error))
    except TimeoutError:
        return Finding(name, False, f"no answer within {PATIENCE:g} s")
    except Exception as error:
        return Finding(name, False, explain(error))
    return Finding(name, None if said.startswith("not ") else True, said)


def check_packages() -> str:
    """The ranges that this package asks for; with a checkout, also how many differ from its lock."""
    wrong = []
    needed = [Requirement(line) for line in metadata.requires("seqtrack") or []]
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version}, not {one.specifier or 'there'}")
    if wrong:
        raise Unfit("; ".join(wrong), "pip install --upgrade seqtrack, or make in a checkout")
    lock = Path(__file__).parents[2] / "requirements.lock"
    if not lock.is_file():
        return "as this package asks for"
    pinned = re.findall(r"^([\w.-]+)==([\w.+!-]+)", lock.read_text("utf-8"), re.MULTILINE)
    other = [name for name, version in pinned if _installed(name) not in (None, version)]
    return f"{len(other)} differ from requirements.lock: {', '.join(other[:4])}" if other else "as in requirements.lock"


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_cpus() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _limit("cpu.max")
    allowed = usable if quota is None else quota[0] / quota[1]
    limited = f", of which this container may use {allowed:g}" if allowed < usable else ""
    if allowed < 1:
        raise Unfit(f"{usable}{limited}", "at least one CPU: one half for a worker, one half for its data")
    return f"{usable}{limited}"


def check_memory() -> str:
    import psutil

    free, limit = psutil.virtual_memory().available, _limit("memory.max")
    if limit is not None:
        free = min(free, int(limit[0]) - int((_limit("memory.current") or (0,))[0]))
    if free < LEAST_MEMORY:
        raise Unfit(f"{free / GIB:.1f} GiB free", f"{LEAST_MEMORY / GIB:g} GiB are needed")
    return f"{free / GIB:.1f} GiB free"


def _limit(name: str) -> tuple[float, ...] | None:
    """The numbers in a file of this process's control group; None if there is no limit."""
    try:
        words = Path("/sys/fs/cgroup", name).read_text("utf-8").split()
    except OSError:
        return None
    return None if "max" in words[:1] else tuple(map(float, words))


def check_shm(path: str = "/dev/shm") -> str:
    if not Path(path).is_dir():
        return "not used on this system"
    free = shutil.disk_usage(path).free
    if free < LEAST_SHM:
        raise Unfit(
            f"{path} has {free / GIB:.2f} GiB free",
            "docker run --shm-size=4g; Ray keeps samples there and is slow else",
        )
    return f"{path} has {free / GIB:.1f} GiB free"


def check_disk(config: Config) -> str:
    if is_uri(config.RUN.STORAGE_PATH):
        return f"not on this machine: {config.RUN.STORAGE_PATH}"
    folder = Path(lasting(config.RUN.STORAGE_PATH))
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Unfit(f"RUN.STORAGE_PATH {folder}: {there} cannot be written to", "another RUN.STORAGE_PATH")
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        raise Unfit(f"RUN.STORAGE_PATH {folder}: {free / GIB:.2f} GiB free", "another RUN.STORAGE_PATH, or room there")
    return f"{folder}: {free / GIB:.0f} GiB free"


def check_gpus(config: Config) -> str:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if names:
        return f"{len(names)} × {names[0]}, CUDA {torch.version.cuda}"
    if shutil.which("nvidia-smi"):
        raise Unfit(
            "nvidia-smi is here, and torch sees no GPU", "a driver for the CUDA of this torch, or RUN.GPUS_PER_WORKER=0"
        )
    if config.RUN.GPUS_PER_WORKER:
        raise Unfit(f"RUN.GPUS_PER_WORKER {config.RUN.GPUS_PER_WORKER:g}, and there is no GPU", "RUN.GPUS_PER_WORKER=0")
    return "not here; training on CPUs"


def check_ray() -> str:
    from seqtrack.cluster.connect import check_address

    address = os.environ.get("RAY_ADDRESS", "").strip()
    check_address(address)
    if address not in ("", "auto", "local"):
        return f"a cluster answers at {address}"
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(f"{folder}/{RAYS_SOCKET}".encode()) > LONGEST_SOCKET:
        raise Unfit(f"{folder}: too long a name for Ray's sockets", "RAY_TMPDIR=/tmp")
    place = Path(folder, "ray") if Path(folder, "ray").exists() else Path(folder)
    if not os.access(place, os.W_OK):
        raise Unfit(f"{place} cannot be written to", "RAY_TMPDIR names another folder")
    return f"starts on this machine, or joins what runs here; its files in {folder}/ray"


def check_mlflow(config: Config) -> str:
    import httpx2

    from seqtrack.integrations.mlflow_store import shown_store, sqlite_file, tracking_uri

    uri, shown = tracking_uri(config), shown_store(config)
    if uri.startswith("http"):
        answer = httpx2.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE / 2)
        if answer.status_code >= 500:
            raise Unfit(f"{shown} answers with {answer.status_code}", "the server's own log says why")
        return shown
    file = sqlite_file(uri)
    if file is None:
        return f"not tried before a run: {shown}"
    there = next(parent for parent in (file, *file.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise Unfit(f"{shown}: {there} cannot be written to", "MLFLOW.TRACKING_URI names another store")
    return shown


def check_hub(config: Config) -> str:
    if config.HUB.REPO_ID is None:
        return "not used (HUB.REPO_ID is not set)"
    from seqtrack.integrations.hub import describe_access

    return describe_access(config.HUB.REPO_ID)


def check_data(config: Config) -> str:
    from seqtrack.data.open import open_data

    if config.DATA.ROOT is None:
        raise Unfit("DATA.ROOT is not set", "DATA.ROOT=/data/lasot, or synthetic")
    if config.DATA.ROOT == "synthetic":
        return "synthetic: written when a run starts"
    index = open_data(config).index
    return f"{as_path(config.DATA.ROOT)}: {len(index.names)} sequences, {index.num_frames:,} frames"


def check_decoder() -> str:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        return "OpenCV; seqtrack[fast] decodes only what a crop needs"
    return "nvimgcodec, which decodes only what a crop needs"


def check_jpegtran() -> str:
    return shutil.which("jpegtran") or "not installed, and not needed"
