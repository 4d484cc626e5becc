"""How text of others is shown: names of files, sequences and trackers, errors of libraries, values of settings.

A name may have any character: the end of a line, which would forge a line of a log, what steers a terminal, what turns
the direction of writing round. All that is shown passes here, at the doors: what is logged (`LineFormatter`), what
programs print (`commands.program.say`), what pages hold (`reports.pages`). Names of files stay as they are.
"""

from __future__ import annotations

import logging
import re
import shlex
import unicodedata
from collections.abc import Iterable

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that are not letters, but do something: control characters, C1 too; marks of
direction; halves of a character, as which Python reads bytes that are no UTF-8; ends of lines and paragraphs."""
_HARMLESS = "\u200c\u200d" + "".join(map(chr, range(0xE0020, 0xE0080)))
"""Joiners of letters and emojis, and what flags of regions are written with."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def shown(text: str) -> str:
    r"""The text as one line that steers nothing: `\n` for the end of a line, `\x1b`, `\u202e`.

    Letters of all scripts, spaces and emojis stay as they are, as does a backslash: this is for people to read and not
    to be read back. What was shown already stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(one) if _is_unseen(one) else one for one in text)


def shown_lines(text: str) -> str:
    """A text of several lines, each of them as `shown` has it."""
    return "\n".join(map(shown, text.split("\n")))


def shown_command(arguments: Iterable[str]) -> str:
    """A command for a shell, in one line. What cannot be seen is written as bash and zsh read it: `$'a\\nb'`."""
    return " ".join(_shell_word(argument) for argument in arguments)


def markdown(text: str) -> str:
    """The text as one line of Markdown that says just this: no HTML, link, picture, code, emphasis, table's edge.

    Dots, brackets and underscores within names, which mean nothing there, stay readable.
    """
    text = shown(text).replace("&", "&amp;") if re.search(r"&#?\w+;", text) else shown(text)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~]|$)", r"\\\\", text)
    text = re.sub(r"[`*|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"^( *)([-+=#]+|\d+[.)])(?= |$)", _no_beginning, text)


class LineFormatter(logging.Formatter):
    """Formats a record as one line, and a traceback, if there is one, as lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(super().formatMessage(record))

    def formatException(self, *arguments: object) -> str:
        return shown_lines(super().formatException(*arguments))  # type: ignore[arg-type]


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in _UNSEEN and character not in _HARMLESS


def _escaped(character: str) -> str:
    number = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _shell_word(argument: str) -> str:
    if shown(argument) == argument:
        return shlex.quote(argument)
    quoted = argument.translate({ord("\\"): r"\\", ord("'"): r"\'"})
    return "$'" + "".join(_for_shell(one) if _is_unseen(one) else one for one in quoted) + "'"


def _for_shell(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number < 0xDD00:  # a byte that is no UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return _escaped(character) if number < 0x80 or number > 0xFF else f"\\u{number:04x}"


def _no_beginning(match: re.Match[str]) -> str:
    """The beginning of a line without the meaning of a heading or of a list."""
    spaces, mark = match.groups()
    return f"{spaces}{mark[:-1]}\\{mark[-1]}" if mark[-1] in ".)" else f"{spaces}\\{mark}"
