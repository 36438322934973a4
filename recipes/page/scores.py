"""What a page compares: models by size and by what they have lost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
    figure = Figure(figsize=(7.0, 3.5))
    axes = figure.add_axes((0.1, 0.15, 0.87, 0.8))
    middle = (points[0][0] + points[-1][0]) / 2
    file = io.BytesIO()
    # Names are no formulas.
    settings = {"svg.hashsalt": "compress", "svg.fonttype": "none", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        axes.plot(*zip(*[(size, kl) for size, kl, name in points if name in best]), color="C0", linewidth=1)
        for number, (size, kl, name) in enumerate(points):
            axes.plot(size, kl, marker="o", color="C0" if name in best else "0.6")
            left = size <= middle  # no name runs over the edge
            axes.annotate(
                name,
                (size, kl),
                textcoords="offset points",
                xytext=(6 if left else -6, -11 if number % 2 else 5),
                ha="left" if left else "right",
                fontsize=8,
            )
        axes.set(xlabel="MB", ylabel="KL divergence, nats per token")
        axes.margins(x=0.15, y=0.12)
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return file.getvalue()
