"""Speed of the tracker against the plain way to compute the same, in one run.

    python -m benchmarks.tracker [--config seqtrack_b256] [--batch 1 4] [--frames 5] [--device cuda] [--precision bf16]

The plain way is that of the published code: templates are embedded again for every frame, attention is written out, the
causal mask is made on the CPU at each of the four tokens, all of the decoder is computed again for each of them, and
sequences are tracked one at a time. The largest rate of multiplications is measured by products of two large matrices.
The three are measured in turns, since other programs slow a machine down for a while; the medians of the turns count.
Prints, for each batch size: frames/s of both, their ratio, the latency of a frame, the share of the largest rate at
which the model computes its matrix products (those of attention among them), and the share of the time that is spent
around the model (crops, boxes, templates).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqtrack.config import load_config
from seqtrack.model.seqtrack import Generated, SeqTrack, build_model
from seqtrack.tracker import BatchTracker, TrackerSettings

PRODUCT = 2048
"""Side of the matrices whose product measures the largest rate; 8192 on a GPU."""


def plain_generate(model: SeqTrack, template: Tensor, search: Tensor, window: Tensor | None) -> Tensor:
    """(B, 4) tokens as the published code computes them."""
    tokens = torch.full((len(search), 1), model.bins + 1, dtype=torch.int64, device=search.device)
    memory = model.encode(template, search)
    for position in range(4):
        length = tokens.shape[1]
        mask = torch.ones(length, length).triu(1).bool().to(search.device)
        positions = model.decoder.embedding.position_embeddings.weight[:length]
        x = model.decoder.embedding(tokens)
        for layer in model.decoder.body.layers:
            x = layer(x, memory, positions, model.pos_embed, mask)
        probabilities = model.vocab_embed(model.decoder.body.norm(x))[:, -1].softmax(-1)[:, : model.bins].double()
        if window is not None and position < 2:
            probabilities = probabilities * window
        tokens = torch.cat((tokens, probabilities.argmax(-1, keepdim=True)), dim=1)
    return tokens[:, 1:]


def fuse_attention(model: SeqTrack, fused: bool) -> None:
    for block in model.encoder.body.blocks:
        setattr(block.attn, "fused_attn", fused)  # noqa: B010 - timm's own switch


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Seconds for one call."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product."""
    side = PRODUCT * (4 if device.type == "cuda" else 1)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    a @ b
    return 2 * side**3 / seconds_of(lambda: a @ b, device, 8)


class Stopwatch:
    """Counts the time that the model takes."""

    def __init__(self, model: SeqTrack, device: torch.device) -> None:
        self.seconds, self._generate, self._device = 0.0, model.generate_with, device

    def __call__(self, *arguments: Any) -> Generated:
        _wait(self._device)
        began = time.perf_counter()
        result = self._generate(*arguments)
        _wait(self._device)
        self.seconds += time.perf_counter() - began
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="seqtrack_b256")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    device, config = torch.device(options.device), load_config(options.config)
    torch.manual_seed(0)
    model = build_model(config).to(device).eval()
    settings = TrackerSettings.from_config(config)
    picture = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    box = (600.0, 300.0, 80.0, 60.0)
    template = torch.rand(1, settings.num_templates, 3, settings.template_size, settings.template_size, device=device)
    search = torch.rand(1, 3, settings.search_size, settings.search_size, device=device)
    window = torch.hann_window(settings.bins, periodic=False, dtype=torch.float64, device=device)
    # Written out, since the counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.generate(template, search)
    flops = counter.get_total_flops()
    threads = f"{torch.get_num_threads()} threads"
    print(f"{options.config} on {device}, {threads}, {options.precision}: {flops / 1e9:.0f} GFLOP a frame")
    for batch in options.batch:
        tracker = BatchTracker(model, settings, batch, device, options.precision)
        for slot in range(batch):
            tracker.start(slot, picture, box)
        stopwatch = Stopwatch(model, device)
        model.generate_with = stopwatch  # type: ignore[assignment]
        frames = dict.fromkeys(range(batch), picture)
        turns = []
        for _ in range(options.frames + 1):
            rate = largest_rate(device, options.precision)
            stopwatch.seconds = 0.0
            ours = seconds_of(lambda: tracker.track(frames), device) / batch  # noqa: B023
            inside = stopwatch.seconds / batch
            fuse_attention(model, False)
            with torch.inference_mode():
                plain = seconds_of(lambda: plain_generate(model, template, search, window), device)
            fuse_attention(model, True)
            turns.append((ours, plain, plain / ours, flops / inside / rate, rate, 1 - inside / ours))
        del model.generate_with
        ours, plain, ratio, share, rate, around = np.median(turns[1:], axis=0)  # the first turn warms up
        print(
            f"batch {batch:3d}: {1 / ours:7.2f} frames/s, plain {1 / plain:7.2f}, ratio {ratio:.2f}; "
            f"{1000 * ours * batch:.1f} ms a step; the model at {share:.0%} of {rate / 1e9:.0f} GFLOP/s, "
            f"{max(around, 0):.1%} of the time around it"
        )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
