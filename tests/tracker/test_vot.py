"""`seqtrack vot`: a TraX client gets the boxes that the tracker finds."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.cli import main
from seqtrack.tracker import Tracker
from tests.training.loops import trained_run
from tests.training.runs import REPOSITORY

trax = pytest.importorskip("trax")  # PyPI has it built for few machines
from trax import BufferImage, FileImage, Image, Polygon, Rectangle, Region  # noqa: E402
from trax.client import Client  # noqa: E402

Box = tuple[float, float, float, float]
FIRST: Box = (20.25, 21.5, 30, 28.125)
LATER: Box = (50, 20, 30, 30)
DIGITS = 0.5e-4 + 1e-5
"""TraX writes four digits after the point; the rest is that of float32."""


@pytest.fixture(scope="module")
def run(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def frames(lasot_root: Path) -> list[Path]:
    return sorted((lasot_root / "coin/coin-1/img").iterdir())


def command(run: Path) -> list[str]:
    return [sys.executable, "ray_jobs/vot.py", "--weights", str(run), "--device", "cpu"]


@contextmanager
def session(run: Path, over_socket: bool = False) -> Iterator[Client]:
    """A client of vot-trax and the program that it asks. As in the toolkit, stderr goes where stdout goes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        if over_socket:
            environment["TRAX_SOCKET"] = str(listening.getsockname()[1])
        with subprocess.Popen(
            command(run), cwd=REPOSITORY, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            pipes = process.stdin.fileno(), process.stdout.fileno()
            try:
                client = Client(listening.fileno() if over_socket else pipes, timeout=120, log=lambda _: None)
                yield client
                client.quit()
                assert process.wait(60) == 0
            finally:
                process.kill()


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[Client]:
    """A session that all tests continue: each starts a sequence of its own."""
    with session(run) as client:
        yield client


def start(client: Client, image: Image, *regions: Region) -> list[Box]:
    return boxes_of(client.initialize({"color": image}, [(region, {}) for region in regions], {})[0])


def go_on(client: Client, image: Image, *new: Region) -> list[Box]:
    return boxes_of(client.frame({"color": image}, {}, [(region, {}) for region in new])[0])


def boxes_of(objects: list[tuple[Region, dict[str, str]]]) -> list[Box]:
    return [region.bounds() for region, _ in objects]


def expected(run: Path, frames: Sequence[Path], box: Box) -> list[Box]:
    """The boxes that the tracker finds after the first frame."""
    tracker = Tracker.from_pretrained(str(run), benchmark="VOT22")
    tracker.initialize(picture_of(frames[0]), box)
    return [tracker.track(picture_of(frame)).box_xywh for frame in frames[1:]]


def picture_of(frame: Path) -> np.ndarray:
    picture = cv2.imread(str(frame), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return picture


@pytest.mark.parametrize("over_socket", [False, True], ids=["pipes", "socket"])
def test_a_client_gets_the_boxes_of_the_tracker(run: Path, frames: list[Path], over_socket: bool) -> None:
    with session(run, over_socket) as client:
        assert start(client, FileImage.create(str(frames[0])), Rectangle.create(*FIRST)) == [FIRST]
        found = [go_on(client, FileImage.create(str(frame)))[0] for frame in frames[1:12]]
    wanted = expected(run, frames[:12], FIRST)
    assert len(set(wanted)) > 5
    assert np.abs(np.subtract(found, wanted)).max() <= DIGITS


def test_each_frame_has_the_confidence_of_its_box(client: Client, run: Path, frames: list[Path]) -> None:
    start(client, FileImage.create(str(frames[0])), Rectangle.create(*FIRST))
    ((_, properties),), _ = client.frame({"color": FileImage.create(str(frames[1]))}, {}, [])
    tracker = Tracker.from_pretrained(str(run))
    tracker.initialize(picture_of(frames[0]), FIRST)
    assert float(properties["confidence"]) == tracker.track(picture_of(frames[1])).confidence


def test_targets_that_begin_together_or_later_have_the_boxes_that_each_has_alone(
    client: Client, run: Path, frames: list[Path]
) -> None:
    images = [FileImage.create(str(frame)) for frame in frames[:6]]
    second: Box = (60, 30, 20, 25)
    together = [Rectangle.create(*FIRST), Rectangle.create(*second)]
    found = [start(client, images[0], *together), go_on(client, images[1]), go_on(client, images[2])]
    found += [go_on(client, images[3], Rectangle.create(*LATER))]
    found += [go_on(client, image) for image in images[4:]]
    assert [len(boxes) for boxes in found] == [2, 2, 2, 3, 3, 3]
    for number, (box, begin) in enumerate(((FIRST, 0), (second, 0), (LATER, 3))):
        alone = [box, *expected(run, frames[begin:6], box)]
        assert np.abs(np.subtract([boxes[number] for boxes in found[begin:]], alone)).max() <= DIGITS


def test_a_new_sequence_forgets_the_targets_of_the_last(client: Client, run: Path, frames: list[Path]) -> None:
    start(client, FileImage.create(str(frames[0])), Rectangle.create(*FIRST), Rectangle.create(*LATER))
    assert len(start(client, FileImage.create(str(frames[4])), Rectangle.create(*LATER))) == 1
    (found,) = go_on(client, FileImage.create(str(frames[5])))
    assert found == pytest.approx(expected(run, frames[4:6], LATER)[0], abs=DIGITS)


def as_png(frame: Path) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture_of(frame), cv2.COLOR_RGB2BGR))[1])


