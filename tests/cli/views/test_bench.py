"""The table of paces."""

from __future__ import annotations

import pytest

from compress.cli.terminal.tables import show
from compress.cli.views.bench import bench
from compress.recipes.engines.paces import Pace, Spread
from compress.recipes.jobs.bench import Bench, Timed, Untimed

PACE = Pace(
    prefill=512.4, decode=81.26, decode_rounds=[80, 81.26], peak_bytes=3 << 28,
    first_token=Spread(p50=0.4996, p95=0.6, p99=0.7), token=Spread(p50=0.0123, p95=0.02, p99=0.0301),
)  # fmt: skip


def timed(concurrency: int, draft: str | None = None) -> Timed:
    return Timed(
        path="a.gguf", engine="llama.cpp", draft=draft, concurrency=concurrency, bytes=92_000_000, pace=PACE,
        ratio=1.254, versions={},
    )  # fmt: skip


def found(*rows: Timed) -> Bench:
    untimed = [Untimed(path="b", engine="llama.cpp", draft="c", reason="no")]
    return Bench(prompt_tokens=256, tokens=64, rounds=5, threads=2, timed=list(rows), untimed=untimed)


def test_figures_and_what_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    show(*bench(found(timed(1), timed(1, "c"))))
    head, _, row, drafted, *rest = filter(str.strip, capsys.readouterr().out.splitlines())
    assert "at once" not in head
    assert " ".join(row.split()) == "a.gguf 92.0 MB llama.cpp 512 81.3 ×1.25 500 12.3 / 20.0 / 30.1 768 MiB"
    assert drafted.split()[:3] == ["a.gguf", "+", "c"]
    assert rest == [
        "256 tokens read, 64 written; medians of 5 rounds in turn, 2 threads; ratio of decoding",
        "note: b was not timed in llama.cpp with c: no",
    ]


def test_conversations_at_once_are_a_column_where_they_differ(capsys: pytest.CaptureFixture[str]) -> None:
    show(*bench(found(timed(1), timed(16))))
    shown = capsys.readouterr().out
    assert "at once" in shown and " 16 " in shown
