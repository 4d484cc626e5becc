"""Follow targets through a video.

Writes a video with the boxes, a table (boxes.csv) and text files in the format of the benchmarks. With a sequence of
a benchmark, its annotation gives the first box, is drawn as well, and the mean IoU is printed. Does not start Ray.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.commands.program import add_weights, say
from seqtrack.errors import InputError
from seqtrack.shown import shown

if TYPE_CHECKING:
    from seqtrack.tracker.sources import Shot, Source

CUT_OFF = 1
"""Exit code where a source ends before its end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights(parser)
    parser.add_argument(
        "--source", metavar="SOURCE", required=True,
        help="a video, a folder of pictures, a LaSOT, OTB or GOT-10k sequence, a camera's number, or a URL",
    )  # fmt: skip
    parser.add_argument(
        "--box", metavar="X,Y,W,H", action="append", default=[],
        help="the target in the first frame, in pixels; several times: several targets",
    )  # fmt: skip
    parser.add_argument("--box-file", metavar="FILE", help="a file with a box a line: one target each")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="first frame (0)")
    parser.add_argument("--stop", type=int, metavar="N", help="frame to stop before")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="take every Nth frame (1)")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (tracks/NAME)")
    parser.add_argument("--no-video", action="store_true", help="write no video")
    parser.add_argument("--crops", action="store_true", help="write a picture of each target in each frame")
    parser.add_argument(
        "--show", action="store_true", help="a live window (space: pause, r: select the target anew, q: end)"
    )
    add_device(parser)
    add_max_pixels(parser)
    parser.add_argument("--batch", type=int, metavar="N", help="targets in one pass of the model")


def run(options: argparse.Namespace) -> int:
    check(options)
    import torch
    from tqdm import tqdm

    from seqtrack.model.precision import set_precision
    from seqtrack.tracker.follow import chosen, follow
    from seqtrack.tracker.load import load_trained
    from seqtrack.tracker.recording import Recording, mean_iou, picture_of
    from seqtrack.tracker.settings import TrackerSettings
    from seqtrack.tracker.sources import CutOff, open_source
    from seqtrack.tracker.tracker import BatchTracker
    from seqtrack.tracker.window import Window

    source = open_source(options.source)
    trained = load_trained(options.weights, options.config)
    source.max_pixels = options.max_pixels or trained.config.DATA.MAX_PIXELS
    shots = chosen(source, options.start, options.stop, options.stride)
    try:
        first = next(shots, None)
    except CutOff as error:
        raise InputError(f"{error}; frame {options.start} is not among them") from error
    if first is None:
        raise InputError(f"{options.source}: has no frame {options.start}")
    boxes = first_boxes(options, source, first)
    device = pick_device(options.device)
    set_precision(options.precision, torch.device(device))
    settings = TrackerSettings.from_config(trained.config)
    tracker = BatchTracker(trained.model, settings, len(boxes), device, options.precision, options.batch)
    folder = Path(options.out or Path("tracks", source.name))
    window = Window(source.name) if options.show else None
    say(f"{trained.source} on {device}, {len(boxes)} target{'s' if len(boxes) > 1 else ''} in {options.source}")
    if first.turned:
        height, width = first.image.shape[:2]
        say(f"The picture is {first.turned}; boxes are in its pixels as shown, {width} × {height}")
    found: list[tuple[float, ...]] = []
    numbers: list[int] = []
    ended: BaseException | None = None
    length = source.length
    if length is not None:
        length = len(range(options.start, min(options.stop or length, length), options.stride))
    with (
        Recording(folder, source.name, len(boxes), source.rate, not options.no_video, options.crops) as recording,
        tqdm(total=length, unit="frame", desc=shown(source.name)) as progress,
    ):
        try:
            for followed in follow(tracker, itertools.chain([first], shots), boxes):
                picture = picture_of(followed, source.annotation)
                recording.add(followed, picture)
                found.append(followed.found[0].box_xywh)
                numbers.append(followed.shot.number)
                progress.update()
                if window is not None:
                    if not window.show(picture, followed.shot.image):
                        break
                    for slot, box in enumerate(window.selected[: len(boxes)]):
                        tracker.start(slot, followed.shot.image, box)
        except (CutOff, KeyboardInterrupt) as error:
            ended = error
    for file in recording.files:
        say(f"Wrote {file}")
    if source.annotation is not None:
        kept = [(number, box) for number, box in zip(numbers, found, strict=True) if number < len(source.annotation)]
        iou, frames = mean_iou([box for _, box in kept], source.annotation[[number for number, _ in kept]])
        say(f"Mean IoU with the annotation {iou:.4f} over {frames} frames")
    if isinstance(ended, CutOff):
        say(f"error: {ended}; what was tracked until there is written", error=True)
        return CUT_OFF
    if ended is not None:
        raise ended
    return 0


def check(options: argparse.Namespace) -> None:
    """Raises InputError for arguments that cannot be right."""
    if options.start < 0 or options.stride < 1 or (options.batch is not None and options.batch < 1):
        raise InputError("--start counts from 0, --stride and --batch from 1")
    if options.stop is not None and options.stop <= options.start:
        raise InputError(f"--stop {options.stop}: no frame is left from --start {options.start} on")
    for text in options.box:
        read_box(text, "--box")


def read_box(text: str, name: str) -> tuple[float, ...]:
    """x,y,w,h. Raises InputError."""
    try:
        numbers = tuple(float(value) for value in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise InputError(f"{name} {text}: a box is four numbers, x,y,w,h in pixels, such as 120,80,60,40")
    return numbers


def first_boxes(options: argparse.Namespace, source: Source, first: Shot) -> list[tuple[float, ...]]:
    """The targets in the first frame: given, from the annotation, or drawn with the mouse. Raises InputError."""
    from seqtrack.data.datasets.annotations import FaultyText, parse_boxes
    from seqtrack.data.decoding import ArrayFrame
    from seqtrack.tracker.tracker import check_box
    from seqtrack.tracker.window import check_screen, select_boxes

    boxes = [read_box(text, "--box") for text in options.box]
    if options.box_file:
        try:
            boxes += [tuple(box) for box in parse_boxes(Path(options.box_file).read_bytes()).tolist()]
        except (OSError, FaultyText) as error:
            raise InputError(f"--box-file {options.box_file}: {error}") from error
    if not boxes and source.annotation is not None and first.number < len(source.annotation):
        boxes = [tuple(source.annotation[first.number].tolist())]
    if not boxes:
        check_screen("no target: --box X,Y,W,H names it, or the mouse where there is a screen")
        boxes = select_boxes("Draw each target and press Enter; Escape after the last", first.image)
    for box in boxes:
        check_box(box, ArrayFrame(first.image))
    return boxes


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds where and in which numbers a model computes: `--device` and `--precision`."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (the first that is there)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic (fp32)")


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    """Adds the largest frame that is decoded."""
    parser.add_argument(
        "--max-pixels", type=_positive, metavar="N", help="most pixels of a frame (DATA.MAX_PIXELS of the model)"
    )


def _positive(text: str) -> int:
    """A number above 0. Raises ValueError, which argparse words."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def pick_device(name: str | None) -> str:
    """The device asked for, or the first that is there. Raises InputError."""
    import torch

    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name is not None and name.partition(":")[0] not in there:
        raise InputError(f"--device {name}: is not here ({', '.join(there)})")
    return name or there[0]
