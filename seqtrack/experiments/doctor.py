"""Checks what a run with these settings would need, without starting anything or writing to any server."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from seqtrack.config import Config, check_supported
from seqtrack.experiments.checking import Finding, NoAnswer, Note, Unfit, finding, start, within
from seqtrack.failures import explain, is_no_answer
from seqtrack.locations import as_path, is_uri, lasting

PATIENCE = 20.0
"""Seconds that all checks may take, which run side by side. A few are enough, unless the machine is busy."""
GIB = 2**30
MOST_WEIGHTS = GIB // 2
"""Bytes of the largest file of weights that is read."""
LEAST_MEMORY, LEAST_SHM, LEAST_DISK = 2 * GIB, GIB, GIB
"""Bytes that should be free: for the demo's processes, for Ray's samples under way, for a few checkpoints."""


def examine(config: Config, settings_given: bool = True) -> Iterator[Finding]:
    """The findings, in order. Each check stands alone: whatever one raises is its finding.

    `settings_given`: whether a user named settings; without any, only the machine is checked.
    """
    checks: dict[str, Callable[[], str]] = {
        "Python": platform.python_version,
        "packages": check_packages,
        "CPUs": check_cpus,
        "memory": check_memory,
        "shared memory": check_shm,
        "disk": partial(check_disk, config),
        "GPUs": check_gpus,
        "Ray": check_ray,
        "MLflow": partial(optional, config.MLFLOW.REQUIRED, "MLFLOW.REQUIRED", partial(check_mlflow, config)),
        "Hub": partial(optional, config.HUB.REQUIRED, "HUB.REQUIRED", partial(check_hub, config)),
        "decoder": check_decoder,
        "jpegtran": check_jpegtran,
    }
    if settings_given:
        checks |= {
            "settings": partial(check_settings, config),
            "workers": partial(check_workers, config),
            "weights": partial(check_weights, config),
            "data": partial(check_data, config),
            "benchmarks": partial(check_benchmarks, config),
        }
    started = {name: start(name, check) for name, check in checks.items()}
    deadline = time.monotonic() + PATIENCE
    for name, future in started.items():
        yield finding(name, future, deadline, PATIENCE)


def optional(required: bool, setting: str, check: Callable[[], str]) -> str:
    """The check of a server that a run can start without, unless it is required."""
    try:
        return within(PATIENCE * 0.75, check)
    except Note:
        raise
    except Exception as error:
        said, *mend = error.args if isinstance(error, Unfit) else (explain(error),)
        if required and is_no_answer(error):
            raise NoAnswer(said) from error
        if required:
            raise Unfit(said, *mend) from error
        raise Note(said, "; ".join([*mend, f"runs start without it ({setting} is false)"])) from error


def check_settings(config: Config) -> str:
    check_supported(config)
    return "can be run"


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
    from seqtrack.cluster.resources import usable_cpus

    there, usable = os.cpu_count() or 1, usable_cpus()
    said = f"{usable:g}" if usable >= there else f"{there}, of which {usable:g} may be used here"
    if usable < 1:
        raise Note(said, "a whole CPU; Ray takes it for one, and a run is slow")
    return said


def check_memory() -> str:
    import ray  # knows the limits of containers

    free = ray._private.utils.estimate_available_memory()
    if free < LEAST_MEMORY:
        raise Note(f"{free / GIB:.1f} GiB free", f"{LEAST_MEMORY / GIB:g} GiB; else Ray may end workers")
    return f"{free / GIB:.1f} GiB free"


def check_shm() -> str:
    from seqtrack.cluster.connect import shared_memory

    free = shared_memory()
    if free is None:
        raise Note("not used on this system")
    if free < LEAST_SHM:
        raise Note(f"/dev/shm has {free / GIB:.2f} GiB free", "docker run --shm-size=4g; without it Ray is slow")
    return f"/dev/shm has {free / GIB:.1f} GiB free"


def check_disk(config: Config) -> str:
    if is_uri(config.RUN.STORAGE_PATH):
        raise Note(f"not on this machine: {config.RUN.STORAGE_PATH}")
    folder = Path(lasting(config.RUN.STORAGE_PATH))
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Unfit(f"RUN.STORAGE_PATH {folder}: {there} cannot be written to", "another RUN.STORAGE_PATH")
    free = shutil.disk_usage(there).free
    if free < LEAST_DISK:
        raise Unfit(f"RUN.STORAGE_PATH {folder}: {free / GIB:.2f} GiB free", "another RUN.STORAGE_PATH, or room there")
    return f"{folder}: {free / GIB:.0f} GiB free"


def check_gpus() -> str:
    import torch

    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            asked = subprocess.run(query, capture_output=True, text=True, timeout=PATIENCE / 2)
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(f"nvidia-smi: no answer within {PATIENCE / 2:g} s") from error
        driver = asked.stdout.split("\n")[0].strip() if asked.returncode == 0 else "that fails"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if names:
        return f"{len(names)} × {names[0]}, CUDA {torch.version.cuda}{f', driver {driver}' if driver else ''}"
    if driver:
        raise Note(f"driver {driver}, and torch sees no GPU", f"a torch for this driver (this: {torch.version.cuda})")
    raise Note("none; training on CPUs")


def check_workers(config: Config) -> str:
    """Whether RUN.WORKERS and their data fit on this machine. Raises ConfigError as a run would."""
    import torch

    from seqtrack.cluster.resources import plan_resources, usable_cpus

    if os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local"):
        raise Note("asked of the cluster when a run starts")
    machine = {
        "CPU": max(1.0, float(int(usable_cpus()))),
        "GPU": float(torch.cuda.device_count()),
        "nodes": 1.0,
    }
    plan = plan_resources(config, machine)
    return f"{config.RUN.WORKERS}, each with {plan.cpus_per_worker:g} CPUs and {plan.gpus_per_worker:g} GPUs"


def check_ray() -> str:
    from seqtrack.cluster.connect import check_address, check_temporary_folder, starts_here

    address = os.environ.get("RAY_ADDRESS", "").strip()
    check_address(address)
    if not starts_here(address):
        return f"a cluster runs at {address}" if address not in ("", "auto") else "joins the cluster of this machine"
    return f"starts on this machine; its files in {check_temporary_folder()}/ray"


def check_mlflow(config: Config) -> str:
    import httpx2

    from seqtrack.integrations.store_uri import shown_store, sqlite_file, tracking_uri

    uri, shown = tracking_uri(config), shown_store(config)
    if uri.startswith("http"):
        answer = httpx2.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE / 2)
        if answer.status_code >= 500:
            raise Unfit(f"{shown} answers with {answer.status_code}", "the server's own log says why")
        return shown
    file = sqlite_file(uri)
    if file is None:
        import sqlalchemy

        sqlalchemy.create_engine(uri).connect().close()
        return shown
    there = next(parent for parent in (file, *file.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise Unfit(f"{shown}: {there} cannot be written to", "MLFLOW.TRACKING_URI names another store")
    return shown


def check_hub(config: Config) -> str:
    if config.HUB.REPO_ID is None:
        raise Note("not used (HUB.REPO_ID is not set)")
    from seqtrack.integrations.hub import describe_access

    return describe_access(config.HUB.REPO_ID)


def check_weights(config: Config) -> str:
    source = config.MODEL.WEIGHTS
    if source is None and config.MODEL.ENCODER.PRETRAIN_TYPE == "scratch":
        return "random"
    source = source or config.MODEL.ENCODER.PRETRAIN_FILE
    if source is None or is_uri(as_path(source)):
        raise Note(f"read when a run starts: {source or 'those of the encoder, from the Hub'}")
    file = Path(lasting(source))
    if file.is_file() and file.stat().st_size > MOST_WEIGHTS:
        raise Note(f"read when a run starts: {source}, {file.stat().st_size / 2**20:,.0f} MiB")
    from seqtrack.model.weights import WeightsError, starting_weights

    try:
        return starting_weights(config)[1]
    except WeightsError as error:
        raise Unfit(str(error), "where the weights are") from error


def check_data(config: Config) -> str:
    from seqtrack.data.open import open_data

    names = config.DATA.TRAIN.DATASETS_NAME
    places = [config.DATA.place_of(name) for name in names]
    for name, (setting, place) in zip(names, places, strict=True):
        if place is None:
            raise Unfit(f"{setting} is not set", f"{setting}=/data/{name.lower()}, or synthetic")
    if any(place == "synthetic" for _, place in places):
        return "synthetic: written when a run starts"
    data = open_data(config)
    found = [
        f"{as_path(str(place))}: {len(one.index.lengths)} sequences, {one.index.num_frames:,} frames"
        for one, (_, place) in zip(data.mixture.sets, places, strict=True)
    ]
    return "; ".join((*found, *data.notes))


def check_benchmarks(config: Config) -> str:
    from seqtrack.experiments.benchmarks import open_for_run

    if not config.EVAL.BENCHMARKS:
        raise Note("none (EVAL.BENCHMARKS is empty): checkpoints are not measured")
    if "synthetic" in config.EVAL.BENCHMARKS.values():
        return "synthetic: written when a run starts"
    opened = open_for_run(config)
    return "; ".join(f"{one.benchmark.title}: {one.coverage}" for one in opened)


def check_decoder() -> str:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        return "OpenCV; seqtrack[fast] decodes only what a crop needs"
    return "nvimgcodec, which decodes only what a crop needs"


def check_jpegtran() -> str:
    found = shutil.which("jpegtran")
    if found is None:
        raise Note("not installed; only `seqtrack pack --tiles` needs it")
    return found
