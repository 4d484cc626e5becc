"""The page of an evaluation: what it says of trackers, and that it needs no other file."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.results import Results, Track
from seqtrack.evaluation.summary import Evaluation, evaluate, interval
from seqtrack.reports.evaluation import write_evaluation_report
from seqtrack.reports.evaluation_plots import attribute_figure, curve_figure, epoch_figure, looks_of
from seqtrack.reports.evaluation_tables import TrackerFacts, group_table, speed_table
from tests.evaluation.tracks import made_up
from tests.evaluation.trees import opened, write_got10k, write_lasot
from tests.reports.test_report import Links

NAMES = ("coin-3", "coin-6", "kite-4", "kite-6")


@pytest.fixture
def data(tmp_path: Path) -> BenchmarkData:
    """Four of LaSOT's test sequences with grey frames."""
    for name in NAMES:
        folder = write_lasot(tmp_path / "lasot", name, frames=40)
        for file in (folder / "img").iterdir():
            cv2.imwrite(str(file), np.full((90, 160, 3), 90, np.uint8))
    return opened("lasot", tmp_path / "lasot")


def results(
    data: BenchmarkData, drift: float = 1.0, seconds: float | None = 0.05, names: tuple[str, ...] = NAMES
) -> Results:
    """Later sequences drift more."""
    tracks = {
        one.name: Track(
            made_up(one.truth.boxes_xywh, number, drift * (1 + number)),
            None if seconds is None else np.full(len(one), seconds),
        )
        for number, one in enumerate(data.sequences)
        if one.name in names or len(data.sequences) != len(NAMES)
    }
    return Results("here", tracks, (), ())


def written(folder: Path, evaluations: list[Evaluation], **options: object) -> tuple[str, str]:
    """The page and the Markdown, with plain characters."""
    page = write_evaluation_report(folder / "page", evaluations, **options)  # type: ignore[arg-type]
    assert page == folder / "page" / "index.html"
    return html.unescape(page.read_text("utf-8")), (page.parent / "report.md").read_text("utf-8")


def test_each_number_has_its_interval_and_its_protocol(data: BenchmarkData, tmp_path: Path) -> None:
    for protocol in ("pytracking", "lasot-toolkit"):
        evaluations = evaluate(data, {"slow": results(data), "fast": results(data, 0.1)}, protocol)
        page, text = written(tmp_path, evaluations)
        for document in (page, text):
            assert "4 of 280 sequences, 160 frames" in document
            for one in evaluations:
                for measure in one.scores.measures.values():
                    low, high = interval(measure) or (0, 0)
                    shown = re.sub("</?small>", "", document)
                    assert f"{measure.mean():.2f} [{low:.1f}, {high:.1f}]" in shown
        assert f"AUC\n({protocol})" in page
        assert f"AUC ({protocol})" in text


def test_the_page_needs_no_other_file_but_videos(data: BenchmarkData, tmp_path: Path) -> None:
    page, text = written(tmp_path, evaluate(data, {"a/b#1": results(data)}), videos=str(tmp_path / "page"))
    links = Links()
    links.feed(page)
    others = [source for source in links.sources if not source.startswith("data:image/")]
    assert sorted(others) == [f"videos/lasot/a%252Fb%25231/{name}.mp4" for name in NAMES]
    assert all((tmp_path / "page" / unquote(link)).is_file() for link in others)
    assert all(f"[video]({link})" in text for link in others)
    assert "at most 300 frames, at equal distances, 15 a second" in page
    assert "url(" not in page and "@import" not in page
    for name in re.findall(r"!\[[^]]*\]\((.+?)\)", text):
        assert (tmp_path / "page" / name).stat().st_size > 1000


def test_the_worst_sequences_come_first_each_as_a_strip(data: BenchmarkData, tmp_path: Path) -> None:
    page, text = written(tmp_path, evaluate(data, {"ours": results(data, 3.0)}))
    for document, mark in ((page, "<b>{}</b>"), (text, "**{}**")):
        places = [document.index(mark.format(name)) for name in reversed(NAMES)]
        assert places == sorted(places)
    assert page.count("data:image/jpeg") == 4 * 5
    assert "frame 1: given" in page and "frame 40: no target" in page


def test_the_strips_are_those_of_the_best_tracker_or_of_a_chosen_one(data: BenchmarkData, tmp_path: Path) -> None:
    evaluations = evaluate(data, {"worse": results(data, 3.0), "better": results(data, 0.1)})
    assert "The 4 worst sequences of better, by AUC (pytracking)" in written(tmp_path, evaluations)[0]
    assert "The 4 worst sequences of worse" in written(tmp_path, evaluations, worst_of="worse")[0]


