"""Speed of `seqtrack evaluate`: one sequence at a time against several, and what everything but the model takes.

    python -m benchmarks.evaluation [--config seqtrack_b256] [--batch 1 4 8] [--frames 4] [--device cuda]

One Ray worker tracks drawn sequences of 1280 × 720 pixels, as many as the largest batch, with each batch size in turn.
Its model's own clock tells what the model takes. The rest of the time, from the moment when the model is there to the
last file, is reading and decoding frames, crops, the queue, Ray, and writing results. Prints, for each batch size:
frames/s, the ratio to the first one, and the share of the time that is not the model's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import ray
import torch
from pyarrow import fs

from benchmarks.tracker import Stopwatch
from seqtrack.config import SyntheticConfig, load_config
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.evaluation.benchmarks import folder_of_sequences, open_benchmark
from seqtrack.evaluation.results import write_track
from seqtrack.evaluation.sequences import BenchmarkSequence, FrameFiles
from seqtrack.experiments.evaluators import Evaluator, Evaluators, plan_workers
from seqtrack.model.seqtrack import build_model
from seqtrack.tracker.load import TrainedModel
from seqtrack.tracker.settings import TrackerSettings


class Timed(Evaluator):
    """A worker that knows what its model took."""

    def load(self, *arguments: object) -> None:
        super().load(*arguments)  # type: ignore[arg-type]
        assert self._lanes is not None
        model = self._lanes._tracker.model
        self._stopwatch = Stopwatch(model, torch.device(self._plan.device))
        model.generate_with = self._stopwatch  # type: ignore[assignment]
        self._loaded = time.time()

    def times(self) -> tuple[float, float]:
        """When the model was there, and the seconds that it has taken since."""
        return self._loaded, self._stopwatch.seconds


def first_frames(sequence: BenchmarkSequence, count: int) -> BenchmarkSequence:
    assert isinstance(sequence.frames, FrameFiles)
    return replace(sequence, frames=replace(sequence.frames, count=count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="seqtrack_b256")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--frames", type=int, default=4, help="of each sequence, at most 20")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    config = load_config(options.config)
    torch.manual_seed(0)
    trained = TrainedModel(build_model(config).eval(), config, options.config)
    with tempfile.TemporaryDirectory() as folder:
        drawn = SyntheticConfig(SEQUENCES=max(options.batch), FRAMES=20, HEIGHT=720, WIDTH=1280)
        write_synthetic(Path(folder, "tree"), drawn)
        data = open_benchmark(folder_of_sequences("drawn"), f"{folder}/tree")
        sequences = [first_frames(one, options.frames) for one in data.sequences]
        frames, first = sum(map(len, sequences)), None
        for batch in options.batch:
            evaluators = Evaluators(plan_workers(1, batch, options.device, options.precision), Timed)
            settings = TrackerSettings.from_config(config)
            for progress in evaluators.track(trained, settings, data.root, sequences):
                for name, track in progress.finished:
                    write_track(fs.LocalFileSystem(), f"{folder}/results-{batch}", name, track)
            ended = time.time()
            ((loaded, inside),) = ray.get(evaluators.ask("times"))
            seconds = ended - loaded
            evaluators.close()
            first = first or frames / seconds
            print(
                f"batch {batch:3d}: {frames / seconds:7.2f} frames/s, ratio {frames / seconds / first:.2f}; "
                f"{1 - inside / seconds:.1%} of the time not the model's",
                flush=True,
            )


if __name__ == "__main__":
    main()
