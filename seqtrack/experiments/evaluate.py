"""Measures trained models on benchmarks: tracks what was not tracked before, scores it, and writes tables."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save

from seqtrack.address import FOLDER, SCHEME, checkpoints, find
from seqtrack.config import Config
from seqtrack.data.storage import first_of
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.results import Results, Track, read_results, write_track
from seqtrack.evaluation.stamps import IDENTITY_FILE, STAMPS, changed_sequences, check_results, read_stamps
from seqtrack.evaluation.submissions import write_got10k_zip, write_trackingnet_zip
from seqtrack.evaluation.summary import Evaluation, evaluate
from seqtrack.experiments.evaluators import Evaluators, Plan
from seqtrack.failures import explain
from seqtrack.files import is_file, read_text, write_atomically
from seqtrack.integrations.mirror_state import MirrorState
from seqtrack.integrations.mlflow_store import log_evaluation
from seqtrack.lease import OwnedError
from seqtrack.locations import absolute, child, filesystem_at, parent
from seqtrack.model.file_kinds import SUFFIXES
from seqtrack.reports.evaluation import write_evaluation_report
from seqtrack.reports.evaluation_tables import TrackerFacts
from seqtrack.runs.checkpoint import StoredCheckpoint
from seqtrack.runs.evaluations import EVALUATIONS_FILE, CheckpointScores, add_evaluation
from seqtrack.sums import NAME
from seqtrack.tracker.load import TrainedModel
from seqtrack.tracker.settings import TrackerSettings
from seqtrack.transfer import send

logger = logging.getLogger(__name__)

FORMAT = 1


class Tracking(NamedTuple):
    """How far the tracking of a benchmark is."""

    frames: int
    """Frames that were tracked since the last one; below zero where a worker was lost."""
    finished: dict[str, Track]
    """Finished tracks by the name of the sequence."""


Watch = Callable[[str, BenchmarkData, int, Iterator[Tracking]], None]
"""(tracker, benchmark, frames to track, what happens) shows progress. It has to go through all that happens."""


def expand(sources: Sequence[str]) -> list[str]:
    """`RUN/*` becomes all of the run's checkpoints, the oldest first.

    Raises InputError if there are none, for a source that cannot be a model, and for two that have the same name: all
    of this before anything is tracked.
    """
    expanded: list[str] = []
    for source in sources:
        expanded += checkpoints(source.removesuffix("/*")) if source.endswith("/*") else [resolve(source)]
    named: dict[str, str] = {}
    for source in dict.fromkeys(expanded):
        other = named.setdefault(tracker_name(source), source)
        if other != source:
            raise InputError(
                f"{other} and {source}: both would be called {tracker_name(source)}; measure them into "
                "different folders (--out), and compare those with --results NAME=FOLDER"
            )
    return list(named.values())


def resolve(source: str) -> str:
    """The address of exactly the model that is meant: of a checkpoint, where `source` means one of a run's.

    Raises InputError for a place that holds no model, as far as that shows without reading it.
    """
    place = find(source)
    name = parent(place.location)[1]
    if not place.checkpoint and not name.endswith(SUFFIXES):
        raise InputError(f"{source}: is no file of weights; 'RUN/*', in quotes, means all checkpoints of a run")
    return place.location if place.checkpoint else source


def tracker_name(source: str) -> str:
    """What a model is called after its place: `demo-0010` after `runs/demo/checkpoint_epoch_0010`."""
    around, name = parent(source.removeprefix(SCHEME).rstrip("/"))
    found = NAME.fullmatch(name)
    if not found:
        return name.removesuffix(".tar").rpartition(".")[0] or name
    if parent(around)[1] == FOLDER:  # in a repository on the Hub
        around = parent(around)[0]
    return f"{parent(around)[1]}-{'-'.join(part for part in found.groups() if part)}"


def weights_sha256(trained: TrainedModel) -> str:
    """The hash of the weights as safetensors, which is that of `model.safetensors` in a run's checkpoint."""
    return hashlib.sha256(save(dict(trained.model.state_dict()))).hexdigest()


