"""The curves of a training, drawn: loss by step, and on what was held out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

_SIZE = (7.0, 3.5)  # inches
_SMOOTHED = 20
"""Points into which the losses of single steps are averaged, which jump with the text of each step."""


def curve_name(number: int) -> str:
    """The file that the curve of training `number` of a run lies in, counted from 0."""
    return "training.svg" if number == 0 else f"training-{number + 1}.svg"


def held_out_label(training: Mapping[str, Any]) -> str:
    """What the held-out loss is measured on."""
    return f"held-out text {training['held_out']}" if "held_out" in training else "held-out text"


def draw(training: Mapping[str, Any]) -> bytes:
    """An SVG of `losses` (one per step) and `measured` ((steps done, loss) on held-out text); the same bytes each time.

    `held_out` names that text, where it is another than the one that is learned. Nothing is drawn on a screen, and no
    state of the library is touched.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_averaged(training["losses"]), color="0.7", label="training text")
    axes.plot(*zip(*training["measured"]), marker="o", markersize=3, color="C0", label=held_out_label(training))
    best, loss = min(training["measured"], key=lambda point: point[1])
    axes.annotate(f"{loss:.4g}", (best, loss), textcoords="offset points", xytext=(0, 8), ha="center")
    axes.set(xlabel="step", ylabel="loss per token", title=training["pass"])
    axes.legend(loc="upper right", frameon=False)  # losses fall: it is free, and looked for in no time
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "compress", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _averaged(losses: list[float]) -> tuple[list[float], list[float]]:
    """Steps done and mean losses of so many neighbouring steps each."""
    size = max(1, len(losses) // _SMOOTHED)
    parts = [losses[start : start + size] for start in range(0, len(losses), size)]
    ends = [min(start + size, len(losses)) for start in range(0, len(losses), size)]
    return [float(end) for end in ends], [sum(part) / len(part) for part in parts]
