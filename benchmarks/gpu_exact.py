"""Checks of benchmarks/gpu.py on what is computed: published numbers, and the same bits twice."""

from __future__ import annotations

import json
import runpy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_bench import COMPILED, LEFT_OUT, Bench, Row, attempt
from seqtrack.config import Config
from seqtrack.model.precision import set_precision
from seqtrack.model.seqtrack import SeqTrack, sentence_loss, token_weights
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, write_checkpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import checkpoint_name
from seqtrack.tokens import boxes_to_tokens, decoder_input
from seqtrack.training.slots import SlotGradients
from seqtrack.training.state import TrainState, generator_states, load_generators
from seqtrack.training.step import backward, set_determinism, train_step

TESTS = Path(__file__).parents[1] / "tests"
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 6e-2}
"""Largest deviation of features, logits and loss, relative to the largest published value.

That of fp32 is the tests', and TF32 would exceed it: emulated on a CPU, it deviates by 8e-4 to 3e-3. bf16 deviates by
1e-2 to 4e-2 there.
"""
GRADIENT_TOLERANCE = 10
"""That of gradient norms, as a multiple of it, as in the tests."""
COMPILED_TOLERANCE = 1e-4
"""Largest relative deviation of a compiled fp32 step's loss."""
STEPS = 6
"""Of each training. The checkpoint is written at the half."""
SLOTS = 8


def golden(bench: Bench) -> Iterator[Row]:
    """The model against the numbers that the published implementation computed on a CPU in fp32."""
    # By path: another installed package may be called `tests` too.
    formula = runpy.run_path(str(TESTS / "model/formula.py"))
    cases = {path.stem: json.loads(path.read_text("utf-8")) for path in (TESTS / "golden").glob("model_*.json")}
    if not bench.on_gpu:
        del cases["model_b256"]  # the tests have it
    models = {name: formula["golden_model"](case).to(bench.device) for name, case in sorted(cases.items())}
    for precision in bench.ways(*TOLERANCES):
        for title, names in (("6 tiny models", set(cases) - {"model_b256"}), ("B256", set(cases) & {"model_b256"})):
            if names:
                yield attempt(
                    {"precision": precision, "models": title},
                    partial(_deviations, bench, precision, {n: models[n] for n in names}, cases, formula),
                )


def _deviations(
    bench: Bench, precision: str, models: dict[str, SeqTrack], cases: dict[str, Any], formula: dict[str, Any]
) -> Row:
    set_determinism(True)
    set_precision(precision, bench.device)
    largest: dict[str, float] = {}
    right, tokens_in_all = 0, 0

    def compare(what: str, ours: Tensor | float, published: Any) -> None:
        published = torch.as_tensor(published, dtype=torch.float64)
        deviation = (torch.as_tensor(ours).detach().cpu().double() - published).abs().max()
        largest[what] = max(largest.get(what, 0.0), float(deviation / published.abs().max().clamp(min=1e-4)))

    for name, model in models.items():
        case, bins = cases[name], model.bins
        template, search = (images.to(bench.device) for images in formula["formula_images"](case))
        tokens = boxes_to_tokens(torch.tensor(case["search_anno_xywh"], device=bench.device), bins, model.seq_format)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = model.encoder(template, search)
            logits = model(template, search, decoder_input(tokens, bins))
            generated = model.generate(template, search).tokens
        loss = sentence_loss(logits, tokens, bins, token_weights(bins).to(bench.device))
        compare("features", features[0, 0, :16], case["encoder_feature_first"])
        compare("features", features[-1, -1, :16], case["encoder_feature_last_token"])
        compare("logits", logits[:, :, :16], case["logits_first_16"])
        compare("loss", loss, case["loss"])
        if case["grad_norms"]:
            model.zero_grad()
            loss.backward()
            for parameter_name, parameter in model.named_parameters():
                assert parameter.grad is not None
                compare("gradient norms", parameter.grad.norm(), case["grad_norms"][parameter_name])
        right += int((generated.cpu() == torch.tensor(case["generated"])).sum())
        tokens_in_all += generated.numel()
    tolerance = TOLERANCES[precision]
    allowed = {"gradient norms": GRADIENT_TOLERANCE * tolerance}
    ok = all(deviation <= allowed.get(what, tolerance) for what, deviation in largest.items())
    return {
        **{f"deviation of {what}": value for what, value in largest.items()},
        "tolerance": tolerance,
        "same tokens": f"{right} of {tokens_in_all}",
        "ok": ok and (precision != "fp32" or right == tokens_in_all),
    }


class Trained(NamedTuple):
    """What a short training ended with."""

    metrics: Tensor
    """(STEPS, 4) the loss, IoU and gradient norm of each step, and a zero."""
    tensors: list[Tensor]
    """All parameters and all of the optimizer's state."""


