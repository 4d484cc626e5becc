"""Writes what an evaluation found: `index.html`, `report.md`, figures as PNG and SVG, and videos.

`index.html` needs no other file, except the videos that it links.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from seqtrack.data.storage import first_of
from seqtrack.evaluation.protocols import MEASURES, protocol_named
from seqtrack.evaluation.summary import LEVEL, RESAMPLES, Evaluation
from seqtrack.reports.evaluation_plots import (
    COLOURS,
    Look,
    attribute_figure,
    curve_figure,
    epoch_figure,
    looks_of,
)
from seqtrack.reports.evaluation_strips import Shown, read_strips, worst_rows
from seqtrack.reports.evaluation_tables import (
    NumberTable,
    TrackerFacts,
    best_first,
    group_table,
    main_measure,
    number_table,
    speed_table,
)
from seqtrack.reports.evaluation_videos import FRAMES, RATE, Video, write_videos
from seqtrack.reports.pages import save_figure, write_pages

WORST = 10
"""Sequences that are shown as strips."""
DRAWN = len(COLOURS)
"""Trackers that a figure shows at most, the best ones. Tables of a benchmark's numbers have all of them."""
PERCENT = f"{100 * LEVEL:g} %"
INTEGERS = (
    "The result files of {} have whole pixels only. That can cost up to two points of AUC where targets are small, so "
    "a small difference from trackers with exact boxes says nothing."
)


@dataclass
class Strip:
    """One of the worst sequences."""

    sequence: str
    facts: str
    video: str
    """Address of its video as seen from the page; empty if there is none."""
    frames: Sequence[Shown]


@dataclass
class Section:
    """One benchmark by one protocol: trackers that were scored on the same sequences."""

    name: str
    """The beginning of the names of its files."""
    title: str
    covered: str
    meaning: str
    numbers: NumberTable
    notes: list[str]
    missing: dict[str, list[str]]
    """Why sequences were not scored -> their names."""
    figures: dict[str, str] = field(default_factory=dict)
    """Name of the file -> caption."""
    groups: list[tuple[str, NumberTable]] = field(default_factory=list)
    """Tables by attribute and class, with their captions."""
    worst_of: str = ""
    """The tracker and measure whose worst sequences the strips show."""
    strips: list[Strip] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    """Which pictures and videos there are not, and why."""


def write_evaluation_report(
    folder: Path,
    evaluations: Sequence[Evaluation],
    *,
    title: str = "Evaluation",
    facts: Mapping[str, TrackerFacts] | None = None,
    videos: str | None = None,
    worst_of: str | None = None,
) -> Path:
    """Writes the page of any number of trackers on any number of benchmarks. Returns the path of `index.html`.

    `facts`: what is known of how trackers ran, by their names; `videos`: the folder or URI where the page will be, into
    which videos of the worst sequences are written, or None for no videos; `worst_of`: the tracker whose worst
    sequences are shown; by default, and where it was not scored, it is each benchmark's best. Frames that cannot be
    read are no error: the page says so. Raises OSError if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = facts or {}
    trackers = list(dict.fromkeys(one.tracker for one in evaluations))
    looks = looks_of(trackers)
    sections: list[Section] = []
    figures: dict[str, Figure] = {}
    pictured: set[tuple[str, tuple[str, ...]]] = set()
    for (benchmark, _, names), group in _comparable(evaluations).items():
        section = _section(group, len(sections))
        sections.append(section)
        figures |= _figures(section, group, known, looks)
        if (benchmark, names) not in pictured:  # another protocol has the same pictures
            pictured.add((benchmark, names))
            chosen = next((one for one in group if one.tracker == worst_of), group[0])
            _add_strips(section, chosen, group, looks, videos)
    whole = [name for name in trackers if any(one.tracker == name and one.integers for one in evaluations)]
    page = {
        "title": title,
        "summary": _summary(trackers, evaluations),
        "intervals": PERCENT,
        "resamples": f"{RESAMPLES:,}",
        "notes": [INTEGERS.format(", ".join(whole))] if whole else [],
        "sections": sections,
        "of_videos": f"A video shows at most {FRAMES} frames, at equal distances, {RATE} a second.",
        "speed": speed_table(evaluations, known),
        "looks": looks if len(looks) > 1 else {},
        "images": {name: save_figure(figure, folder / name) for name, figure in figures.items()},
    }
    write_pages(folder, {"index.html": "evaluation.html.jinja", "report.md": "evaluation.md.jinja"}, page)
    return folder / "index.html"


def _comparable(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str, tuple[str, ...]], list[Evaluation]]:
    """Benchmark, protocol and names of sequences -> the trackers with numbers of these, the best first."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Evaluation]] = {}
    for one in evaluations:
        key = (one.data.benchmark.name, one.scores.protocol, tuple(sequence.name for sequence in one.sequences))
        groups.setdefault(key, []).append(one)
    return {key: best_first(group) for key, group in groups.items()}