def test_at_most_ten_sequences_are_the_worst(tmp_path: Path) -> None:
    for number in range(1, 15):
        write_got10k(tmp_path, "val", number)
    val = opened("got10k_val", tmp_path, with_frames=False)
    page, _ = written(tmp_path, evaluate(val, {"ours": results(val)}))
    assert "The 10 worst sequences of ours, by AO (got10k)" in page
    assert page.count('class="sequence"') == 10
    assert "No pictures: only the annotations were read" in page


def test_protocols_have_a_section_each_and_the_pictures_are_in_the_first(data: BenchmarkData, tmp_path: Path) -> None:
    found = {"ours": results(data)}
    page, _ = written(tmp_path, [*evaluate(data, found, "pytracking"), *evaluate(data, found, "lasot-toolkit")])
    assert re.findall("<h2>(.+)</h2>", page)[:2] == [
        "LaSOT test, protocol pytracking",
        "LaSOT test, protocol lasot-toolkit",
    ]
    assert page.count("data:image/jpeg") == 4 * 5


def test_trackers_that_were_scored_on_different_sequences_are_not_compared(data: BenchmarkData, tmp_path: Path) -> None:
    some = data.only(NAMES[:2])
    evaluations = [*evaluate(data, {"whole": results(data)}), *evaluate(some, {"part": results(data)})]
    page, _ = written(tmp_path, evaluations)
    assert page.index("4 of 280") < page.index("whole</td>") < page.index("2 of 280") < page.index("part</td>")


def test_what_was_not_scored_is_listed_with_the_reason(data: BenchmarkData, tmp_path: Path) -> None:
    missing = replace(results(data, names=NAMES[:3]), missing=("kite-6",))
    page, text = written(tmp_path, evaluate(data, {"part": missing}))
    for document in (page, text):
        assert "part: 1 sequences have no results, the first: kite-6" in document
        assert "no results (1): kite-6" in document
        assert "not there (276): airplane-1, " in document


@pytest.mark.parametrize(("kind", "said"), [("damaged", "not a decodable image"), ("gone", "coin-6/img/00000001.jpg")])
def test_frames_that_cannot_be_read_cost_their_strip_only(
    data: BenchmarkData, tmp_path: Path, kind: str, said: str
) -> None:
    file = tmp_path / "lasot/coin/coin-6/img/00000001.jpg"
    if kind == "damaged":
        file.write_bytes(b"no picture")
    else:
        file.unlink()
    page, _ = written(tmp_path, evaluate(data, {"ours": results(data)}))
    line = next(line for line in page.splitlines() if "No pictures" in line)
    assert "No pictures of 1 sequences, the first: coin-6: " in line and said in line
    assert page.count("data:image/jpeg") == 3 * 5
    assert "<b>coin-6</b>" in page


def test_a_frame_that_only_a_video_has_costs_that_video_only(data: BenchmarkData, tmp_path: Path) -> None:
    (tmp_path / "lasot/coin/coin-6/img/00000007.jpg").unlink()
    page, text = written(tmp_path, evaluate(data, {"ours": results(data)}), videos=str(tmp_path / "page"))
    (line,) = (line for line in page.splitlines() if "No videos" in line)
    assert "No videos of 1 sequences, the first: coin-6: " in line and "coin-6/img/00000007.jpg" in line
    assert page.count("data:image/jpeg") == 4 * 5
    assert sorted(re.findall(r"/([^/]+).mp4\)", text)) == ["coin-3", "kite-4", "kite-6"]


def test_without_a_place_for_videos_the_page_has_none(data: BenchmarkData, tmp_path: Path) -> None:
    page, text = written(tmp_path, evaluate(data, {"ours": results(data)}))
    assert "video" not in page.lower() and "video" not in text


def test_whole_pixels_are_warned_of_by_the_trackers_name(data: BenchmarkData, tmp_path: Path) -> None:
    exact = results(data)
    whole = Results("", {name: Track(np.floor(one.boxes_xywh)) for name, one in exact.tracks.items()}, (), ())
    for document in written(tmp_path, evaluate(data, {"exact": exact, "cut": whole})):
        assert "The result files of cut have whole pixels only" in document
    assert "whole pixels" not in written(tmp_path, evaluate(data, {"exact": exact}))[0]


def test_latency_and_throughput_are_told_apart(data: BenchmarkData) -> None:
    uneven = results(data)
    for one in uneven.tracks.values():
        assert one.seconds is not None
        one.seconds[0] = 9  # setting up is not tracking
    uneven.tracks["coin-3"] = replace(uneven.tracks["coin-3"], seconds=None)
    found = {"ours": results(data, seconds=0.02), "others": results(data, seconds=None), "uneven": uneven}
    facts = {"ours": TrackerFacts(device="a GPU", precision="bf16", batch=8, throughput=300)}
    scored = evaluate(data, found)
    table = speed_table([*scored, *evaluate(data, found, "lasot-toolkit")], facts)
    ours, others, half = table.rows
    assert ours == ["ours", "20 ms, 95 % within 20 ms", "50.0", "8", "300.0", "a GPU", "bf16"]
    assert others == ["others", "unknown: no times in its result files", "–", *["unknown"] * 4]
    assert half[:3] == ["uneven", "50 ms, 95 % within 50 ms (3 of 4 sequences)", "20.0"]


