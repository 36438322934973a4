"""The report of a run: what explains its size, which bits were chosen."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console, RenderableType

from compress.cli.views.recipes import answers, run_report
from compress.recipes.jobs.answers import Answers
from compress.recipes.report import ArtifactReport, Ends, Metrics, RunReport

ARTIFACT = {
    "dialect": "gptq", "path": "out/gptq", "bytes": 115_000_000, "bits_per_weight": 6.8, "quantized_share": 0.8,
    "verification": {}, "loads": {"vllm": "vllm serve out/gptq"},
}  # fmt: skip


def shown(ends: Ends | None = None, **options: Any) -> str:
    report = RunReport(
        model="here",
        parameters=135_000_000,
        source_bytes=270_000_000,
        artifacts=[ArtifactReport(**ARTIFACT, ends=ends)],
        metrics=Metrics(),
        passes=[],
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


def test_answers_stand_side_by_side() -> None:
    found = Answers(question="Where?", answers={"original": "In\nParis.", "gptq": "In the"})
    assert printed(answers(found)).splitlines() == ["", "Where?", "  original  In Paris.", "  gptq      In the …"]
