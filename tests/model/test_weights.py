from __future__ import annotations

import http.server
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from seqtrack.cli import main
from seqtrack.config import Config
from seqtrack.model import weights as module
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import (
    Weights,
    WeightsError,
    fit_encoder,
    load_weights,
    read_weights,
    save_published,
    save_safetensors,
    starting_weights,
)
from tests.model.formula import formula_weight
from tests.model.refusal import refusal


@pytest.fixture
def model(tiny_config: Config) -> SeqTrack:
    """A model with a different number in every place, so that a swap would be noticed."""
    model = build_model(tiny_config)
    model.load_state_dict(formula_weights(model))
    return model


def formula_weights(model: SeqTrack) -> Weights:
    return {name: formula_weight(name, list(tensor.shape), salt=1) for name, tensor in model.state_dict().items()}


def other_model(tiny_config: Config) -> SeqTrack:
    torch.manual_seed(5)
    return build_model(tiny_config)


def assert_same_bytes(ours: Weights, theirs: Weights) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].numpy().tobytes() == tensor.numpy().tobytes(), name


def plain_vit(config: Config) -> Weights:
    """A ViT of the demo encoder's size, as timm names its parts, with the 14×14 grid of 224-pixel images."""
    vit = timm.create_model(
        "vit_base_patch16_224.mae", pretrained=False, embed_dim=128, depth=4, num_heads=4, num_classes=7
    )
    return {name: formula_weight(name, list(tensor.shape), salt=2) for name, tensor in vit.state_dict().items()}


def test_weights_written_in_the_published_form_come_back_bit_for_bit(
    model: SeqTrack, tiny_config: Config, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.pth.tar", tmp_path / "second.pth.tar"
    save_published(model.state_dict(), first)
    loaded = other_model(tiny_config)
    load_weights(loaded, first)
    save_published(loaded.state_dict(), second)
    for path in (first, second):
        stored = torch.load(path, weights_only=True)["net"]
        assert_same_bytes(stored, formula_weights(model))


def test_a_published_checkpoint_of_the_full_model_loads(golden: Any, tmp_path: Path) -> None:
    case = golden("model_b256")
    published = OrderedDict((name, formula_weight(name, shape, case["salt"])) for name, shape in case["parameters"])
    torch.save({"net": published}, tmp_path / "SEQTRACK_ep0500.pth.tar")
    model = build_model(Config().with_settings({"MODEL.DECODER.DEC_LAYERS": 2, "DATA.TEMPLATE.NUMBER": 2}))
    load_weights(model, tmp_path / "SEQTRACK_ep0500.pth.tar")
    assert_same_bytes(dict(model.state_dict()), dict(published))


def test_the_prefix_of_data_parallel_training_is_dropped(model: SeqTrack, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"net": wrapped, "epoch": 500}, tmp_path / "wrapped.pth.tar")
    assert_same_bytes(read_weights(tmp_path / "wrapped.pth.tar"), dict(model.state_dict()))


class TrainingObject:
    """An object like those in published checkpoints. It notes if any of its code runs."""

    ran = False

    def __init__(self) -> None:
        self.values = [1, 2]

    def __setstate__(self, state: Any) -> None:
        TrainingObject.ran = True


class Dangerous:
    def __reduce__(self) -> Any:
        return setattr, (TrainingObject, "ran", True)


def test_objects_beside_the_weights_are_left_alone(model: SeqTrack, tmp_path: Path) -> None:
    TrainingObject.ran = False
    content = {"net": model.state_dict(), "stats": TrainingObject(), "settings": Dangerous(), "seen": {1, 2}}
    torch.save(content, tmp_path / "published.pth.tar")
    assert_same_bytes(read_weights(tmp_path / "published.pth.tar"), dict(model.state_dict()))
    assert not TrainingObject.ran


