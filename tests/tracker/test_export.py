"""`seqtrack export`: the file computes what PyTorch computes, and says all that a tracker has to know."""

from __future__ import annotations

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
from torch import Tensor

from seqtrack.cli import main
from seqtrack.config import SETTINGS_FILE, Config, parse_config
from seqtrack.errors import InputError
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import save_safetensors
from seqtrack.tracker import Tracker, TrackerSettings, export
from seqtrack.tracker.load import load_trained
from tests.checkpoints import save
from tests.data.pictures import smooth
from tests.model.formula import formula_weight
from tests.settings import make_tiny_settings
from tests.training.runs import REPOSITORY

KINDS = {"xywh": "x", "whxy": "xz", "corner": "token"}
"""SEQ_FORMAT of the models under test, and FEATURE_TYPE."""


class Case(NamedTuple):
    """A model with weights by formula, and its ONNX file."""

    weights: Path
    config: Config
    file: Path


def tiny(lasot_root: Path, folder: Path, seq_format: str) -> tuple[Path, Config]:
    """Writes weights and, beside them, their settings: two templates, renewed every third frame."""
    settings: dict[str, Any] = make_tiny_settings(lasot_root, folder)
    settings["DATA"]["SEQ_FORMAT"] = seq_format
    settings["MODEL"]["FEATURE_TYPE"] = KINDS[seq_format]
    settings["TEST"] = {"UPDATE_INTERVALS": {"DEFAULT": 3}, "UPDATE_THRESHOLD": {"DEFAULT": 0.5}}
    config = parse_config(settings, "tiny")
    shapes = {name: list(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    save_safetensors({name: formula_weight(name, shape, 1) for name, shape in shapes.items()}, folder / "a.safetensors")
    (folder / SETTINGS_FILE).write_text(config.to_yaml())
    return folder / "a.safetensors", config


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("exported")
    weights, config = tiny(lasot_root, folder, request.param)
    assert main(["export", "--weights", str(weights), "--output", str(folder / "demo.onnx")]) == 0
    return Case(weights, config, folder / "demo.onnx")


@pytest.fixture
def weights(lasot_root: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tiny(lasot_root, tmp_path / "model", "xywh")[0]


def session_of(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("window", [None, torch.linspace(0, 1, 16)], ids=["its own window", "another window"])
def test_batches_of_any_size_have_the_tokens_and_probabilities_of_pytorch(
    case: Case, batch: int, window: Tensor | None
) -> None:
    model = load_trained(str(case.weights)).model
    template, search = torch.randn(batch, 2, 3, 32, 32), torch.randn(batch, 3, 32, 32)
    inputs = {"template": template.numpy(), "search": search.numpy()}
    if window is not None:
        inputs["window"] = window.numpy()
    tokens, confidence = session_of(case.file).run(["tokens", "confidence"], inputs)
    expected = model.generate(template, search, torch.hann_window(16, periodic=False) if window is None else window)
    assert tokens.tolist() == expected.tokens.tolist()
    assert np.abs(confidence - expected.confidence.numpy()).max() <= 1e-4


def test_the_lines_in_the_documentation_track_as_the_tracker_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing but NumPy, OpenCV and onnxruntime, and with templates that are renewed."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/tracking.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "demo.onnx" in block)
    assert set(re.findall(r"\b(?:import|from) (.+)", lines)) == {"json, math", "cv2, numpy as np, onnxruntime"}
    monkeypatch.chdir(case.file.parent)
    names: dict[str, Any] = {}
    exec(lines, names)
    frames = [smooth(96, 128, 0.4 * number) for number in range(11)]
    tracker = Tracker.from_pretrained(str(case.weights))
    tracker.initialize(frames[0], (60.0, 40.0, 31.0, 24.0))
    expected = [tracker.track(frame) for frame in frames[1:]]
    assert tracker.updates > 0
    assert len({one.box_xywh for one in expected}) > 5
    found = list(names["track"](frames, (60.0, 40.0, 31.0, 24.0)))
    assert np.abs(np.array([box for box, _ in found]) - [one.box_xywh for one in expected]).max() <= 1e-2
    assert [score for _, score in found] == pytest.approx([one.confidence for one in expected], abs=1e-3)


def test_the_metadata_have_all_settings_of_the_tracker(case: Case) -> None:
    stored = session_of(case.file).get_modelmeta().custom_metadata_map
    facts = {name: json.loads(value) for name, value in stored.items()}
    settings = asdict(TrackerSettings.from_config(case.config))
    assert {name: facts[name] for name in settings} == json.loads(json.dumps(settings))
    assert facts["recipe"] == "tiny"
    assert facts["weights_sha256"] == hashlib.sha256(case.weights.read_bytes()).hexdigest()


def test_a_file_says_nothing_of_the_machine_that_wrote_it(case: Case) -> None:
    content = case.file.read_bytes()
    assert str(REPOSITORY).encode() not in content and str(case.weights.parent).encode() not in content
    assert sys.prefix.encode() not in content and b"site-packages" not in content


def test_a_checkpoint_is_exported_with_two_lines_and_no_noise(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save(tiny_config.with_settings({"TEST.WINDOW": False}), tmp_path / "runs/tiny", 6)
    capfd.readouterr()
    assert main(["export", "--weights", str(tmp_path / "runs/tiny"), "--output", str(tmp_path / "a.onnx")]) == 0
    said, err = capfd.readouterr()
    assert err == ""
    begun, wrote, checked = said.splitlines()
    assert begun == f"Writing {checkpoint} as ONNX and comparing it with PyTorch …"
    assert wrote.startswith(f"Wrote {tmp_path}/a.onnx, ")
    match = re.fullmatch(
        r"In batches of 1 and 3: the same tokens as PyTorch, probabilities at most (.+) from its", checked
    )
    assert match is not None and float(match[1]) <= 1e-4
    facts = session_of(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert (facts["weights_sha256"], facts["window"]) == (json.dumps(digest), "false")


def others(find: Any) -> Any:
    """What `FindTarget` computes, but with the next token."""

    def forward(self: Any, template: Tensor, search: Tensor, window: Tensor) -> Any:
        tokens, confidence, box = find(self, template, search, window)
        return tokens + torch.onnx.is_in_onnx_export(), confidence, box

    return forward


@pytest.mark.parametrize("fault", ["tokens", "probabilities"])
def test_a_file_that_does_not_do_what_pytorch_does_never_appears(
    weights: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "tokens":
        monkeypatch.setattr(export.FindTarget, "forward", others(export.FindTarget.forward))
        message = "was not written: onnxruntime finds other tokens than PyTorch in a batch of 1\n"
    else:
        monkeypatch.setattr(export, "TOLERANCE", -1.0)
        message = " from PyTorch's, more than -1e+00\n"
    target = tmp_path / "a.onnx"
    target.write_text("an earlier one")
    assert main(["export", "--weights", str(weights), "--output", str(target)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {target}: was not written: ") and said.endswith(message) and said.count("\n") == 1
    assert target.read_text() == "an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "model"}


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
    "{folder}/" + "x" * 240 + ".onnx": "cannot be written (",
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
    "page.pth": "is a web page (HTML)",
}


@pytest.mark.parametrize("source", FAULTS)
def test_weights_that_cannot_be_used_are_said_in_a_line(
    source: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(weights)
    save_safetensors(state, tmp_path / "alone.safetensors")
    save_safetensors(state | {"pos_embed": state["pos_embed"] * torch.nan}, tmp_path / "model/nan.safetensors")
    (tmp_path / "page.pth").write_text("<!doctype html>")
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