def _section(group: Sequence[Evaluation], number: int) -> Section:
    first = group[0]
    protocol = protocol_named(first.scores.protocol)
    benchmark = first.data.benchmark
    missing: dict[str, dict[str, None]] = {}
    for one in group:
        for name, why in one.missing.items():
            missing.setdefault(why, {})[name] = None
    return Section(
        name=re.sub(r"\W+", "_", f"{number + 1}_{benchmark.name}_{protocol.name}"),
        title=f"{benchmark.title}, protocol {protocol.name}",
        covered=f"{first.coverage}, {int(first.scores.frames.sum()):,} frames",
        meaning=f"{protocol.meaning[0].upper()}{protocol.meaning[1:]}.",
        numbers=number_table(group),
        notes=list(dict.fromkeys(note for one in group for note in one.notes)),
        missing={why: list(names) for why, names in missing.items()},
    )


def _figures(
    section: Section, group: Sequence[Evaluation], facts: Mapping[str, TrackerFacts], looks: Mapping[str, Look]
) -> dict[str, Figure]:
    """Draws a section's figures, and adds their captions and the tables of classes and attributes to it."""
    drawn = group[:DRAWN]
    part = f" of the best {DRAWN} of {len(group)} trackers" if len(group) > DRAWN else ""
    measure = f"{MEASURES[main_measure(group[0])]} ({group[0].scores.protocol})"
    figures = {f"{section.name}_curves": curve_figure(drawn, looks)}
    section.figures[f"{section.name}_curves"] = f"The part of the frames that satisfies each threshold{part}."
    if attributes := group[0].attributes:
        figures[f"{section.name}_attributes"] = attribute_figure(drawn, attributes, looks)
        section.figures[f"{section.name}_attributes"] = (
            f"{measure} over the sequences that have an attribute{part}; below each name: how many these are. Lines: "
            f"{PERCENT} intervals."
        )
    if (epochs := epoch_figure(group, facts)) is not None:
        figures[f"{section.name}_epochs"] = epochs
        section.figures[f"{section.name}_epochs"] = (
            f"{measure} of the checkpoints after each epoch; {PERCENT} intervals."
        )
    for kind, groups in (("attribute", attributes), ("class", group[0].classes)):
        if groups:
            plural = "attributes" if kind == "attribute" else "classes"
            caption = f"{measure} by {kind}{part}: {len(groups)} {plural}"
            section.groups.append((caption, group_table(drawn, kind, groups)))
    return figures


def _add_strips(
    section: Section,
    chosen: Evaluation,
    group: Sequence[Evaluation],
    looks: Mapping[str, Look],
    place: str | None,
) -> None:
    name = main_measure(chosen)
    measure = chosen.scores.measures[name]
    rows = worst_rows(measure, WORST)
    found = read_strips(
        chosen.data.root,
        [(chosen.sequences[row], chosen.tracks[row]) for row in rows],
        looks[chosen.tracker].rgb,
    )
    videos: dict[int, Video] = {}
    if place is not None:
        read = [row for row, strip in zip(rows, found, strict=True) if not isinstance(strip, str)]
        made = write_videos(place, chosen, read, looks[chosen.tracker].rgb)
        videos = dict(zip(read, made, strict=True))
    section.worst_of = f"{chosen.tracker}, by {MEASURES[name]} ({chosen.scores.protocol})"
    lacking: dict[tuple[str, str], list[str]] = {}
    for row, strip in zip(rows, found, strict=True):
        sequence, video = chosen.sequences[row], videos.get(row, Video(""))
        said = [f"{MEASURES[name]} {measure.values[row]:.1f}", f"{len(sequence):,} frames"]
        others = [one.scores.measures[name].values[row] for one in group if one is not chosen]
        if others:
            said.insert(1, f"others {min(others):.1f}" + (f" to {max(others):.1f}" if len(others) > 1 else ""))
        if sequence.attributes:
            said.append(" ".join(sequence.attributes))
        if isinstance(strip, str):
            lacking.setdefault(("pictures", strip), []).append(sequence.name)
        if video.lacking:
            lacking.setdefault(("videos", video.lacking), []).append(sequence.name)
        frames = [] if isinstance(strip, str) else strip
        section.strips.append(Strip(sequence.name, " · ".join(said), video.link, frames))
    for (what, why), names in lacking.items():
        which = "" if len(names) == len(rows) else f" of {len(names)} sequences, {first_of(names)}"
        section.lacking.append(f"No {what}{which}: {why}.")


def _summary(trackers: Sequence[str], evaluations: Sequence[Evaluation]) -> str:
    titles = dict.fromkeys(one.data.benchmark.title for one in evaluations)
    return f"{len(trackers)} tracker{'s' if len(trackers) != 1 else ''} on {', '.join(titles)}."
