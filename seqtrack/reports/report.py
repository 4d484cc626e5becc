"""Writes the two-phase report: `index.html`, which needs no other file, `report.md`, and figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seqtrack.config import Config, ConfigError, parse_config
from seqtrack.data.storage import DataError
from seqtrack.meta import META_FILE
from seqtrack.model.weights import Weights
from seqtrack.reports.comparison import Comparison
from seqtrack.reports.pages import Table, save_figure, write_pages
from seqtrack.reports.plots import report_figures
from seqtrack.reports.snapshots import snapshot_figure
from seqtrack.runs.record import Phase

CAPTIONS = {
    "loss": "Training loss of both phases; the dotted line is where phase 2 resumed.",
    "iou": "Training IoU of both phases.",
    "training": "Loss and IoU of both phases over the same epochs.",
    "difference": "Absolute difference of the two phases, step by step.",
    "throughput": "Samples per second, and the share of the time spent waiting for data.",
    "snapshots": "Samples that training never drew: the true box (green) and the predicted one (orange, dashed).",
}
NAMES = {"loss": "loss", "iou": "IoU", "accuracy": "accuracy", "grad_norm": "gradient norm", "lr": "LR"}
EPOCH_COLUMNS = (("loss", ".5f"), ("iou", ".5f"), ("accuracy", ".2f"), ("lr", ".2g"))


def write_report(
    phase1: Phase,
    phase2: Phase | None,
    comparison: Comparison | None,
    models: Sequence[tuple[str, Weights]],
    folder: Path,
    name: str,
    notes: Sequence[str] = (),
) -> None:
    """Writes the report of two phases, or of the first alone if the second left nothing.

    `models`: titles and weights of the models whose predictions the snapshots show; `name`: name of the experiment;
    `notes`: warnings for the reader, shown at the top.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = parse_config(phase1.meta["config"], META_FILE)
    notes = [*notes, *(f"{phase.name}: {phase.error}" for phase in (phase1, phase2) if phase and phase.error)]
    figures = report_figures(phase1, phase2, comparison)
    try:
        figures["snapshots"] = snapshot_figure(config, models)
    except (OSError, DataError, ConfigError) as error:  # the data may no longer be there
        notes.append(f"No snapshots: {error}")
    phases = [phase for phase in (phase1, phase2) if phase is not None]
    facts = {
        "title": f"{name}: two phases of one experiment" if phase2 else f"{name}: phase 1",
        "summary": _summary(config, phase1, phase2),
        "verdict": verdict(comparison),
        "comparison": comparison,
        "notes": notes,
        "phase_table": _phase_table(phases),
        "difference_table": _difference_table(comparison),
        "epoch_table": epoch_table(phase1, phase2),
        "tracking_table": _tracking_table(phase1, comparison),
        "fact_tables": _fact_tables(config, phase1),
        "checkpoint_table": _checkpoint_table(phases),
        "settings": config.to_yaml(),
        "captions": CAPTIONS,
        "images": {name: save_figure(figure, folder / name) for name, figure in figures.items()},
    }
    write_pages(folder, {"index.html": "report.html.jinja", "report.md": "report.md.jinja"}, facts)


def verdict(comparison: Comparison | None) -> str:
    """The result in a sentence."""
    return f"Phase 2 against phase 1: {comparison.verdict}" if comparison else "Phase 2 has not reached a checkpoint"


def epoch_table(phase1: Phase, phase2: Phase | None) -> Table:
    """One row per epoch: both phases, and their differences if both trained it."""
    first = {int(epoch["epoch"]): epoch for epoch in phase1.history}
    second = {int(epoch["epoch"]): epoch for epoch in phase2.epochs()} if phase2 else {}
    names = [text for name, _ in EPOCH_COLUMNS for text in (f"{NAMES[name]} 1", f"{NAMES[name]} 2", f"Δ {NAMES[name]}")]
    times = [f"{name} {which}" for name in ("seconds", "samples/s") for which in (1, 2)]
    rows = []
    for epoch in sorted(first.keys() | second.keys()):
        ours, theirs = first.get(epoch), second.get(epoch)
        row = [str(epoch)]
        for name, style in EPOCH_COLUMNS:
            row += [_cell(ours, name, style), _cell(theirs, name, style)]
            row.append(_exact(theirs[name] - ours[name]) if ours and theirs else "")
        for name in ("seconds", "samples_per_second"):
            row += [_cell(ours, name, ".1f"), _cell(theirs, name, ".1f")]
        rows.append(row)
    return Table(["epoch", *names, *times], rows)


