"""How fast engines wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size, memory_size

if TYPE_CHECKING:
    from compress.recipes.engines.paces import Spread
    from compress.recipes.jobs.bench import Bench, Timed


def bench(found: Bench) -> list[RenderableType]:
    """A row for every artifact, engine and number of conversations, then what could not be timed."""
    several = len({row.concurrency for row in found.timed}) > 1
    table = new_table(
        *("artifact", "size", "engine", *(["at once"] if several else []), "prefill tok/s", "decode tok/s", "ratio"),
        *("first token ms", "per token P50/P95/P99 ms", "memory"),
        right=range(1, 10 + several),
    )
    table.columns[2].justify = "left"
    for row in found.timed:
        table.add_row(*_cells(row, several))
    each = f"{found.prompt_tokens} tokens read, {found.tokens} written"
    head = f"{each}; medians of {found.rounds} rounds in turn, {found.threads} threads; ratio of decoding"
    if found.threads is None:
        head = f"{each}; {found.rounds} requests for every conversation, timed by guidellm"
    missing = [
        f"note: {one.path} was not timed{f' in {one.engine}' if one.engine else ''}"
        f"{f' with {one.draft}' if one.draft else ''}: {one.reason}"
        for one in found.untimed
    ]
    return [table, head, *missing]


def _cells(row: Timed, several: bool) -> list[str]:
    pace = row.pace
    return [
        row.path + (f" + {row.draft}" if row.draft else ""),
        file_size(row.bytes),
        row.engine,
        *([str(row.concurrency)] if several else []),
        f"{pace.prefill:.0f}",
        f"{pace.decode:.1f}",
        f"×{row.ratio:.2f}",
        f"{1000 * pace.first_token.p50:.0f}",
        _percentiles(pace.token),
        "–" if pace.peak_bytes is None else memory_size(pace.peak_bytes),
    ]


def _percentiles(spread: Spread) -> str:
    return " / ".join(f"{1000 * seconds:.1f}" for seconds in (spread.p50, spread.p95, spread.p99))
