"""What train.py found, as a Markdown table; and its place in RESULTS.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trainings import TRAININGS, Lap, Training

Laps = Mapping[str, Sequence[Lap]]
_HEAD = (
    "| | tokens/s | × Trainer | CPU s/step | × Trainer | peak RSS | × Trainer | whole process | "
    "loss, first and last step | furthest from Trainer's |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(laps: Laps, tokens: int) -> str:
    """The rows in the list's order; a step is of so many `tokens`."""
    return "\n".join([_HEAD, *(_row(each, laps, tokens) for each in TRAININGS if each.name in laps)])


def _row(training: Training, laps: Laps, tokens: int) -> str:
    own, peer = laps[training.name], laps.get(training.peer or "", ())
    cells = (
        training.name,
        f"{median(tokens / _step(lap.seconds) for lap in own):.0f}",
        _ratio(peer, own, lambda lap: _step(lap.seconds)),
        f"{median(_step(lap.cpu) for lap in own):.2f}",
        _ratio(own, peer, lambda lap: _step(lap.cpu)),
        f"{median(lap.peak for lap in own) / 1e9:.2f} GB",
        _ratio(own, peer, lambda lap: lap.peak),
        f"{median(lap.whole for lap in own):.0f} s",
        f"{own[0].losses[0]:.4f}, {own[0].losses[-1]:.4f}",
        _apart(own[0], peer[0]) if peer else "",
    )
    return f"| {' | '.join(cells)} |"


def _step(steps: Sequence[float]) -> float:
    """Of all steps but the first, in which memory is found."""
    return median(steps[1:])


def _ratio(over: Sequence[Lap], under: Sequence[Lap], value: Callable[[Lap], float]) -> str:
    """The median of all rounds, and their span."""
    found = sorted(value(a) / value(b) for a, b in zip(over, under))
    if not found:
        return ""
    return f"{median(found):.2f}" + (f" ({found[0]:.2f} … {found[-1]:.2f})" if len(found) > 1 else "")


def _apart(own: Lap, peer: Lap) -> str:
    """The largest difference of losses of one step."""
    return f"{max(abs(a - b) for a, b in zip(own.losses, peer.losses)):.4f}"


def hardware() -> str:
    """The processor, its threads and the day."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of an {name}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"


def section(report: str, heading: str, found: str, common: Mapping[str, Any], of: str) -> str:
    """`report` with what was found under `heading`, in the place of what stood there."""
    told = "\n".join(_told(found, common, of))
    before, there, after = report.partition(f"{heading}\n")
    if not there:
        return f"{report.rstrip()}\n\n{heading}\n\n{told}\n"
    _, next_heading, rest = after.partition("\n## ")
    return f"{before}{heading}\n\n{told}\n{next_heading}{rest}"


def _told(found: str, common: Mapping[str, Any], of: str) -> Iterator[str]:
    batch, length, steps = common["batch"], common["seq_len"], common["steps"]
    yield from ("```console", "python benchmarks/train.py --text wt2_valid.txt", "```", "")
    yield f"SmolLM2-135M-Instruct, steps of {batch} × {length} tokens in one forward; medians of {steps - 1} steps and"
    yield "of all rounds, ratios round by round (least … largest): tokens a second are to be above 1, the rest below."
    yield "Trainer has the same tokens, AdamW and precision. For `distill` it runs the teacher in every step, where"
    yield f"ours asks it before; that time is shared out among the steps. Commit {of}."
    yield from ("", found)