def exact(bench: Bench) -> Iterator[Row]:
    """Twice the same training, and one that goes on from a checkpoint: all bits alike, in deterministic mode."""
    losses: dict[str, Tensor] = {}
    for way in bench.ways("fp32", "bf16", f"bf16{COMPILED}", "tf32", f"fp32{COMPILED}"):
        if way.endswith(COMPILED) and not bench.compiles:
            yield {"way": way, "note": LEFT_OUT}
        else:
            yield attempt({"way": way}, partial(_compare_runs, bench, way, losses))


def _compare_runs(bench: Bench, way: str, losses: dict[str, Tensor]) -> Row:
    config, compiled = bench.config(bench.recipe, way), way.endswith(COMPILED)
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredCheckpoint(RunFolder.at(folder), checkpoint_name(0, STEPS // 2))
        with _new_compiler(compiled):
            first = _train(bench, config, keep=stored)
        with _new_compiler(compiled):  # nothing that was compiled or tuned before is left, as in another process
            second = _train(bench, config)
            resumed = _train(bench, config, start=Path(folder, stored.name))
    losses[way] = first.metrics[:, 0]
    row: Row = {
        "same bits twice": _same(first, second),
        "same bits resumed": _same(first, resumed),
        "steps": STEPS,
        "tensors": len(first.tensors),
    }
    row["ok"] = all(row.values()) and bool(first.metrics.isfinite().all())
    if not row["ok"]:
        row["first step that differs"] = _first_difference(first, second), _first_difference(first, resumed)
    plain = losses.get(way.removesuffix(COMPILED))
    if compiled and plain is not None:
        deviation = float(((losses[way] - plain) / plain).abs().max())
        row["deviation from not compiled"] = deviation
        row["ok"] = row["ok"] and (not way.startswith("fp32") or deviation <= COMPILED_TOLERANCE)
    return row


def _new_compiler(compiled: bool) -> Any:
    """Forgets everything compiled, in memory and on disk."""
    if not compiled:
        return nullcontext()
    from torch._inductor.utils import fresh_inductor_cache  # imported here, because it takes seconds

    torch.compiler.reset()
    return fresh_inductor_cache()


def _train(bench: Bench, config: Config, start: Path | None = None, keep: StoredCheckpoint | None = None) -> Trained:
    """Trains to step STEPS, from a checkpoint or from the beginning; writes a checkpoint at the half."""
    state, objective = bench.start(config)
    if start is not None:
        state.load(start)
        load_generators(start, 0)
    for step in range(state.step, STEPS):
        batch = bench.batch(config, config.TRAIN.BATCH_SIZE, step)
        loss, iou, *_, grad_norm = train_step(state.model, state.optimizer, batch, objective).tolist()
        state.metrics.append((loss, iou, grad_norm, 0.0))
        state.step += 1
        if keep is not None and state.step == STEPS // 2:
            write_checkpoint(Contents(*state.snapshot(), [generator_states()], state.meta(config)), keep)
    return Trained(torch.tensor(state.metrics, dtype=torch.float64), _tensors(state))


def _tensors(state: TrainState) -> list[Tensor]:
    optimizer = [value for of_one in state.optimizer.state.values() for value in of_one.values()]
    return [*(parameter.detach() for parameter in state.model.parameters()), *optimizer]


def _same(one: Trained, other: Trained) -> bool:
    return torch.equal(one.metrics, other.metrics) and all(map(torch.equal, one.tensors, other.tensors))


def _first_difference(one: Trained, other: Trained) -> int | None:
    """The first step, from 1, whose numbers differ."""
    differing = (one.metrics != other.metrics).any(1).nonzero()
    return int(differing[0]) + 1 if len(differing) else None


def slots(bench: Bench) -> Iterator[Row]:
    """TRAIN.SLOTS: the same bits twice, and its cost in time and memory against an undivided batch."""
    for precision in ("bf16", "fp32"):
        yield attempt({"precision": precision, "slots": SLOTS}, partial(_measure_slots, bench, precision))


def _measure_slots(bench: Bench, precision: str) -> Row:
    config = bench.config(bench.recipe, precision, SLOTS=SLOTS)
    state, objective = bench.start(config)
    batch = bench.batch(config, config.TRAIN.BATCH_SIZE)
    initial = [parameter.detach().clone() for parameter in state.model.parameters()]
    divided = SlotGradients(state, SLOTS, 0, 1)

    def gradients() -> list[Tensor]:
        divided(state.model, batch, objective)
        return [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]

    def seconds_and_memory(way: Callable[..., Tensor]) -> tuple[float, float | None]:
        def step() -> Tensor:
            return train_step(state.model, state.optimizer, batch, objective, way)

        return bench.seconds_of(step), bench.peak_gib(step)

    once = [gradient.clone() for gradient in gradients()]
    same = all(map(torch.equal, once, gradients()))
    with_slots, gib_with = seconds_and_memory(divided)
    without, gib_without = seconds_and_memory(backward)
    changed = not all(map(torch.equal, initial, state.model.parameters()))
    return {
        "same bits twice": same,
        "ok": same and changed,
        "ms a step": 1000 * with_slots,
        "ms without slots": 1000 * without,
        "times as long": with_slots / without,
        "GiB": gib_with,
        "GiB without slots": gib_without,
    }
