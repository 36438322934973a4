"""The report of a run: what explains its size, which bits were chosen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType

from compress.cli.views.recipes import answers, plan, run_report
from compress.recipes.figures.planned import FitPlan, FitRow, Plan
from compress.recipes.jobs.answers import Answers
from compress.recipes.report import ArtifactReport, Ends, Metrics, PassReport, RunReport

ARTIFACT = {
    "dialect": "gptq", "path": "out/gptq", "bytes": 115_000_000, "bits_per_weight": 6.8, "quantized_share": 0.8,
    "verification": {}, "loads": {"vllm": "vllm serve out/gptq"},
}  # fmt: skip


def shown(ends: Ends | None = None, passes: Sequence[PassReport] = (), **options: Any) -> str:
    report = RunReport(
        model="here",
        parameters=135_000_000,
        source_bytes=270_000_000,
        artifacts=[ArtifactReport(**ARTIFACT, ends=ends)],
        metrics=Metrics(),
        passes=list(passes),
        missed=[],
        seconds=1,
        peak_ram_bytes=1,
        peak_vram_bytes=0,
        **options,
    )
    return printed(run_report(report))


def printed(parts: list[RenderableType]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*parts, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_large_embeddings_explain_the_size() -> None:
    assert "gptq: 56.6 MB of 115 MB are embeddings in float16" in shown(Ends(bytes=56_600_000, format="float16"))
    assert "embeddings" not in shown(Ends(bytes=1_000_000, format="float16"))
    assert "embeddings" not in shown(None)


def test_chosen_bits_are_shown_by_kind() -> None:
    bits = {f"layers.{n}.{name}": 8 if name == "up" or n == 2 else 3 for n in range(3) for name in ("up", "q", "k")}
    lines = [" ".join(line.split()) for line in shown(bits=bits).splitlines()]
    assert "bits chosen modules which" in lines
    assert "3 4 2 q, 2 k" in lines
    assert "8 5 all up, 1 q, 1 k" in lines
    assert "bits chosen" not in shown()


def test_each_step_says_what_it_took_and_left_where_there_are_several_measures() -> None:
    measured = [Metrics(perplexity=43.25, kl_divergence=0.4732, top1_agreement=0.665), Metrics(perplexity=38.41)]
    steps = [("shrink", None), ("evaluate", measured[0]), ("distill", None), ("evaluate", measured[1])]
    passes = [PassReport(name=name, seconds=60, metrics=metrics) for name, metrics in steps]
    lines = [" ".join(line.split()) for line in shown(passes=passes).splitlines()]
    first = lines.index("step took perplexity KL top-1")
    assert [line for line in lines[first + 1 :] if line][1:5] == [
        "shrink 1 min 00 s", "evaluate 1 min 00 s 43.25 0.4732 66.5 %", "distill 1 min 00 s",
        "evaluate 1 min 00 s 38.41",
    ]  # fmt: skip
    assert "step" not in shown(passes=passes[:3])


def test_answers_stand_side_by_side() -> None:
    found = Answers(question="Where?", answers={"original": "In\nParis.", "gptq": "In the"})
    assert printed(answers(found)).splitlines() == ["", "Where?", "  original  In Paris.", "  gptq      In the …"]


def test_what_was_chosen_to_fit_stands_beside_what_was_not() -> None:
    rows = [
        FitRow(weights="8 bits", cache="16 bits", weights_bytes=8 << 20, cache_bytes=4 << 20, bytes=15 << 20),
        FitRow(weights="7 bits", cache="16 bits", why="no container"),
        FitRow(weights="4 bits", cache="fp8", weights_bytes=4 << 20, cache_bytes=2 << 20, bytes=7 << 20, fits=True,
               chosen=True),
    ]  # fmt: skip
    planned = Plan(
        model="here", architecture="llama", parameters=1, source_bytes=1, stages=[], artifacts=[], memory_bytes=1,
        disk_bytes=0, seconds=1, max_ram=1, verdict="fits",
        fit=FitPlan(allowed=10 << 20, context=2048, users=4, rows=rows, told="keep its cache in q8_0"),
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in printed(plan(planned)).splitlines()]
    assert "To fit 10.0 MiB with 4 × 2,048 tokens of context:" in lines
    assert "8 bits 16 bits 8.00 MiB 4.00 MiB 15.0 MiB too large" in lines
    assert "7 bits 16 bits no container" in lines
    assert "4 bits fp8 4.00 MiB 2.00 MiB 7.00 MiB chosen" in lines
    assert "note: keep its cache in q8_0" in lines
