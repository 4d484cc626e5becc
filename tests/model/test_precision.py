from __future__ import annotations

import pytest
import torch

from seqtrack.model.precision import set_precision


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_products_and_convolutions_use_tf32_only_if_asked(precision: str, tf32: bool) -> None:
    """Convolutions too, where TF32 is torch's default."""
    try:
        set_precision(precision, torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
        assert torch.backends.cudnn.allow_tf32 == tf32
    finally:
        set_precision("fp32", torch.device("cuda"))


@pytest.mark.parametrize(
    ("precision", "instructions", "said"),
    [
        ("fp32", {}, []),
        ("tf32", {}, ["precision tf32 has no effect on a CPU, which computes in fp32"]),
        (
            "bf16",
            {"avx512_bf16": False},
            ["precision bf16 is slow on this CPU, which has no instructions for it"],
        ),
        ("bf16", {"avx512_bf16": True}, []),
    ],
)
def test_the_log_says_what_a_cpu_cannot_do(
    precision: str,
    instructions: dict[str, bool],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    try:
        set_precision(precision, torch.device("cpu"))
    finally:
        set_precision("fp32", torch.device("cpu"))
    assert [message.partition("; ")[0] for message in caplog.messages] == said
