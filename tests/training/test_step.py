from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqtrack.config import Config
from seqtrack.model.images import prepare_images
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.training.step import (
    Batch,
    Objective,
    build_optimizer,
    build_scheduler,
    set_determinism,
    train_step,
)


@pytest.fixture
def model(tiny_config: Config) -> SeqTrack:
    torch.manual_seed(0)
    return build_model(tiny_config)


def make_batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        template=torch.randint(0, 256, (size, 2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        search=torch.randint(0, 256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator),
        boxes_xywh=torch.rand(size, 4, generator=generator) * 0.5,
        brightness=torch.ones(size, 3),
        sets=torch.zeros(size, dtype=torch.int64),
    )


def test_the_encoder_learns_at_its_own_rate(model: SeqTrack, tiny_config: Config) -> None:
    optimizer = build_optimizer(model, tiny_config.TRAIN)
    rest, encoder = optimizer.param_groups
    assert (rest["lr"], encoder["lr"]) == (0.001, pytest.approx(0.0001))
    assert len(encoder["params"]) == len(list(model.encoder.parameters()))
    assert len(rest["params"]) + len(encoder["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("setting", [{"TRAIN.ENCODER_MULTIPLIER": 0.0}, {"TRAIN.FREEZE_ENCODER": True}])
def test_a_frozen_encoder_does_not_change(model: SeqTrack, tiny_config: Config, setting: dict[str, object]) -> None:
    config = tiny_config.with_settings(setting)
    before = copy.deepcopy(model.state_dict())
    train_step(model, build_optimizer(model, config.TRAIN), make_batch(), Objective(config))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any("encoder" in name for name in changed)


def test_parts_of_a_frozen_encoder_can_be_opened(model: SeqTrack, tiny_config: Config) -> None:
    """The published rule: the first two entries are whole names, the others parts of names."""
    opened = ["pos_embed", "norm", "blocks.3", "mlp.fc1.bias"]
    build_optimizer(
        model, tiny_config.with_settings({"TRAIN.FREEZE_ENCODER": True, "TRAIN.ENCODER_OPEN": opened}).TRAIN
    )
    names = [name for name, _ in model.encoder.body.named_parameters()]
    trainable = {name for name, parameter in model.encoder.body.named_parameters() if parameter.requires_grad}
    assert trainable == {"pos_embed"} | {name for name in names if "blocks.3" in name or "mlp.fc1.bias" in name}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"TRAIN.LR_DROP_EPOCH": 2}, [1, 1, 0.1, 0.1, 0.01]),
        (
            {
                "TRAIN.SCHEDULER.TYPE": "Mstep",
                "TRAIN.SCHEDULER.MILESTONES": [1, 3],
                "TRAIN.SCHEDULER.GAMMA": 0.5,
            },
            [1, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
    ids=["step", "Mstep"],
)
def test_the_learning_rate_follows_the_schedule(
    model: SeqTrack, tiny_config: Config, settings: dict[str, object], rates: list[float]
) -> None:
    config = tiny_config.with_settings(settings)
    optimizer = build_optimizer(model, config.TRAIN)
    scheduler = build_scheduler(optimizer, config.TRAIN)
    seen = []
    for _ in rates:
        seen.append(optimizer.param_groups[0]["lr"] / config.TRAIN.LR)
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(rates)


def test_images_are_brightened_clamped_and_normalised() -> None:
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)  # (1, 1, 1, 3): one pixel
    mean, std = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.25, 0.5, 0.5])
    ready = prepare_images(images, torch.tensor([1.2]), mean, std)
    torch.testing.assert_close(ready, torch.tensor([[[[-2.0]], [[-0.52]], [[1.0]]]]))


def test_steps_lower_the_loss(model: SeqTrack, tiny_config: Config) -> None:
    optimizer = build_optimizer(model, tiny_config.TRAIN)
    losses = [train_step(model, optimizer, make_batch(), Objective(tiny_config))[0].item() for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_reports_the_gradient_norm_before_clipping(model: SeqTrack, tiny_config: Config) -> None:
    reported = train_step(model, build_optimizer(model, tiny_config.TRAIN), make_batch(), Objective(tiny_config))[2]
    clipped = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    assert reported > 0.2
    assert clipped.item() == pytest.approx(tiny_config.TRAIN.GRAD_CLIP_NORM, rel=1e-3)


def test_bf16_computes_about_the_same_loss_and_keeps_fp32_weights(model: SeqTrack, tiny_config: Config) -> None:
    low = tiny_config.with_settings({"TRAIN.PRECISION": "bf16"})
    losses = []
    for config in (tiny_config, low):
        torch.manual_seed(0)
        twin = copy.deepcopy(model).eval()
        losses.append(train_step(twin, build_optimizer(twin, config.TRAIN), make_batch(), Objective(config))[0].item())
        assert {parameter.dtype for parameter in twin.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_determinism_can_be_switched_on_and_off() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for enabled in (True, False):
            set_determinism(enabled)
            assert torch.are_deterministic_algorithms_enabled() == enabled
            assert torch.backends.cudnn.benchmark == (not enabled)
    finally:
        set_determinism(before)


def test_memory_is_not_filled_before_it_is_used() -> None:
    """Deterministic mode would do so, with one more kernel for each tensor."""
    before = torch.are_deterministic_algorithms_enabled()
    try:
        set_determinism(True)
        assert torch.utils.deterministic.fill_uninitialized_memory is False  # type: ignore[attr-defined]
    finally:
        set_determinism(before)


class OnlyOnTheGpu(TorchDispatchMode):
    """Refuses tensors of the host. Reading a number from a (fake) GPU is refused by FakeTensorMode itself."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_cuda, f"{function} has a tensor of the host"
        return result


MIXTURE = {
    "DATA.TRAIN.DATASETS_NAME": ["LASOT", "COCO17"],
    "DATA.TRAIN.DATASETS_RATIO": [1, 1],
}


@pytest.mark.parametrize("settings", [{}, {"DATA.SEQ_FORMAT": "whxy"}, {"DATA.SEQ_FORMAT": "corner"}, MIXTURE])
def test_a_step_neither_reads_from_a_gpu_nor_copies_to_it(tiny_config: Config, settings: dict[str, Any]) -> None:
    """The GPU is made up, so this runs without one. It cannot run `loss.backward()`, which is torch's alone."""
    config = tiny_config.with_settings(settings)
    with torch.device("meta"):
        model = build_model(config)

    def forward_only(model: nn.Module, batch: Batch, objective: Objective) -> torch.Tensor:
        _, measured = objective(model, batch)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        return measured

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cuda")
        optimizer, objective = build_optimizer(model, config.TRAIN), Objective(config).to("cuda")
        batch = Batch(*(torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in make_batch()))
        with OnlyOnTheGpu():
            assert train_step(model, optimizer, batch, objective, forward_only).is_cuda


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("settings", [{}, {"TRAIN.PRECISION": "bf16"}, MIXTURE])
def test_a_step_does_not_wait_for_the_gpu(tiny_config: Config, settings: dict[str, Any]) -> None:
    config, device = tiny_config.with_settings(settings), torch.device("cuda")
    model = build_model(config).to(device)
    optimizer, objective = build_optimizer(model, config.TRAIN), Objective(config).to(device)
    batch = Batch(*(part.to(device) for part in make_batch()))
    train_step(model, optimizer, batch, objective)  # the first step makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(model, optimizer, batch, objective)
    finally:
        torch.cuda.set_sync_debug_mode("default")
