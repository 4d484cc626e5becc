"""Many trainings at once: `python ray_jobs/sweep.py --config configs/demo.yaml --sweep configs/sweeps/smoke.yaml`.

Ray Tune runs one training per combination of the sweep's values, as many at a time as the cluster holds. The same
command goes on after an interruption. The exit code is 0 if every trial ended well and 1 if any failed.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from pyarrow import fs

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.data.storage import DataError
from seqtrack.locations import child
from seqtrack.model.weights import WeightsError
from seqtrack.submission import command
from seqtrack.sweeps.results import Trial
from seqtrack.sweeps.runner import GentleStop, run_sweep
from seqtrack.sweeps.settings import Sweep, load_sweep
from seqtrack.sweeps.summary import write_summary
from seqtrack.tracking import mlflow as tracking
from seqtrack.training.checkpoint import CheckpointError
from seqtrack.training.trainer import join_cluster, settle_paths


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    received: int = signal.SIGINT
    try:
        config = read_settings(options)
        sweep = load_sweep(options.sweep)
        sweep.check(config, options.sweep)
        join_cluster()
        with GentleStop() as stop:  # only now: Ray handles SIGTERM itself when it joins
            try:
                trials, parent = run_sweep(config, sweep, stop, lambda line: print(line, flush=True))
                return report(config, sweep, trials, parent)
            finally:
                received = stop.received or received
    except (ConfigError, DataError, WeightsError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped. To go on: {shlex.join(command('ray_jobs/sweep.py', arguments or sys.argv[1:]))}")
        return 128 + received


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train SeqTrack many times, with other values of some settings.")
    parser.add_argument("--config", metavar="FILE", required=True, help="settings as YAML (see configs/)")
    parser.add_argument("--sweep", metavar="FILE", required=True, help="what varies, as YAML (see configs/sweeps/)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the config's")
    return parser.parse_intermixed_args(arguments)


def read_settings(options: argparse.Namespace) -> Config:
    """The settings; the sweep's name does not change from start to start, so that the same command goes on."""
    config = load_config(options.config, options.overrides)
    if config.RUN.NAME is None:
        config = config.with_settings({"RUN.NAME": f"{Path(options.config).stem}-{Path(options.sweep).stem}"})
    return settle_paths(config)


def report(config: Config, sweep: Sweep, trials: list[Trial], parent: str | None) -> int:
    """Writes the summary, tells MLflow, says what came out. Returns the exit code."""
    target = child(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
    failed = [trial for trial in trials if trial.note.status == "failed"]
    with tempfile.TemporaryDirectory() as directory:
        result = write_summary(config, sweep, trials, Path(directory))
        filesystem, path = fs.FileSystem.from_uri(target)
        fs.copy_files(directory, path, fs.LocalFileSystem(), filesystem)
        tracking.close_parent_run(config, parent, Path(directory), {}, "FAILED" if failed else "FINISHED")
    print(f"\n{result}")
    for trial in failed:
        print(f"failed: {trial.name}: {trial.note.reason}", file=sys.stderr)
    unfinished = [trial.name for trial in trials if trial.note.status == "unfinished"]
    if unfinished:
        raise KeyboardInterrupt
    print(f"Summary:      {child(target, 'index.html')}")
    print(f"All trials:   {child(target, 'trials.csv')}")
    if any(trial.finished for trial in trials):
        best = shlex.join(command("ray_jobs/train.py", ["--config", child(target, "best_config.yaml")]))
        print(f"Train on it:  {best}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
