"""What a view looks like on a wide terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console, RenderableType

Shown = Callable[[Sequence[RenderableType]], list[str]]


@pytest.fixture
def shown() -> Shown:
    """shown(parts of a view) → its lines, what stands in columns one blank apart."""

    def lines(parts: Sequence[RenderableType]) -> list[str]:
        stream = io.StringIO()
        Console(file=stream, width=200, markup=False).print(*parts, sep="\n")
        return [" ".join(line.split()) for line in stream.getvalue().splitlines()]

    return lines
