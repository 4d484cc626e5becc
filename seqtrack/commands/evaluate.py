"""Measure trained models on benchmarks, and compare trackers by their result files.

Ray workers track several sequences at a time; a sequence that is finished is kept, and the same command goes on after
an interruption. Prints a table and writes a page, results.parquet and summary.json. With --results alone, Ray does not
start.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from seqtrack.commands.program import GOES_ON, TO_GO_ON, ProgramError, add_take_over, say
from seqtrack.commands.track import add_max_pixels
from seqtrack.errors import InputError
from seqtrack.shown import shown

if TYPE_CHECKING:
    from seqtrack.config import Config
    from seqtrack.evaluation.benchmarks import Benchmark, BenchmarkData
    from seqtrack.experiments.evaluate import Tracking
    from seqtrack.experiments.evaluators import Evaluators
    from seqtrack.lease import Lease
    from seqtrack.reports.evaluation_tables import TrackerFacts
    from seqtrack.runs.checkpoint import StoredCheckpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="SOURCE", nargs="+", action="extend", default=[],
        help="runs, checkpoints ('RUN/*': all of a run), hf://user/repo, or files of weights with --config",
    )  # fmt: skip
    parser.add_argument("--config", metavar="NAME|FILE", help="settings of files of weights")
    parser.add_argument(
        "--benchmark", metavar="NAME", nargs="+", action="extend", default=[],
        help="lasot, lasot_ext, got10k_val, got10k_test, trackingnet, otb100, uav123, nfs, tnl2k, or a name of --data",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="NAME=PATH", nargs="+", action="extend", default=[],
        help="where a benchmark is: a folder or URI; with another name, a folder of sequences in LaSOT's layout",
    )  # fmt: skip
    parser.add_argument(
        "--results", metavar="[NAME=]FOLDER", nargs="+", action="extend", default=[],
        help="result files of other trackers, to compare with",
    )  # fmt: skip
    parser.add_argument("--sequences", metavar="NAME", nargs="+", help="only these sequences")
    parser.add_argument("--protocol", metavar="NAME", help="pytracking, lasot-toolkit, got10k, trackingnet (as papers)")
    parser.add_argument("--out", metavar="FOLDER", default="evaluations", help="where to write (evaluations)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one for each GPU, or else for each CPU)")
    parser.add_argument("--batch", type=int, metavar="N", help="sequences that a worker tracks at a time (8; CPU: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where models run (GPUs, if the cluster has any)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic (fp32)")
    add_max_pixels(parser)
    parser.add_argument("--integers", action="store_true", help="cut boxes to whole pixels, as older results are")
    parser.add_argument("--no-videos", dest="videos", action="store_false", help="no videos of the worst sequences")
    add_take_over(parser)
    parser.set_defaults(to_go_on=f"{GOES_ON} {TO_GO_ON}")


def run(options: argparse.Namespace) -> int:
    places = check(options)
    from seqtrack.lease import owned
    from seqtrack.locations import absolute, filesystem_at

    place = absolute(options.out)
    with owned(*filesystem_at(place), place, options.take_over, f"--out {options.out}") as lease:
        return measure(options, places, lease)


def measure(options: argparse.Namespace, places: dict[str, str], lease: Lease) -> int:
    """Tracks, scores and writes into `--out`, as long as that is this job's."""
    from seqtrack.config import SyntheticConfig
    from seqtrack.evaluation.benchmarks import open_benchmark
    from seqtrack.experiments.benchmarks import SYNTHETIC, benchmark_of, drawn
    from seqtrack.experiments.evaluate import expand, track_benchmark, tracker_name, write_submission
    from seqtrack.experiments.evaluators import EvaluationError
    from seqtrack.tracker.load import load_trained

    sources = expand(options.weights)
    first = load_trained(sources[0], options.config) if sources else None
    opened: list[BenchmarkData] = []
    for name in dict.fromkeys(options.benchmark or places or [SYNTHETIC]):
        place = places.get(name) or drawn(first.config.DATA.SYNTHETIC if first else SyntheticConfig())
        data = open_benchmark(benchmark_of(name), place) if sources else annotated(benchmark_of(name), place)
        for note in data.notes:
            say(note)
        opened.append(data.only(options.sequences) if options.sequences else data)
    found: dict[str, dict[str, str]] = {data.benchmark.name: others(options.results, data) for data in opened}
    facts: dict[str, TrackerFacts] = {}
    origins: dict[str, tuple[Config, StoredCheckpoint, int]] = {}
    with workers(options) as start:
        for source in sources:
            trained = first if first is not None and source == sources[0] else load_trained(source, options.config)
            if options.max_pixels is not None:
                limit = {"DATA.MAX_PIXELS": options.max_pixels}
                trained = trained._replace(config=trained.config.with_settings(limit, "--max-pixels"))
            tracker = tracker_name(source)
            if trained.checkpoint is not None:
                origins[tracker] = trained.config, trained.checkpoint, trained.step
            for data in opened:
                if tracker in found[data.benchmark.name]:
                    raise InputError(f"{tracker}: two trackers have this name; NAME=FOLDER renames --results")
                try:
                    show = partial(watch, lease)
                    folder = track_benchmark(trained, tracker, data, options.out, start, show, options.integers)
                except EvaluationError as error:
                    raise ProgramError(str(error)) from error
                if (zipped := write_submission(folder, tracker, data)) is not None:
                    say(f"Wrote {zipped}, for the server that scores {data.benchmark.title}")
                else:
                    found[data.benchmark.name][tracker] = folder.location
                    facts[tracker] = folder.facts(
                        trained.epoch, trained.checkpoint.run.name if trained.checkpoint else ""
                    )
    lease.proof.check()
    report(options, opened, found, facts, origins)
    return 0