def test_safetensors_come_back_bit_for_bit_from_a_file_and_from_a_checkpoint_folder(
    model: SeqTrack, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_safetensors(model.state_dict(), path)
    for source in (path, tmp_path):
        read = read_weights(source)
        assert_same_bytes({name: read[name] for name in model.state_dict()}, dict(model.state_dict()))


def test_what_does_not_fit_is_listed_by_kind(model: SeqTrack, tiny_config: Config, tmp_path: Path) -> None:
    changed = dict(model.state_dict())
    del changed["bottleneck.bias"]
    changed["extra"] = torch.zeros(1)
    changed["bottleneck.weight"] = torch.zeros(2, 2)
    save_published(changed, tmp_path / "other.pth")
    before = formula_weights(model)
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "other.pth")
    assert str(error.value) == (
        f"{tmp_path}/other.pth: does not fit the model; 1 missing: bottleneck.bias; 1 unexpected: extra; "
        "1 misshapen: bottleneck.weight is [2, 2], not [32, 128]"
    )
    assert_same_bytes(dict(model.state_dict()), before)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name) == "cannot be read (No such file or directory)"


def test_a_file_of_other_things_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"net": {"a": 1}}, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth").startswith("holds no weights (neither names with tensors, nor a dict of them")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "net.", "model.", "_orig_mod.module.", "module._orig_mod.", "module.module.model.net."],
)
def test_what_wrappers_put_in_front_of_names_is_dropped(model: SeqTrack, tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "wrapped.pth")
    assert_same_bytes(read_weights(tmp_path / "wrapped.pth"), dict(model.state_dict()))


def test_names_that_are_the_same_without_prefixes_are_refused(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "net.a": torch.zeros(1)}, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth") == "has a twice, behind different prefixes (such as `module.`)"


@pytest.mark.parametrize(
    "keys", [["net"], ["model"], ["state_dict"], ["model_state_dict"], ["model", "state_dict"], ["net", "net", "model"]]
)
def test_weights_are_found_under_the_keys_that_others_use(model: SeqTrack, tmp_path: Path, keys: list[str]) -> None:
    content: dict[str, Any] = dict(model.state_dict())
    for key in reversed(keys):
        content = {"epoch": 3, "optimizer": {"state": {}}, key: content}
    torch.save(content, tmp_path / "a.pth")
    assert_same_bytes(read_weights(tmp_path / "a.pth"), dict(model.state_dict()))


def test_a_dict_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth").startswith("holds no weights")


def test_a_model_saved_as_an_object_is_named_with_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    said = "holds no weights (but an object of torch.nn.modules.linear.Linear: save its state_dict() instead)"
    assert refusal(tmp_path / "a.pth") == said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("save", [save_published, save_safetensors])
def test_weights_that_are_not_finite_are_refused_with_the_first_named(tmp_path: Path, value: float, save: Any) -> None:
    weights = {"a": torch.ones(3), "b": torch.tensor([1, value, 2]), "c": torch.tensor(value, dtype=torch.float16)}
    save(weights | {"d": torch.arange(3)}, tmp_path / "a.pth")
    assert refusal(tmp_path / "a.pth") == "2 of 4 parameters are NaN or infinite, the first: b"


def test_a_pre_trained_encoder_that_is_not_finite_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    vit = plain_vit(tiny_config)
    vit["blocks.1.attn.qkv.weight"][0, 0] = float("nan")
    save_file(vit, tmp_path / "a.safetensors")
    settings = {
        "MODEL.ENCODER.PRETRAIN_TYPE": "default",
        "MODEL.ENCODER.PRETRAIN_FILE": str(tmp_path / "a.safetensors"),
    }
    with pytest.raises(WeightsError, match=r"a.safetensors: 1 of \d+ .* the first: blocks.1.attn.qkv.weight"):
        starting_weights(tiny_config.with_settings(settings))