def _summary(config: Config, phase1: Phase, phase2: Phase | None) -> str:
    dataset = phase1.meta["dataset"]
    text = (
        f"{config.MODEL.ENCODER.TYPE} on {dataset['sequences']} sequences ({dataset['frames']:,} frames), "
        f"{config.TRAIN.EPOCH} epochs of {config.DATA.TRAIN.SAMPLE_PER_EPOCH:,} samples in "
        f"{config.steps_per_epoch:,} batches, seed {config.SEED}."
    )
    if phase2 and phase2.source is None:
        text += " Phase 2 was trained from the beginning, too."
    elif phase2:
        text += (
            f" Phase 2 started from phase 1's checkpoint after epoch {phase2.first_step // phase2.steps_per_epoch} "
            "and trained the rest again."
        )
    return text


def _phase_table(phases: Sequence[Phase]) -> Table:
    rows = []
    for phase in phases:
        first, last = (step / phase.steps_per_epoch for step in (phase.first_step, len(phase.steps)))
        rows.append(
            [
                phase.name,
                f"{first + 1:.4g} – {last:.4g}",
                "restored state" if phase.source else "random or pre-trained weights",
                phase.source or "none",
                "finished" if phase.finished else f"ended at step {len(phase.steps):,} of {phase.total_steps:,}",
            ]
        )
    return Table(["phase", "epochs", "starting condition", "checkpoint source", "state"], rows)


def _difference_table(comparison: Comparison | None) -> Table:
    rows = []
    for kind, article, of in (
        (("step", "a", comparison.steps), ("epoch", "an", comparison.epochs)) if comparison else ()
    ):
        for one in of:
            where = f"{kind} {one.at:,}" if one.largest else "–"
            rows.append([f"{NAMES[one.metric]} of {article} {kind}", _exact(one.largest), where])
    if comparison and comparison.weights is not None:
        rows.append(["final weights", _exact(comparison.weights), "–"])
    return Table(["what", "largest absolute difference", "where"], rows)


def _tracking_table(phase1: Phase, comparison: Comparison | None) -> Table:
    """One row per checkpoint that was measured in both phases."""
    rows = [
        [
            f"{one.step / phase1.steps_per_epoch:.3g}",
            one.series,
            f"{one.auc1:.4f}",
            f"{one.auc2:.4f}",
            _exact(one.auc2 - one.auc1),
        ]
        for one in (comparison.tracking if comparison else ())
    ]
    return Table(["epoch", "benchmark/protocol", "AUC 1", "AUC 2", "Δ AUC"], rows)


def _fact_tables(config: Config, phase: Phase) -> list[Table]:
    meta = phase.meta
    dataset = meta["dataset"]
    kind, parts = ("set", dataset["sets"]) if "sets" in dataset else ("class", dataset["classes"])
    rows = [[name, f"{size['sequences']}", f"{size['frames']:,}"] for name, size in (*parts.items(), ("all", dataset))]
    facts = [
        ["seed", str(config.SEED)],
        ["samples an epoch", f"{config.DATA.TRAIN.SAMPLE_PER_EPOCH:,}"],
        ["batches an epoch", f"{config.steps_per_epoch:,} of {config.TRAIN.BATCH_SIZE}"],
        ["data set fingerprint", dataset["fingerprint"]],
        ["hardware", f"{meta['world_size']} worker(s): {meta['hardware']}"],
        ["code revision", meta["code_revision"]],
    ]
    versions = [[name, version] for name, version in meta["versions"].items()]
    return [
        Table([kind, "sequences", "frames"], rows),
        Table(["fact", "value"], facts),
        Table(["package", "version"], versions),
    ]


def _checkpoint_table(phases: Sequence[Phase]) -> Table:
    rows = [
        [phase.name, checkpoint.name, f"{checkpoint.step:,}", f"{checkpoint.size / 2**20:.1f} MiB", checkpoint.sha256]
        for phase in phases
        for checkpoint in phase.checkpoints
    ]
    return Table(["phase", "checkpoint", "step", "size", "SHA-256 of its weights"], rows)


def _cell(summary: dict[str, float] | None, name: str, style: str) -> str:
    return format(summary[name], style) if summary else ""


def _exact(difference: float) -> str:
    return f"{difference:.2e}" if difference else "0"
