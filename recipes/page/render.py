"""The page itself: HTML from a template that escapes all it is given, with figures inside it.

Its content security policy forbids every request, so that it shows offline what it shows online.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress.formats.files.storage import write_bytes
from compress.recipes.page.portrait import Cells, Portrait
from compress.recipes.page.scores import Row, draw, front

_TEMPLATE = "page.html"


@dataclass(frozen=True)
class Page:
    """What is shown: models side by side (`first` is the original), artifacts one by one, the recipe and notes."""

    title: str
    rows: Sequence[Row]
    portraits: Sequence[Portrait]
    recipe: str = ""
    notes: Sequence[str] = ()


def write_page(page: Page, path: Path) -> None:
    """Write it to `path`, whole or not at all. Raises StorageError if the disk fails."""
    write_bytes(path, render(page).encode())


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"inline": _inline, "grid": _grid}
    known = [row for row in page.rows if row.kl is not None]
    return environment.get_template(_TEMPLATE).render(
        page=page,
        columns=list(dict.fromkeys(name for row in page.rows for name in row.figures)),
        front=front(page.rows) if len(known) > 1 else frozenset(),
        scatter=draw(page.rows) if len(known) > 1 else None,
    )


def _inline(svg: bytes) -> Markup:
    """An SVG that matplotlib drew, which escapes what it writes, without the head that only files have."""
    text = svg.decode()
    return Markup(text[text.index("<svg") :])


@dataclass(frozen=True)
class Cell:
    """A layer's value, and how dark it is shown: 0 … 1."""

    layer: int
    value: float
    shade: float


def _grid(cells: Cells, logarithmic: bool) -> Mapping[str, Sequence[Cell | None]]:
    """Rows of all layers, None where there is no value."""
    layers = sorted({layer for row in cells.values() for layer in row})
    values = [value for row in cells.values() for value in row.values()]
    low, high = (_scaled(edge(values), logarithmic) for edge in (min, max))

    def cell(layer: int, value: float | None) -> Cell | None:
        if value is None:
            return None
        return Cell(layer, value, (_scaled(value, logarithmic) - low) / (high - low) if high > low else 0.5)

    return {kind: [cell(layer, row.get(layer)) for layer in layers] for kind, row in cells.items()}


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log(max(value, 1e-12)) if logarithmic else value