def test_what_a_file_holds_decides_and_not_its_name(tmp_path: Path) -> None:
    weights = {"a": torch.arange(4.0)}
    save_safetensors(weights, tmp_path / "a.pth")
    save_published(weights, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        assert_same_bytes(read_weights(path), weights)


@pytest.mark.parametrize("layout", ["timm", "mae"])
def test_an_encoder_starts_from_a_pre_trained_file(tiny_config: Config, tmp_path: Path, layout: str) -> None:
    vit = plain_vit(tiny_config)
    if layout == "timm":
        path = tmp_path / "model.safetensors"
        save_file(vit, path)
    else:
        path = tmp_path / "mae_pretrain_vit_demo_full.pth"
        torch.save({"model": vit | {"mask_token": torch.zeros(1, 1, 128), "decoder_norm.bias": torch.zeros(4)}}, path)
    settings = {"MODEL.ENCODER.PRETRAIN_TYPE": "mae", "MODEL.ENCODER.PRETRAIN_FILE": str(path)}
    started, source = starting_weights(tiny_config.with_settings(settings))
    assert source == f"MODEL.ENCODER.PRETRAIN_FILE {path}"
    encoder = build_model(tiny_config).encoder
    assert started.keys() == {f"encoder.{name}" for name in encoder.state_dict()}
    for name, tensor in vit.items():
        if name.startswith(("blocks.", "norm.", "patch_embed.")):
            assert torch.equal(started[f"encoder.body.{name}"], tensor), name


def resize_by_definition(grid: Tensor, side: int) -> Tensor:
    """(h, h) -> (side, side) by cubic convolution (a = -0.75) with corners aligned, written out from its definition."""
    size = len(grid)

    def kernel(x: float) -> float:
        a, x = -0.75, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = torch.zeros(side, size, dtype=torch.float64)
    for row in range(side):
        position = row * (size - 1) / (side - 1)
        for tap in range(int(position) - 1, int(position) + 3):
            matrix[row, min(max(tap, 0), size - 1)] += kernel(position - tap)
    return matrix @ grid.double() @ matrix.T


def test_the_position_grid_is_resized_to_both_images_with_its_corners_in_place() -> None:
    positions = torch.randn(1, 1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    table = fit_encoder({"pos_embed": positions}, 16, 8, "test")["encoder.body.pos_embed"]
    assert table.shape == (1, 16 * 16 + 8 * 8, 8)
    grid = positions[0, 1:].reshape(14, 14, 8)
    search, template = table[0, :256].reshape(16, 16, 8), table[0, 256:].reshape(8, 8, 8)
    for channel in range(8):
        for ours, side in ((search, 16), (template, 8)):
            expected = resize_by_definition(grid[..., channel], side)
            torch.testing.assert_close(ours[..., channel].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_grid_of_the_right_size_is_taken_as_it_is() -> None:
    positions = torch.randn(1, 1 + 4 * 4, 8)
    table = fit_encoder({"pos_embed": positions}, 4, 4, "test")["encoder.body.pos_embed"]
    assert torch.equal(table, torch.cat((positions[:, 1:], positions[:, 1:]), dim=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": None}, "not a pre-trained ViT: pos_embed is none"),
        ({"pos_embed": torch.zeros(1, 12, 128)}, r"not a pre-trained ViT: pos_embed is \[1, 12, 128\]"),
        ({"norm.weight": None}, "does not fit the model; 1 missing: encoder.body.norm.weight"),
        ({"blocks.0.ls1": torch.zeros(1)}, "does not fit the model; 1 unexpected: encoder.body.blocks.0.ls1"),
    ],
)
def test_another_encoder_is_refused(
    tiny_config: Config, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    changed = plain_vit(tiny_config) | change
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, tmp_path / "a.safetensors")
    path = str(tmp_path / "a.safetensors")
    settings = {"MODEL.ENCODER.PRETRAIN_TYPE": "default", "MODEL.ENCODER.PRETRAIN_FILE": path}
    with pytest.raises(WeightsError, match=f"PRETRAIN_FILE {path}: {message}"):
        starting_weights(tiny_config.with_settings(settings))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A Hub on this machine that serves the files put into this dict by their path; the real client talks to it."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(files.get(self.path, b""))

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # As HF_ENDPOINT would set it, but the client reads that only when it is imported.
    endpoint, template = f"http://127.0.0.1:{server.server_port}", "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield files
    server.shutdown()
    server.server_close()


def test_an_encoder_starts_from_the_hub(
    tiny_config: Config, tmp_path: Path, hub: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.HUB_ENCODERS, ("vit_demo_patch16", "mae"), "timm/vit_demo_patch16_224.mae")
    vit = plain_vit(tiny_config)
    save_file(vit, tmp_path / "model.safetensors")
    served = (tmp_path / "model.safetensors").read_bytes()
    hub["/timm/vit_demo_patch16_224.mae/resolve/main/model.safetensors"] = served
    started, source = starting_weights(tiny_config.with_settings({"MODEL.ENCODER.PRETRAIN_TYPE": "mae"}))
    assert source == "timm/vit_demo_patch16_224.mae on the Hub"
    assert torch.equal(started["encoder.body.blocks.3.mlp.fc2.weight"], vit["blocks.3.mlp.fc2.weight"])


def test_weights_that_cannot_be_fetched_are_never_replaced_by_random_ones(
    tiny_config: Config, hub: dict[str, bytes]
) -> None:
    config = tiny_config.with_settings({"MODEL.ENCODER.TYPE": "vit_base_patch16", "MODEL.ENCODER.PRETRAIN_TYPE": "mae"})
    with pytest.raises(WeightsError) as error:
        starting_weights(config)
    message = str(error.value)
    assert message.startswith(
        "MODEL.ENCODER.PRETRAIN_TYPE mae: timm/vit_base_patch16_224.mae cannot be had from the Hub"
    )
    assert "Two ways out: a network" in message and "MODEL.ENCODER.PRETRAIN_FILE=FILE" in message
    assert "\n" not in message


def test_an_encoder_without_pre_trained_weights_is_refused_by_name(tiny_config: Config) -> None:
    with pytest.raises(WeightsError, match="the Hub has no such weights of vit_demo_patch16"):
        starting_weights(tiny_config.with_settings({"MODEL.ENCODER.PRETRAIN_TYPE": "mae"}))


def test_a_whole_model_to_start_from_goes_before_a_pre_trained_encoder(
    model: SeqTrack, tiny_config: Config, tmp_path: Path
) -> None:
    save_published(model.state_dict(), tmp_path / "a.pth")
    settings = {"MODEL.WEIGHTS": str(tmp_path / "a.pth"), "MODEL.ENCODER.PRETRAIN_TYPE": "mae"}
    started, source = starting_weights(tiny_config.with_settings(settings))
    assert source == str(tmp_path / "a.pth")
    assert_same_bytes(started, formula_weights(model))


def test_scratch_starts_from_nothing(tiny_config: Config) -> None:
    assert starting_weights(tiny_config) == ({}, "random")


def test_the_program_converts_there_and_back(
    model: SeqTrack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_published(model.state_dict(), tmp_path / "a.pth.tar")
    assert main(["convert-weights", str(tmp_path / "a.pth.tar"), str(tmp_path / "b.safetensors")]) == 0
    assert main(["convert-weights", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth.tar")]) == 0
    assert f"{len(model.state_dict())} tensors" in capsys.readouterr().out
    back = read_weights(tmp_path / "c.pth.tar")
    assert_same_bytes({name: back[name] for name in model.state_dict()}, dict(model.state_dict()))


def test_the_program_names_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-weights", str(tmp_path / "none.pth"), str(tmp_path / "b.safetensors")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none.pth: no such file or folder; a run, RUN/3")