class Folder:
    """The result files of one model on one benchmark."""

    def __init__(self, place: str, tracker: str, data: BenchmarkData) -> None:
        self.location = child(child(absolute(place), data.benchmark.name), tracker)
        self.filesystem, self.path = filesystem_at(self.location)
        self._data = data

    def claim(self, trained: TrainedModel, settings: TrackerSettings, plan: Plan, anew: bool = False) -> None:
        """Makes the folder this model's.

        Results of other weights, settings, boxes or frames that are there are removed if `anew`; else it raises
        InputError.
        """
        ours = {
            "format": FORMAT,
            "weights_sha256": weights_sha256(trained),
            "source": trained.source,
            "benchmark": self._data.benchmark.name,
            "settings": json.loads(json.dumps(asdict(settings))),
            "precision": plan.precision,
            "device": plan.device,
            "together": plan.together,
        }
        theirs = self._read_identity()
        if theirs is None:
            try:
                self.filesystem.create_dir(self.path, recursive=True)
                self._write_identity(ours | {STAMPS: self._data.stamps})
            except Exception as error:  # of the disk or of any object store
                raise InputError(f"--out {self.location}: cannot be written ({explain(error)})") from error
            return
        for name in ("format", "weights_sha256", "benchmark", "settings", "precision", "device", "together"):
            if theirs.get(name) != ours[name] and anew:
                self._begin_anew(ours)
                return
            if theirs.get(name) != ours[name]:
                what = _difference(theirs.get(name), ours[name])
                raise InputError(f"{self.location}: has results of another {name.replace('_', ' ')}: {what}; --out "
                                 "names another folder")  # fmt: skip
        self._compare_data(theirs, ours, anew)

    def _compare_data(self, theirs: dict[str, Any], ours: dict[str, Any], anew: bool) -> None:
        """Compares boxes and frames of the sequences that have results with those that were tracked."""
        then, now = read_stamps(theirs, self.location), self._data.stamps
        done = self.done()
        changed = [name for name in changed_sequences(then, now) if name in done]
        if changed and anew:
            self._begin_anew(ours)
            return
        if changed:
            raise InputError(
                f"{self.location}: has results of other boxes or frames, which were replaced in {len(changed)} of the "
                f"{len(done)} sequences that were tracked, {first_of(changed)}; --out names another folder"
            )
        if unknown := [name for name in done if name not in then]:
            logger.warning(
                "%s: whether boxes and frames are those of the %d results there is not known: no stamp was made then",
                *(self.location, len(unknown)),
            )
        if then != then | now:
            self._write_identity(theirs | {STAMPS: then | now})

    def _begin_anew(self, ours: dict[str, Any]) -> None:
        self.filesystem.delete_dir_contents(self.path)
        self._write_identity(ours | {STAMPS: self._data.stamps})

    def add_speed(self, frames: int, seconds: float) -> None:
        """Counts what was tracked, and how long that took all workers together."""
        known = self._read_identity() or {}
        before = known.get("tracked", {"frames": 0, "seconds": 0.0})
        self._write_identity(
            known | {"tracked": {"frames": before["frames"] + frames, "seconds": before["seconds"] + seconds}}
        )

    def facts(self, epoch: int | None = None, run: str = "") -> TrackerFacts:
        """What result files do not say. `epoch`: the one after which the weights were saved, in a run of this name."""
        known = self._read_identity() or {}
        tracked = known.get("tracked")
        return TrackerFacts(
            epoch=epoch,
            run=run,
            device=known.get("device"),
            precision=known.get("precision"),
            batch=known.get("together"),
            throughput=tracked["frames"] / tracked["seconds"] if tracked and tracked["seconds"] > 0 else None,
        )

    def _read_identity(self) -> dict[str, Any] | None:
        text = read_text(self.filesystem, f"{self.path}/{IDENTITY_FILE}")
        try:
            return None if text is None else dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.location}/{IDENTITY_FILE}: is cut off or damaged ({error})") from error

    def _write_identity(self, content: dict[str, Any]) -> None:
        write_atomically(self.filesystem, f"{self.path}/{IDENTITY_FILE}", json.dumps(content, indent=1))

    def done(self) -> frozenset[str]:
        """Names of the sequences that were tracked to their end."""
        return frozenset(
            one.name for one in self._data.sequences if is_file(self.filesystem, f"{self.path}/{one.name}.txt")
        )

    def write(self, name: str, track: Track, integers: bool) -> None:
        write_track(self.filesystem, self.path, name, track, integers)


