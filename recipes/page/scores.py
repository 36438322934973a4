"""What a page compares: models by size and by what they have lost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_FONT = 8
_RISES = (5.0, -11.0, 15.0, -21.0, 25.0, -31.0)
"""Above or below its dot: how far a name may stand from it, the nearest first."""


@dataclass(frozen=True)
class Row:
    """A model: bytes on disk, and figures by what they are called; KL divergence in nats per token, None if unknown."""

    name: str
    bytes: int
    kl: float | None
    figures: Mapping[str, str] = field(default_factory=dict)


def front(rows: Sequence[Row]) -> frozenset[str]:
    """The names of those that no other beats: none is both as small and as near to the reference (Pareto's front)."""
    known = [(row.name, row.bytes, row.kl) for row in rows if row.kl is not None]
    return frozenset(
        name
        for name, size, kl in known
        if not any(other <= size and lost <= kl and (other, lost) != (size, kl) for _, other, lost in known)
    )


def draw(rows: Sequence[Row]) -> bytes:
    """An SVG of size against KL divergence, the front joined; the same bytes each time. `rows` hold two at least."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    best = front(rows)
    points = sorted((row.bytes / 1e6, row.kl, row.name) for row in rows if row.kl is not None)
    figure = Figure(figsize=(7.0, 3.5), dpi=72)  # dots in points, as names are placed in
    axes = figure.add_axes((0.1, 0.15, 0.87, 0.8))
    file = io.BytesIO()
    # Names are no formulas.
    settings = {"svg.hashsalt": "compress", "svg.fonttype": "none", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        axes.plot(*zip(*[(size, kl) for size, kl, name in points if name in best]), color="C0", linewidth=1)
        for size, kl, name in points:
            axes.plot(size, kl, marker="o", color="C0" if name in best else "0.6")
        axes.margins(x=0.15, y=0.12)
        axes.autoscale_view()  # now: places follow from it
        dots = axes.transData.transform([(size, kl) for size, kl, _ in points])
        for (size, kl, name), place in zip(points, _places([(*dot, name) for dot, (*_, name) in zip(dots, points)])):
            side = "left" if place[0] > 0 else "right"
            axes.annotate(name, (size, kl), textcoords="offset points", xytext=place, ha=side, fontsize=_FONT)
        axes.set(xlabel="MB", ylabel="KL divergence, nats per token")
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _places(dots: Sequence[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Where names begin beside their dots (x, y, name), from left to right, all in points: inwards, none on another."""
    middle = (dots[0][0] + dots[-1][0]) / 2
    taken: list[tuple[float, float, float]] = []
    found = []
    for x, y, name in dots:
        width = 0.6 * _FONT * len(name)
        left = x + 6 if x <= middle else x - 6 - width
        free = [rise for rise in _RISES if not any(_meet((left, left + width, y + rise), box) for box in taken)]
        taken.append((left, left + width, y + (free or _RISES)[0]))
        found.append((6.0 if x <= middle else -6.0, (free or _RISES)[0]))
    return found


def _meet(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Whether two lines of text (left, right, base) lie on each other."""
    return one[0] < other[1] and other[0] < one[1] and abs(one[2] - other[2]) < 1.2 * _FONT
