from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.config import Config
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import Weights
from seqtrack.reports.comparison import compare
from seqtrack.reports.plots import report_figures
from seqtrack.reports.report import write_report
from seqtrack.runs.record import Phase
from tests.reports.phases import made_up_phase

FIGURES = ["difference", "iou", "loss", "snapshots", "throughput", "training"]


@pytest.fixture
def models(tiny_config: Config) -> list[tuple[str, Weights]]:
    torch.manual_seed(0)
    return [(title, build_model(tiny_config).state_dict()) for title in ("Phase 1, epoch 1", "Phase 1, epoch 4")]


class Links(HTMLParser):
    """Collects the addresses that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def write(folder: Path, phase1: Phase, phase2: Phase | None, models: list[tuple[str, Weights]]) -> tuple[str, str]:
    write_report(phase1, phase2, compare(phase1, phase2) if phase2 else None, models, folder, "twice")
    return (folder / "index.html").read_text(), (folder / "report.md").read_text()


def test_the_report_says_what_ran_and_shows_how_it_went(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path
) -> None:
    page, text = write(
        tmp_path, made_up_phase(tiny_config), made_up_phase(tiny_config, "Phase 2", first_epoch=2), models
    )
    for name in FIGURES:
        for suffix in (".png", ".svg"):
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 1000
    for document in (page, text):
        assert "Phase 2 against phase 1: bitwise equal" in document
        for fact in ("coin", "kite", "0123456789abcdef", "torch", "2.14.1", "cpu, 1 thread", "f" * 64, "3 – 4"):
            assert fact in document
    assert all("abc&lt;1&gt;" in document and "abc<1>" not in document for document in (page, text))
    assert re.search(r"\| 3 \| 2\.\d+ \| 2\.\d+ \| 0 \|", text)


def test_equal_phases_have_equal_curves_wherever_they_start(tiny_config: Config) -> None:
    phases = [made_up_phase(tiny_config, epochs=40, first_epoch=first) for first in (0, 3)]
    for phase in phases:
        phase.steps[:, 0] += np.random.default_rng(0).random(400)
    (axes,) = report_figures(phases[0], phases[1], compare(phases[0], phases[1]))["loss"].axes
    first, second = (dict(line.get_xydata().tolist()) for line in axes.lines[:2])  # type: ignore[union-attr]
    assert len(second) > 100
    assert second.items() <= first.items()


def test_the_page_needs_no_network(tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path) -> None:
    page, _ = write(tmp_path, made_up_phase(tiny_config), made_up_phase(tiny_config, "Phase 2", first_epoch=2), models)
    links = Links()
    links.feed(page)
    assert len(links.sources) == len(FIGURES)
    assert all(source.startswith("data:image/") for source in links.sources)


@pytest.mark.parametrize("epochs", [1, 500])
def test_a_run_may_be_short_or_long(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path, epochs: int
) -> None:
    phases = made_up_phase(tiny_config, epochs=epochs), made_up_phase(tiny_config, "Phase 2", epochs=epochs)
    page, _ = write(tmp_path, *phases, models)
    assert page.count("<td>150.0</td>") >= 1
    assert len(page) < 3 * 2**20


def test_a_phase_that_failed_half_way_is_said_to_have(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path
) -> None:
    failed = made_up_phase(tiny_config, "Phase 2", first_epoch=2, done=33, error="training failed: no more disk")
    for document in write(tmp_path, made_up_phase(tiny_config), failed, models):
        assert "not finished" in document
        assert "ended at step 33 of 40" in document
        assert "Phase 2: training failed: no more disk" in document


@pytest.mark.parametrize("done", [0, 1, 9])
def test_a_run_that_ended_in_its_first_epoch_has_figures(tiny_config: Config, tmp_path: Path, done: int) -> None:
    for name, figure in report_figures(made_up_phase(tiny_config, done=done), None, None).items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_the_report_of_a_run_on_several_sets_lists_them(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path
) -> None:
    phase = made_up_phase(tiny_config)
    sets = {"LASOT": {"sequences": 3, "frames": 90}, "COCO17": {"sequences": 41, "frames": 41}}
    dataset = {"sequences": 44, "frames": 131, "fingerprint": "0123", "sets": sets}
    phase = replace(phase, meta=phase.meta | {"dataset": dataset})
    _, text = write(tmp_path, phase, None, models)
    assert "| COCO17 | 41 | 41 |" in text and "| all | 44 | 131 |" in text


def test_the_first_phase_alone_makes_a_report(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path
) -> None:
    for document in write(tmp_path, made_up_phase(tiny_config, done=15), None, models):
        assert "Phase 2 has not reached a checkpoint" in document
        assert "ended at step 15 of 40" in document


def test_data_that_have_gone_cost_the_snapshots_only(
    tiny_config: Config, models: list[tuple[str, Weights]], tmp_path: Path
) -> None:
    elsewhere = tiny_config.with_settings({"DATA.ROOT": str(tmp_path / "gone")})
    page, _ = write(tmp_path, made_up_phase(elsewhere), None, models)
    assert "No snapshots: DATA.ROOT" in page
    assert not (tmp_path / "snapshots.png").exists()
