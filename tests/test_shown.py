"""Names and errors of others may have any character. What is shown of them is one line that steers nothing."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from pyarrow import fs

from seqtrack.cli import main
from seqtrack.commands.program import ProgramError, prepare_output, run_program, say
from seqtrack.errors import InputError
from seqtrack.evaluation.results import Track, write_track
from seqtrack.failures import explain
from seqtrack.reports.pages import Table, render
from seqtrack.reports.plots import label
from seqtrack.runs.log import LogFollower, RunLogHandler, append_to_log
from seqtrack.shown import markdown, shown, shown_command
from tests.evaluation.trees import write_lasot
from tests.folders import run_at

STEERING = {
    "line feed": ("\n", r"\n"),
    "carriage return": ("\r", r"\r"),
    "line tabulation": ("\v", r"\x0b"),
    "form feed": ("\f", r"\x0c"),
    "record separator": ("\x1e", r"\x1e"),
    "next line": ("\x85", r"\x85"),
    "line separator": ("\u2028", r"\u2028"),
    "paragraph separator": ("\u2029", r"\u2029"),
    "colour": ("\x1b[31m", r"\x1b[31m"),
    "title of the terminal": ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
    "C1 control": ("\x9b2J", r"\x9b2J"),
    "backspace": ("\b", r"\x08"),
    "null": ("\0", r"\x00"),
    "right to left": ("\u202e", r"\u202e"),
    "isolate": ("\u2066", r"\u2066"),
    "no width": ("\u200b", r"\u200b"),
    "byte that is no UTF-8": ("\udcff", r"\udcff"),
}
ORDINARY = [
    "猫と犬", "Prüfung é", "it's 100 % (a, b)", "👨\u200d👩\u200d👧", "سلام", "नमस्ते", "a\u3000b\u00a0c", "C:\\data",
]  # fmt: skip
steering = pytest.mark.parametrize(("what", "escaped"), STEERING.values(), ids=STEERING)


def logged(text: str, folder: Path) -> str:
    handler = RunLogHandler(run_at(folder))
    handler.handle(logging.makeLogRecord({"msg": "%s", "args": (text,), "levelno": logging.WARNING}))
    return (folder / "train.log").read_bytes().decode()


def appended(text: str, folder: Path) -> str:
    append_to_log(run_at(folder), [text])
    return (folder / "train.log").read_bytes().decode()


def warned(text: str, folder: Path) -> str:
    """A warning on the console, where no handler is set up."""
    assert logging.lastResort is not None
    before = logging.lastResort.formatter
    prepare_output()
    try:
        return logging.lastResort.format(logging.makeLogRecord({"msg": text})) + "\n"
    finally:
        logging.lastResort.setFormatter(before)


def failed_with(kind: type[Exception]) -> Callable[[str, Path], str]:
    """The line with which a program ends."""

    def end(text: str, folder: Path) -> str:
        def program() -> int:
            raise kind(text)

        with contextlib.redirect_stderr(io.StringIO()) as output:
            run_program(program)
        return output.getvalue()

    return end


def said(text: str, folder: Path) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        say(text)
    return output.getvalue()


def mistyped(text: str, folder: Path) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit):
        main(["doctor", f"--{text}"])
    return output.getvalue().removesuffix("\n").rpartition("\n")[2] + "\n"


DOORS: dict[str, Callable[[str, Path], str]] = {
    "Markdown": lambda text, folder: markdown(text) + "\n",
    "figure": lambda text, folder: label(text) + "\n",
    "record in train.log": logged,
    "line in train.log": appended,
    "warning": warned,
    "wrong input": failed_with(InputError),
    "failure": failed_with(ProgramError),
    "output": said,
    "wrong argument": mistyped,
}


@steering
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_what_steers_a_log_or_a_terminal_is_shown_escaped(
    door: Callable[[str, Path], str], what: str, escaped: str, tmp_path: Path
) -> None:
    text = door(f"be{what}fore", tmp_path)
    line = text.removesuffix("\n")
    assert text.endswith("\n") and shown(line) == line
    assert f"be{escaped}fore" in line


@steering
def test_an_error_of_a_library_is_explained_in_a_line_that_steers_nothing(what: str, escaped: str) -> None:
    line = explain(ValueError(f"be{what}fore"))
    assert shown(line) == line and line.startswith("be")


def test_a_log_that_an_older_version_wrote_is_shown_escaped(tmp_path: Path) -> None:
    inside = {what: escaped for what, escaped in STEERING.values() if what not in ("\n", "\udcff")}
    (tmp_path / "train.log").touch()
    out = io.StringIO()
    with LogFollower(run_at(tmp_path), seconds=60, out=out):
        (tmp_path / "train.log").write_bytes("".join(f"{what}\n" for what in inside).encode())
    assert out.getvalue() == "".join(f"{escaped}\n" for escaped in inside.values())


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert shown(text) == markdown(text) == label(text) == text


def test_several_lines_that_are_meant_are_lines_of_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        error = ProgramError("failed\nforged")
        error.add_note("To go on: again")
        error.add_note("Or so.")
        raise error

    assert run_program(program, "What notes say better.") == 1
    assert capsys.readouterr().err == "error: failed\\nforged\nTo go on: again\nOr so.\n"


@pytest.mark.parametrize("name", [*(f"it's {what} \\ \" $x" for what, _ in STEERING.values() if what != "\0"), "a b"])
def test_a_command_that_is_shown_does_what_was_typed(name: str) -> None:
    command = shown_command([sys.executable, "-c", "import os, sys; print(os.fsencode(sys.argv[1]).hex())", name])
    assert shown(command) == command
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert bytes.fromhex(ran.stdout) == os.fsencode(name)


HTML = "<script>alert(1)</script>"
MEANINGS = {
    "HTML": (HTML, "&lt;script&gt;alert(1)&lt;/script&gt;"),
    "edge of a table": ("a|b", r"a\|b"),
    "edge behind a backslash": (r"a\|b", r"a\\\|b"),
    "code": ("`a`", r"\`a\`"),
    "picture": ("![](http://x/y.png)", r"![\](http://x/y.png)"),
    "link": ("[a](javascript:b)", r"[a\](javascript:b)"),
    "link by name": ("[a][b]", r"[a\][b]"),
    "definition": ("[a]: http://x", r"[a\]: http://x"),
    "autolink": ("<http://x>", "&lt;http://x&gt;"),
    "emphasis": ("*a* _b_", r"\*a\* \_b\_"),
    "formula": ("$a$", r"\$a\$"),
    "entity": ("&lt;", "&amp;lt;"),
    "heading": ("# a", r"\# a"),
    "list": ("- a", r"\- a"),
    "numbered list": ("1. a", r"1\. a"),
    "end of a line": ("a\n# b", r"a\n# b"),
}


@pytest.mark.parametrize(("text", "escaped"), MEANINGS.values(), ids=MEANINGS)
def test_markdown_says_just_what_the_text_is(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


@pytest.mark.parametrize("text", ["got10k_val/my_tracker-2", "50.00 [45.0, 55.0]", "a & b", "3 * 4".replace("*", "×")])
def test_what_has_no_meaning_in_markdown_stays_readable(text: str) -> None:
    assert markdown(text) == text


TABLE = Table([f"head{HTML}\n|"], [[f"cell{HTML}\n|"]])
PAGE: dict[str, Any] = {
    **dict.fromkeys(("title", "summary", "verdict", "explanation"), f"text{HTML}\n"),
    "notes": [f"note{HTML}\n\x1b[31m"],
    "comparison": None,
    "best": None,
    "images": {},
    "captions": {},
    "marked": [],
    "fact_tables": [TABLE],
    **dict.fromkeys(
        ("phase_table", "epoch_table", "tracking_table", "checkpoint_table", "group_table", "trial_table"), TABLE
    ),
    **dict.fromkeys(("settings", "sweep"), f"A: 1\nB: '```{HTML}\x1b'\n"),
}


@pytest.mark.parametrize("page", ["report", "sweep"])
@pytest.mark.parametrize("kind", ["md", "html"])
def test_text_in_a_page_is_no_html_and_one_line(page: str, kind: str) -> None:
    text = render("seqtrack.reports", f"{page}.{kind}.jinja", PAGE)
    assert all(shown(line) == line for line in text.split("\n"))
    prose = text.partition("````")[0]  # the fence of the settings has more backticks than they
    assert HTML not in prose and f"{html.escape(f'note{HTML}')}\\n\\x1b[31m" in prose
    assert "A: 1\nB: " in text
    if kind == "md":
        assert "\n````yaml\nA: 1\nB: '```<script>alert(1)</script>\\x1b'\n\n````\n" in f"{text}\n"
        assert r"| cell&lt;script&gt;alert(1)&lt;/script&gt;\n\| |" in text


@pytest.mark.parametrize("text", ["$\\frac$", "$a_b$", "_hidden", "a\nb\x1b\0", "\\$", "$$", "é"])
def test_a_figure_takes_every_name(text: str, tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], label=label(text))
    axes.set_title(label(text))
    legend = axes.legend()
    figure.savefig(tmp_path / "figure.svg")
    assert [one.get_text() for one in legend.get_texts()] == [label(text)]


def test_an_evaluation_of_trackers_and_sequences_with_any_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence, tracker = "kite\x1b[31m\n# <img src=x> |\u202e-1", f"_a\x07\n{HTML[:8]}$\\frac$"
    write_lasot(tmp_path / "data", sequence)
    boxes = np.tile([10.0, 20, 30, 40], (3, 1))
    for place in ("one", "two"):
        write_track(fs.LocalFileSystem(), str(tmp_path / place), sequence, Track(boxes))
    results = [f"{tracker}={tmp_path}/one", f"{tmp_path}/two"]
    assert main(["evaluate", "--data", f"my={tmp_path}/data", "--results", *results, "--out", f"{tmp_path}/out"]) == 0
    output = capsys.readouterr()
    pages = [(tmp_path / "out" / name).read_text("utf-8") for name in ("index.html", "report.md")]
    assert r"  _a\x07\n<script>$\frac$  AUC" in output.out
    for text in (output.out, output.err.replace("\r", ""), *pages):
        assert all(shown(line) == line for line in text.split("\n"))
    assert not any("<script" in page or "<img src=x>" in page for page in pages)
    assert all(r"kite\x1b[31m\n# &lt;img src=x&gt; " in page for page in pages)
