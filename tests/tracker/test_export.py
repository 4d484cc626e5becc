"""`seqtrack export`: the file computes what PyTorch computes, and says all that a tracker has to know."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from seqtrack.cli import main
from seqtrack.config import SETTINGS_FILE, Config
from seqtrack.errors import InputError
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import save_safetensors
from seqtrack.tracker import Tracker, TrackerSettings, export
from seqtrack.tracker.load import load_trained
from tests.checkpoints import save
from tests.tracker.tracks import GOLDEN_TRACKS, frames_of, model_of, settings_of
from tests.training.runs import REPOSITORY

TRACKS = [track for track in GOLDEN_TRACKS if track["window"] == (track["seq_format"] != "xywh")]
"""One for each order of the tokens."""


class Case(NamedTuple):
    """A model with the weights of a published track, and its file."""

    track: dict[str, Any]
    model: SeqTrack
    settings: TrackerSettings
    file: Path


@pytest.fixture(scope="module", params=TRACKS, ids=lambda track: track["seq_format"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model, settings = model_of(request.param), settings_of(request.param)
    file = tmp_path_factory.mktemp("exported") / "demo.onnx"
    assert export.export(model, settings, "formula", file) <= 1e-4
    return Case(request.param, model, settings, file)


@pytest.fixture
def weights(tiny_config: Config, tmp_path: Path) -> Path:
    """A file of weights with its settings beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_safetensors(build_model(tiny_config).state_dict(), folder / "a.safetensors")
    (folder / SETTINGS_FILE).write_text(tiny_config.to_yaml())
    return folder / "a.safetensors"


def session_of(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def facts_of(file: Path) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in session_of(file).get_modelmeta().custom_metadata_map.items()}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("windowed", [False, True])
def test_batches_of_any_size_have_the_tokens_and_probabilities_of_pytorch(
    case: Case, batch: int, windowed: bool
) -> None:
    template, search = torch.randn(batch, 2, 3, 64, 64), torch.randn(batch, 3, 64, 64)
    window = torch.linspace(0, 1, 100) if windowed else torch.ones(100)
    inputs = {"template": template.numpy(), "search": search.numpy(), "window": window.numpy()}
    tokens, confidence = session_of(case.file).run(["tokens", "confidence"], inputs)
    expected = case.model.generate(template, search, window)
    assert tokens.tolist() == expected.tokens.tolist()
    assert np.abs(confidence - expected.confidence.numpy()).max() <= 1e-4


