"""Which arithmetic a device computes with."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names of the instructions that multiply bf16: x86's, and ARM's."""


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16: with AVX2 only, a matrix product took 157 times as long as in fp32."""
    return any(map(torch.cpu.get_capabilities().get, BF16_INSTRUCTIONS))


def set_precision(precision: str, device: torch.device) -> None:
    """Chooses what a GPU computes products and convolutions of fp32 with: TF32, or fp32 and nothing less.

    torch's own default is TF32 in convolutions. bf16 is chosen by autocast. Logs a warning where the device lacks
    instructions for the `precision`.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if device.type != "cpu":
        return
    if precision == "tf32":
        logger.warning("precision tf32 has no effect on a CPU, which computes in fp32")
    elif precision == "bf16" and not cpu_has_bf16():
        logger.warning("precision bf16 is slow on this CPU, which has no instructions for it; fp32 is faster")