def report(
    options: argparse.Namespace,
    opened: list[BenchmarkData],
    found: dict[str, dict[str, str]],
    facts: dict[str, TrackerFacts],
    origins: dict[str, tuple[Config, StoredCheckpoint, int]],
) -> None:
    """Scores results, and writes the numbers into `--out`, onto the console, into their runs and to MLflow.

    `found`: benchmark -> tracker -> folder of its results; `origins`: tracker -> settings, checkpoint and step, if it
    is a run's.
    """
    from seqtrack.evaluation.summary import table_lines, write_summary
    from seqtrack.experiments.evaluate import publish, score_all, write_page
    from seqtrack.integrations.mlflow_store import log_page
    from seqtrack.locations import absolute, filesystem_at

    evaluations = [
        one
        for data in opened
        if found[data.benchmark.name]
        for one in score_all(data, found[data.benchmark.name], options.protocol)
    ]
    if evaluations:
        write_summary(*filesystem_at(absolute(options.out)), evaluations)
        mlflow_runs = {
            run_id: origins[one.tracker][0]
            for one in evaluations
            if one.tracker in origins
            and not options.sequences
            and (run_id := publish(*origins[one.tracker], one)) is not None
        }
        say("", *table_lines(evaluations), "")
        for note in dict.fromkeys(note for one in evaluations for note in one.notes):
            say(note)
        page = write_page(evaluations, facts, options.out, options.videos)
        for run_id, config in mlflow_runs.items():
            log_page(config, run_id, page)
        say(f"Wrote {page}, summary.json and results.parquet")
        if origins and options.sequences:
            say("The numbers are not added to the run: they are those of the named sequences only")


def check(options: argparse.Namespace) -> dict[str, str]:
    """Name of a benchmark -> its place. Raises InputError for arguments that cannot be right."""
    if not options.weights and not options.results:
        raise InputError("nothing to measure: --weights names models, --results folders of result files")
    for name, value in (("--workers", options.workers), ("--batch", options.batch)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: at least 1")
    places = {}
    for text in options.data:
        name, equals, place = text.partition("=")
        if not equals or not name or not place or "/" in name:
            raise InputError(f"--data {text}: NAME=PATH is needed, such as lasot=/data/LaSOT")
        places[name] = place
    from seqtrack.evaluation.benchmarks import benchmark_named
    from seqtrack.experiments.benchmarks import SYNTHETIC

    for name in options.benchmark:
        if name not in places and name != SYNTHETIC:
            raise InputError(f"--data {benchmark_named(name).name}=PATH is needed: where the benchmark is")
    if options.protocol is not None:
        from seqtrack.evaluation.protocols import protocol_named

        protocol_named(options.protocol)
    return places


def annotated(benchmark: Benchmark, place: str) -> BenchmarkData:
    """A benchmark whose frames are only for pictures: those of a copy without frames are left out. Raises DataError."""
    from seqtrack.data.storage import DataError
    from seqtrack.evaluation.benchmarks import open_benchmark

    data = open_benchmark(benchmark, place, with_frames=False)
    try:
        whole = open_benchmark(benchmark, place)
    except DataError:
        return data
    return whole if len(whole.sequences) == len(data.sequences) else data


def others(results: list[str], data: BenchmarkData) -> dict[str, str]:
    """Name of a tracker -> its folder of results on a benchmark: FOLDER/BENCHMARK, if there is one, or FOLDER."""
    from pyarrow.fs import FileType

    from seqtrack.locations import absolute, child, filesystem_at, parent

    found: dict[str, str] = {}
    for text in results:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:
            name, folder = parent(text.rstrip("/"))[1], text
        if name in found:
            raise InputError(f"--results {text}: two trackers are called {name}; NAME=FOLDER renames one")
        inner = child(absolute(folder), data.benchmark.name)
        filesystem, path = filesystem_at(inner)
        found[name] = inner if filesystem.get_file_info(path).type == FileType.Directory else folder
    return found


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[Callable[[], Evaluators]]:
    """Gives what starts the workers, at the first call. Raises ConfigError."""
    from seqtrack.experiments.evaluators import Evaluators, plan_workers

    started: list[Evaluators] = []

    def start() -> Evaluators:
        if not started:
            started.append(Evaluators(plan_workers(options.workers, options.batch, options.device, options.precision)))
        return started[0]

    try:
        yield start
    finally:
        for one in started:
            one.close()


def watch(lease: Lease, tracker: str, data: BenchmarkData, frames: int, happenings: Iterator[Tracking]) -> None:
    """Shows how far it is, and the best and worst sequence so far. Raises LeaseLostError if another job took over."""
    from tqdm import tqdm

    from seqtrack.tracker.recording import mean_iou

    truths = {one.name: one.truth for one in data.sequences if not one.withheld}
    overlaps: dict[str, float] = {}
    rarely = 0.5 if sys.stderr.isatty() else 30.0  # seconds
    title = f"{tracker} on {data.benchmark.title}"
    with tqdm(total=frames, unit="frame", desc=shown(title), mininterval=rarely) as progress:
        for one in happenings:
            if lease.lost.is_set():
                lease.proof.check()
            progress.update(one.frames)
            for name, track in one.finished.items():
                if name in truths:
                    overlaps[name] = mean_iou(track.boxes_xywh, truths[name].boxes_xywh)[0]
            if one.finished and overlaps:
                ends = (max(overlaps, key=overlaps.__getitem__), min(overlaps, key=overlaps.__getitem__))
                best, worst = (f"{name} {overlaps[name]:.2f}" for name in ends)
                progress.set_postfix_str(shown(f"IoU: best {best}, worst {worst}"), refresh=False)