def test_the_lines_in_the_documentation_track_as_the_published_tracker_does(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need only NumPy, OpenCV and onnxruntime, and renew templates."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/tracking.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "demo.onnx" in block)
    assert set(re.findall(r"\b(?:import|from) (.+)", lines)) == {"json, math", "cv2, numpy as np, onnxruntime"}
    monkeypatch.chdir(case.file.parent)
    names: dict[str, Any] = {}
    exec(lines, names)
    frames, init = frames_of(case.track)[:13], case.track["init"]
    tracker = Tracker(case.model, case.settings)
    tracker.initialize(frames[0], init)
    expected = [tracker.track(frame) for frame in frames[1:]]
    assert tracker.updates == 2
    found = list(names["track"](frames, tuple(init)))
    for boxes in (case.track["boxes"][1:13], [one.box_xywh for one in expected]):
        assert np.abs(np.array([box for box, _ in found]) - boxes).max() <= 1e-2
    assert [score for _, score in found] == pytest.approx([one.confidence for one in expected], abs=1e-3)


def test_the_metadata_have_all_settings_of_the_tracker(case: Case) -> None:
    settings = json.loads(json.dumps(asdict(case.settings)))
    facts = facts_of(case.file)
    assert {name: facts[name] for name in settings} == settings
    assert (facts["confidence_scale"], facts["margin"], facts["recipe"]) == (10, 10, "formula")


def test_a_file_says_nothing_of_the_machine_that_wrote_it(case: Case) -> None:
    content = case.file.read_bytes()
    assert str(REPOSITORY).encode() not in content
    assert sys.prefix.encode() not in content and b"site-packages" not in content


def test_a_checkpoint_is_exported_with_two_lines_and_no_noise(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tiny_config.with_settings({"TEST.WINDOW": True}), tmp_path / "runs/tiny", 6)
    capfd.readouterr()
    assert main(["export", "--weights", str(tmp_path / "runs/tiny"), "--output", str(tmp_path / "a.onnx")]) == 0
    said, err = capfd.readouterr()
    assert err == ""
    begun, wrote, checked = said.splitlines()
    assert begun == f"Writing {checkpoint} as ONNX and comparing it with PyTorch …"
    assert wrote.startswith(f"Wrote {tmp_path}/a.onnx, ")
    match = re.fullmatch(
        "In batches of 1 and 3: the same tokens as PyTorch, probabilities at most (.+) from its", checked
    )
    assert match is not None and float(match[1]) <= 1e-4
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    facts = facts_of(tmp_path / "a.onnx")
    assert (facts["weights_sha256"], facts["recipe"], facts["window"]) == (digest, "tiny", True)


def test_a_file_that_fails_its_check_never_appears(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    target = tmp_path / "a.onnx"
    target.write_text("an earlier one")
    assert main(["export", "--weights", str(weights), "--output", str(target)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {target}: was not written: onnxruntime's probabilities are ")
    assert said.endswith(" from PyTorch's, more than -1e+00\n") and said.count("\n") == 1
    assert target.read_text() == "an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "model"}


def changed(model: SeqTrack, spread: float, rise: float) -> SeqTrack:
    """A copy with other logits: noise of this spread in all, and the last one, which is never chosen, raised."""
    copied = copy.deepcopy(model)
    bias = copied.get_parameter("vocab_embed.layers.2.bias").data
    bias += spread * torch.randn(len(bias), generator=torch.Generator().manual_seed(1))
    bias[-1] += rise
    return copied


def test_the_check_finds_a_file_of_another_model(case: Case) -> None:
    with pytest.raises(export.ExportError, match="finds other tokens than PyTorch in a batch of 1"):
        export.largest_deviation(case.file, changed(case.model, 10, 0), case.settings)


def test_the_check_finds_a_file_with_other_probabilities(case: Case) -> None:
    with pytest.raises(export.ExportError, match=r"probabilities are .* from PyTorch's, more than 1e-04"):
        export.largest_deviation(case.file, changed(case.model, 0, 2), case.settings)


def test_the_check_finds_a_file_that_is_no_model(case: Case, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(case.file.read_bytes()[:-1000])
    with pytest.raises(export.ExportError, match="onnxruntime cannot run what was written"):
        export.largest_deviation(tmp_path / "a.onnx", case.model, case.settings)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_package_that_is_not_installed_is_named_with_what_installs_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it then raises what a missing package raises
    assert main(["export", "--weights", "runs/x", "--output", str(tmp_path / "a.onnx")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: the Python package {package} is not installed: pip install 'seqtrack[export]'\n"


OUTPUTS = {
    "{folder}": "the file's name ends in .onnx",
    "{folder}/a.pth": "the file's name ends in .onnx",
    "{folder}/a.onnx": "is a folder; name a file in it",
    "{folder}/none/b.onnx": "there is no folder",
    "{folder}/file/b.onnx": "there is no folder",
    "{folder}/" + "x" * 300 + ".onnx": "cannot be written (",
    "/proc/b.onnx": "cannot be written (",
    "s3://bucket/b.onnx": "is no file of this machine",
    "": "an empty path",
}


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output[:20])
def test_a_place_that_cannot_be_written_to_is_said_in_a_line(
    output: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "--weights", str(weights), "--output", output.format(folder=tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and OUTPUTS[output] in said
    assert sorted(tmp_path.rglob("*")) == before


FAULTS = {
    "nowhere.safetensors": "nowhere.safetensors: no such file",
    "alone.safetensors": "holds weights only; --config NAME|FILE names the settings",
    "model/nan.safetensors": "parameters are NaN or infinite",
    "model/page.pth": "is a web page (HTML)",
}


@pytest.mark.parametrize("source", FAULTS)
def test_weights_that_cannot_be_used_are_said_in_a_line(
    source: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(weights)
    save_safetensors(state, tmp_path / "alone.safetensors")
    save_safetensors(state | {"pos_embed": state["pos_embed"] * torch.nan}, tmp_path / "model/nan.safetensors")
    (tmp_path / "model/page.pth").write_text("<!doctype html>")
    assert main(["export", "--weights", str(tmp_path / source), "--output", str(tmp_path / "a.onnx")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and FAULTS[source] in said
    assert not (tmp_path / "a.onnx").exists()


def test_a_model_that_is_too_large_for_one_file_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(str(weights))
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(InputError, match="bytes of weights, and one ONNX file holds 1,000 at most"):
        export.export(trained.model, TrackerSettings.from_config(trained.config), "tiny", tmp_path / "a.onnx")