def track_benchmark(
    trained: TrainedModel,
    tracker: str,
    data: BenchmarkData,
    place: str,
    workers: Callable[[], Evaluators],
    watch: Watch,
    integers: bool = False,
    anew: bool = False,
) -> Folder:
    """Tracks the sequences of a benchmark that have no results yet, into `place`/BENCHMARK/TRACKER.

    Each is written as soon as it has ended, so that the same call goes on after an interruption. `workers` gives
    the workers. `anew`: results of other weights or settings that are there are removed. Raises InputError,
    EvaluationError.
    """
    settings = TrackerSettings.from_config(trained.config, data.benchmark.settings)
    folder = Folder(place, tracker, data)
    started = workers()
    folder.claim(trained, settings, started.plan, anew)
    done = folder.done()
    left = [one for one in data.sequences if one.name not in done]

    def happenings() -> Iterator[Tracking]:
        frames, began = 0, None
        for progress in started.track(trained, settings, data.root, left):
            for name, track in progress.finished:
                folder.write(name, track, integers)
            yield Tracking(progress.frames, dict(progress.finished))
            if began is None:
                began = time.perf_counter()  # the workers have started
            else:
                frames += progress.frames
        if began is not None and frames > 0:
            folder.add_speed(frames, time.perf_counter() - began)

    if left:
        watch(tracker, data, sum(map(len, left)), happenings())
    return folder


def write_submission(folder: Folder, tracker: str, data: BenchmarkData) -> str | None:
    """The zip for the server that scores a benchmark whose annotations are not public, beside the results; or None."""
    if data.benchmark.name not in ("got10k_test", "trackingnet"):
        return None
    location = f"{folder.location}.zip"
    tracks = read_results(folder.location, data.sequences).tracks
    if data.benchmark.name == "got10k_test":
        write_got10k_zip(location, tracker, data, tracks)
    else:
        write_trackingnet_zip(location, data, tracks)
    return location


def score_all(data: BenchmarkData, found: dict[str, str], protocol: str | None) -> list[Evaluation]:
    """Scores folders of results, by the trackers' names.

    Raises InputError, also for results that say that they are of other boxes or frames than those of `data`.
    """
    for place in found.values():
        check_results(place, data.stamps)
    results: dict[str, Results] = {tracker: read_results(place, data.sequences) for tracker, place in found.items()}
    return evaluate(data, results, protocol)


def write_page(
    evaluations: Sequence[Evaluation], facts: Mapping[str, TrackerFacts], place: str, videos: bool = True
) -> str:
    """Writes `index.html` with figures and videos into a folder or to a URI. Returns where it is. Raises OSError."""
    filesystem, path = filesystem_at(absolute(place))
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation_report(Path(folder), evaluations, facts=facts, videos=absolute(place) if videos else None)
        send(Path(folder), filesystem, path, last=["index.html"])
    return child(absolute(place), "index.html")


def scores_of(evaluation: Evaluation, checkpoint: str, step: int) -> CheckpointScores:
    """The numbers of a run's checkpoint, for the run's `evaluation.jsonl`."""
    scores = evaluation.scores
    measures = {name: measure.mean() for name, measure in scores.measures.items()}
    benchmark = evaluation.data.benchmark.name
    return CheckpointScores(
        checkpoint,
        step,
        benchmark,
        scores.protocol,
        len(evaluation.sequences),
        evaluation.size,
        measures,
        evaluation.data.stamp,
    )


def publish(config: Config, checkpoint: StoredCheckpoint, step: int, evaluation: Evaluation) -> str | None:
    """Adds the numbers of a run's checkpoint to the run: to its `evaluation.jsonl`, and in MLflow at its step.

    Returns the id of the MLflow run, if there is one. Warns where the numbers cannot be written: a run that trains is
    its own job's.
    """
    run, scores = checkpoint.run, scores_of(evaluation, checkpoint.name, step)
    try:
        with run.owned() as lease:
            add_evaluation(run.under(lease), scores)
        run_id = MirrorState.read(run).run_id
    except OwnedError as error:
        logger.warning("%s: the numbers are not added; the same command adds them later (%s)", run.location, error)
        return None
    except Exception as error:  # of the disk or of any object store; a line that is no JSON
        logger.warning("%s: %s", run.file(EVALUATIONS_FILE), explain(error))
        return None
    if run_id is not None:
        log_evaluation(config, run_id, [scores])
    return run_id


def _difference(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return ", ".join(f"{key} {theirs.get(key)}, not {ours[key]}" for key in ours if theirs.get(key) != ours[key])
    return f"{str(theirs)[:12]}, not {str(ours)[:12]}"