def test_classes_and_attributes_have_the_means_of_their_sequences(data: BenchmarkData, tmp_path: Path) -> None:
    evaluations = evaluate(data, {"ours": results(data), "others": results(data, 3.0)})
    first = evaluations[0]
    for kind, groups in (("class", first.classes), ("attribute", first.attributes)):
        table = group_table(evaluations, kind, groups)
        assert [row.sequences for row in table.rows] == [len(rows) for rows in groups.values()]
        for row, rows in zip(table.rows, groups.values(), strict=True):
            means = [one.scores.measures["auc"].mean(rows) for one in evaluations]
            assert [cell.text for cell in row.cells] == [f"{mean:.2f}" for mean in means]
            assert row.cells[int(np.argmax(means))].best
    page, text = written(tmp_path, evaluations)
    for document in (page, text):
        assert "ROT rotation" in document and "by class: 2 classes" in document


def test_a_benchmark_without_attributes_and_classes_has_no_such_tables(data: BenchmarkData, tmp_path: Path) -> None:
    plain = tuple(replace(one, attributes=(), object_class=None) for one in data.sequences)
    page, _ = written(tmp_path, evaluate(replace(data, sequences=plain), {"ours": results(data)}))
    assert "attribute" not in page and "by class" not in page


@pytest.mark.parametrize("protocol", ["pytracking", "lasot-toolkit", "got10k", "trackingnet"])
def test_the_curves_of_every_protocol_are_drawn_for_all_trackers(tmp_path: Path, protocol: str) -> None:
    write_got10k(tmp_path, "val", 1, frames=30)
    val = opened("got10k_val", tmp_path, with_frames=False)
    group = evaluate(val, {"a": results(val), "b": results(val, 3.0)}, protocol)
    axes = curve_figure(group, looks_of(["a", "b"])).axes
    assert len(axes) == len(group[0].scores.curves)
    for panel in axes:
        assert sorted(str(line.get_label()).split()[1] for line in panel.lines) == ["a", "b"]


def test_checkpoints_of_a_run_make_a_line_over_their_epochs(data: BenchmarkData, tmp_path: Path) -> None:
    group = evaluate(data, {name: results(data, drift) for name, drift in (("z", 0.1), ("y", 2.0), ("other", 1.0))})
    facts = {"z": TrackerFacts(epoch=10, run="run"), "y": TrackerFacts(epoch=5, run="run")}
    figure = epoch_figure(group, facts)
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [  # type: ignore[union-attr]
        [5, group[1].scores.measures["auc"].mean()],
        [10, group[0].scores.measures["auc"].mean()],
    ]
    assert "after each epoch" in written(tmp_path, group, facts=facts)[0]


def test_one_epoch_of_each_run_makes_no_line(data: BenchmarkData) -> None:
    group = evaluate(data, {"a": results(data), "b": results(data)})
    assert epoch_figure(group, {"a": TrackerFacts(epoch=1, run="1"), "b": TrackerFacts(epoch=2, run="2")}) is None


def test_tables_have_all_trackers_and_figures_the_best(data: BenchmarkData, tmp_path: Path) -> None:
    names = [f"tracker {number}" for number in range(10)]
    group = evaluate(data, {name: results(data, 0.2 * number) for number, name in enumerate(names)})
    page, _ = written(tmp_path, group)
    assert "of the best 8 of 10 trackers" in page
    assert all(f"{name}</td>" in page for name in names)
    assert len({*looks_of(names).values()}) == 10


ODD = ["a|b", "$x^$", "_hidden", "<script>alert(1)</script>", "s3://bucket/" + 40 * "long"]


def test_odd_names_of_trackers_are_shown_as_they_are(data: BenchmarkData, tmp_path: Path) -> None:
    group = evaluate(data, {name: results(data, 1 + number) for number, name in enumerate(ODD)})
    page, text = written(tmp_path, group)
    raw = (tmp_path / "page/index.html").read_text("utf-8")
    assert "<script>" not in raw
    assert all(name in page.replace("<wbr>", "") for name in ODD)
    assert "| a\\|b |" in text
    bars = attribute_figure(group, group[0].attributes, looks_of(ODD))
    assert len(bars.legends[0].get_texts()) == len(ODD)
