"""Where a run's time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import duration

if TYPE_CHECKING:
    from compress.recipes.figures.profile import Profile


def profile(found: Profile) -> list[RenderableType]:
    """A row for each kind of work of a stage, and what the machine reaches."""
    table = new_table("stage", "work", "calls", "time", "", "TFLOP/s", "GB/s", right=(2, 3, 4, 5, 6))
    total = sum(work.seconds for work in found.works) or 1.0
    for work in found.works:
        rates = (_rate(work.flops, work.seconds, 1e12), _rate(work.nbytes, work.seconds, 1e9))
        share = f"{100 * work.seconds / total:.0f} %"
        table.add_row(work.stage, work.work, str(work.calls), duration(work.seconds), share, *rates)
    half = f"{found.half_flops / 1e12:.3g} in one of bfloat16, " if found.half_flops else ""
    reached = f"{found.flops / 1e12:.3g} TFLOP/s in a product of fp32, {half}{found.nbytes / 1e9:.3g} GB/s in a copy"
    floor = f"Its products alone would take {duration(found.floor)}."
    return ["", table, f"The machine reaches {reached}. {floor}", ""]


def _rate(done: float, seconds: float, unit: float) -> str:
    return f"{done / seconds / unit:.3g}" if done and seconds else ""
