"""Writes reports to files: pages from templates, figures as PNG, SVG and data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure


class Table(NamedTuple):
    """A table of text cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_pages(folder: Path, pages: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Writes pages. `pages`: name of the file -> name of its template; `facts`: the variables of all templates."""
    environment = Environment(
        loader=PackageLoader("seqtrack.reports"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, template in pages.items():
        (folder / name).write_text(environment.get_template(template).render(facts), encoding="utf-8")


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
