"""Compiles the blocks of a model with torch.compile (`TRAIN.COMPILE`)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from seqtrack.failures import explain
from seqtrack.model.seqtrack import SeqTrack

logger = logging.getLogger("seqtrack.model")


def compile_blocks(model: SeqTrack, device: torch.device) -> bool:
    """Makes `forward` of the encoder's blocks and of the decoder's layers compiled code, in place.

    Names of parameters, checkpoints and `generate`'s decoder stay as they are. Blocks of equal structure share their
    code. A block that torch cannot compile as a whole raises at its first call. False, with a warning in the log, if
    there is no compiler for the device.
    """
    if reason := why_no_compiler(device):
        logger.warning("TRAIN.COMPILE: torch cannot compile for %s here, so nothing is compiled: %s", device, reason)
        return False
    from torch._dynamo import config as dynamo  # imported here, because it takes seconds

    blocks = [*model.encoder.body.blocks, *model.decoder.body.layers]
    # Each rate of stochastic depth makes code of its own. Beyond this limit torch would quietly compile no more.
    dynamo.recompile_limit = max(dynamo.recompile_limit, len(blocks))
    dynamo.fail_on_recompile_limit_hit = True
    dynamo.optimize_ddp = False  # it cuts graphs so that gradients can be sent early; blocks are small enough already
    for block in blocks:
        # Random numbers come from torch's generators, as without compilation, because checkpoints have their states.
        block.compile(fullgraph=True, dynamic=False, options={"fallback_random": True})
    return True


def why_no_compiler(device: torch.device) -> str | None:
    """Compiles one addition for the device. Returns why that failed, in one line; None if it did not."""

    def add_one(x: Tensor) -> Tensor:
        return x + 1

    try:
        torch.compile(add_one)(torch.zeros(8, device=device))
    except Exception as error:  # compilers raise whatever their parts raise
        return explain(error)
    return None
