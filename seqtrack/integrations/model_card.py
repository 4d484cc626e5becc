"""The model card: the `README.md` of a repository on the Hub, with its numbers where the Hub's page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from seqtrack.config import Config
from seqtrack.evaluation.benchmarks import BENCHMARKS
from seqtrack.evaluation.protocols import MEASURES
from seqtrack.evaluation.summary import coverage
from seqtrack.reports.pages import render
from seqtrack.runs.evaluations import CheckpointScores

TASK = "object-detection"
"""The nearest of the Hub's tasks; it has none for visual tracking."""


def model_card(
    repo_id: str,
    config: Config,
    meta: Mapping[str, Any],
    main: str,
    names: Sequence[str],
    evaluations: Sequence[CheckpointScores] = (),
) -> str:
    """The text of the card.

    `main`: the checkpoint whose weights are at the repository's top; `names`: all checkpoints there; `meta`: that of
    the newest; `evaluations`: what the run's checkpoints were measured at.
    """
    dataset = meta["dataset"]
    sets = dataset.get("sets", {"LASOT": dataset})
    results = [result for one in evaluations if one.checkpoint == main for result in _results(one)]
    data = ModelCardData(
        library_name="seqtrack",
        license="apache-2.0",
        pipeline_tag=TASK,
        tags=["visual-object-tracking", "seqtrack", "pytorch"],
        datasets=["l-lt/LaSOT"] if "LASOT" in sets else None,
        metrics=["iou"],
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    facts = {
        "card_data": data.to_yaml(),
        "repo_id": repo_id,
        "config": config,
        "settings": config.to_yaml(),
        "dataset": dataset,
        "sets": sets,
        "classes": ", ".join(dataset.get("classes", {})),
        "history": meta["history"],
        "tables": _tables(evaluations),
        "versions": meta["versions"],
        "revision": meta.get("code_revision", "unknown"),
        "main": main,
        "names": list(names),
    }
    return str(ModelCard(render("seqtrack.integrations", "card.md.jinja", facts)))


def _results(one: CheckpointScores) -> list[EvalResult]:
    """The numbers as the Hub's `model-index` has them."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Visual object tracking",
            dataset_type=one.benchmark,
            dataset_name=f"{_title(one.benchmark)} ({coverage(one.sequences, one.of)})",
            metric_type=name,
            metric_name=f"{MEASURES.get(name, name)} (protocol {one.protocol})",
            metric_value=round(value, 2),
        )
        for name, value in one.measures.items()
    ]


def _tables(evaluations: Sequence[CheckpointScores]) -> list[dict[str, Any]]:
    """A table for each benchmark and protocol: a row for each checkpoint."""
    series: dict[str, list[CheckpointScores]] = {}
    for one in evaluations:
        series.setdefault(one.series, []).append(one)
    tables = []
    for group in series.values():
        first, names = group[0], list(group[0].measures)
        tables.append(
            {
                "title": f"{_title(first.benchmark)}, {coverage(first.sequences, first.of)}, protocol {first.protocol}",
                "header": [MEASURES.get(name, name) for name in names],
                "rows": [
                    [one.checkpoint, *(f"{one.measures.get(name, float('nan')):.2f}" for name in names)]
                    for one in group
                ],
            }
        )
    return tables


def _title(benchmark: str) -> str:
    return BENCHMARKS[benchmark].title if benchmark in BENCHMARKS else benchmark
