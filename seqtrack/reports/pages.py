"""Writes reports to files: pages from templates, figures as PNG, SVG and data URIs.

Text in pages is that of names and errors of others, so every expression of a template says just what it is, in one line
and without meaning for HTML or Markdown. Templates mark what is literal: `text | plain` within code, `text | lines`
where ends of lines count; in Markdown also `text | code`, and `{{ fence(text) }}` around lines of code.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from seqtrack.shown import markdown, shown, shown_lines


class Table(NamedTuple):
    """A table of text cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(package: str, template: str, facts: Mapping[str, Any]) -> str:
    """A page from a template of a package: HTML or, if `.md` is in the template's name, Markdown."""
    if ".md" in template:
        environment = _environment(package, lambda text: Markup(markdown(text)), Markup)
        environment.filters["code"] = lambda text: Markup("`" + shown(text).replace("`", "'") + "`")
    else:
        environment = _environment(package, shown, escape)
    return environment.get_template(template).render(facts)


def _environment(package: str, show: Callable[[str], str], literal: Callable[[str], Markup]) -> Environment:
    """`show`: what becomes of text in a page; `literal`: of text that is shown as it is."""

    def finalize(value: Any) -> Any:
        return show(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = lambda text: literal(shown(text))
    environment.filters["lines"] = lambda text: literal(shown_lines(text))
    environment.globals["fence"] = _fence
    return environment


def _fence(text: str) -> Markup:
    """What encloses lines of code in Markdown: more backticks than there are in them."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return Markup("`" * max(longest + 1, 3))


def write_pages(folder: Path, pages: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Writes pages. `pages`: name of the file -> name of its template; `facts`: the variables of all templates."""
    for name, template in pages.items():
        (folder / name).write_text(render("seqtrack.reports", template, facts), encoding="utf-8")


def save_figure(figure: Figure, path: Path) -> str:
    """Writes PNG and SVG. Returns a data URI for the page: the SVG, or a PNG if the figure has photographs."""
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"))
    if any(axes.images for axes in figure.axes):
        buffer: Any = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        return data_uri("image/png", buffer.getvalue())
    return data_uri("image/svg+xml", path.with_suffix(".svg").read_bytes())


def data_uri(kind: str, content: bytes) -> str:
    """An address that is itself the content. `kind`: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