@pytest.mark.parametrize("encode", [Path.read_bytes, as_png], ids=["jpeg", "png"])
def test_pictures_may_come_as_the_bytes_of_files(
    encode: Callable[[Path], bytes], client: Client, run: Path, frames: list[Path]
) -> None:
    start(client, BufferImage.create(encode(frames[0])), Rectangle.create(*FIRST))
    found = [go_on(client, BufferImage.create(encode(frame)))[0] for frame in frames[1:4]]
    assert np.abs(np.subtract(found, expected(run, frames[:4], FIRST))).max() <= DIGITS


def test_a_polygon_or_a_mask_is_followed_as_the_rectangle_around_it(
    client: Client, run: Path, frames: list[Path]
) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[5:30, 10:40:3] = 1
    polygon = Polygon.create([(20.0, 30.0), (45.5, 21.5), (50.0, 40.0), (35.0, 49.0)])
    image = FileImage.create(str(frames[0]))
    assert start(client, image, polygon, trax.Mask.create(mask, x=7, y=11)) == [(20, 21.5, 30, 27.5), (17, 16, 28, 25)]


def test_a_client_that_makes_no_rectangle_of_its_polygon_gets_one_too(run: Path, frames: list[Path]) -> None:
    said = talk(run, f'initialize "20,30,45.5,21.5,50,40,35,49"\n@@TRAX:frame "file://{frames[0]}"\n@@TRAX:quit')
    assert '@@TRAX:state "20.0000,21.5000,30.0000,27.5000"' in said.stdout
    assert said.returncode == 0


def talk(run: Path, text: str) -> subprocess.CompletedProcess[str]:
    """What the program answers to a client that says only this."""
    environment = {name: value for name, value in os.environ.items() if name != "TRAX_SOCKET"}
    return subprocess.run(
        command(run), input=f"@@TRAX:{text}\n", cwd=REPOSITORY, env=environment | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip


FAULTS = {
    'initialize "1,2,30,40"\n@@TRAX:frame "file:///nowhere/1.jpg"': (
        2,
        "/nowhere/1.jpg: there is no such file or folder",
    ),
    'initialize "1,2,0,40"\n@@TRAX:frame "{frame}"': (2, "box 1,2,0,40: its width and height must be above 0"),
    'initialize "1,2,30,40"\n@@TRAX:frame "{text}"': (2, "cannot be read (not a decodable image)"),
    'initialize "1,2,30,40"\n@@TRAX:frame "{frame}"': (1, "the client is gone, or what it sent cannot be read ("),
    "nonsense": (1, "the client is gone, or what it sent cannot be read ("),
}
"""What a client says -> exit code, and the error."""


@pytest.mark.parametrize("text", FAULTS)
def test_what_cannot_be_tracked_ends_the_session_with_a_line(
    text: str, run: Path, frames: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    ended = talk(run, text.replace("{frame}", f"file://{frames[0]}").replace("{text}", f"file://{tmp_path}/a.jpg"))
    code, part = FAULTS[text]
    assert ended.returncode == code
    *said, error = ended.stderr.splitlines()
    assert part in error and error.startswith("error: ")
    assert [line.partition(" on ")[2] for line in said] == ["cpu"]
    last = ended.stdout.splitlines()[-1]
    assert last.startswith("@@TRAX:quit") and (code == 1 or part in last)


@pytest.mark.parametrize("weights", ["{folder}/runs/none", "{folder}/a.safetensors"])
def test_weights_that_cannot_be_used_are_a_line_on_stderr(
    weights: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"<html>")
    source = weights.format(folder=tmp_path)
    assert main(["vot", "--weights", source, "--device", "cpu"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"error: {source}: ") and err.count("\n") == 1


def test_a_missing_package_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trax", None)  # importing it then raises what a missing package raises
    assert main(["vot", "--weights", "runs/x"]) == 2
    assert capfd.readouterr() == (
        "",
        "error: the Python package trax is not installed: pip install 'seqtrack[vot]'\n",
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_it_says_who_starts_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["vot", "--weights", str(run), "--device", "cpu"]) == 2
    assert "error: nobody speaks TraX here: the VOT toolkit starts this program" in capfd.readouterr().err


def test_what_is_printed_meanwhile_does_not_reach_the_client(run: Path, frames: list[Path]) -> None:
    """Neither by Python nor by native code; both may leave a line without its end."""
    text = f'@@TRAX:initialize "1,2,30,40"\n@@TRAX:frame "file://{frames[0]}"\n@@TRAX:quit\n'
    ended = subprocess.run(
        [sys.executable, "-c", NOISY, str(run)], input=text, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True,
    )  # fmt: skip
    before, hello, state, *_ = ended.stdout.splitlines()
    assert (before, hello[:14], state[:14]) == ("half a line", '@@TRAX:hello "', '@@TRAX:state "')
    assert "printed" in ended.stderr and "native" in ended.stderr


NOISY = """
import os, sys
from seqtrack.cli import main
from seqtrack.tracker import tracker

os.write(1, b"half a line")
start = tracker.BatchTracker.start

def noisy(*arguments):
    print("printed", end="", flush=True)
    os.write(1, b"native")
    start(*arguments)

tracker.BatchTracker.start = noisy
sys.exit(main(["vot", "--weights", sys.argv[1], "--device", "cpu"]))
"""
