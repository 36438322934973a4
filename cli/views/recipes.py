"""What a recipe will do, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import duration, file_size, memory_size
from compress.cli.views.profile import profile

if TYPE_CHECKING:
    from compress.recipes.elsewhere.check import Checked
    from compress.recipes.figures.planned import FitPlan, Plan, StagePlan
    from compress.recipes.jobs.answers import Answers
    from compress.recipes.report import ArtifactReport, Metrics, PassReport, RunReport

_WORTH_A_WORD = 0.2
"""The part of an artifact from which on its embeddings explain its size."""


def run_report(report: RunReport) -> list[RenderableType]:
    """What a finished run has to tell."""
    table = new_table("", "size", "of 16 bits", "bits per weight", "files", right=(1, 2, 3))
    full = 2 * report.parameters
    table.add_row("original, 16 bits", file_size(full), "100 %", "16.00", "")
    stored = report.source_bytes
    bits, share = 8 * stored / report.parameters, 100 * stored / full
    table.add_row("original, as stored", file_size(stored), f"{share:.0f} %", f"{bits:.2f}", report.model)
    for artifact in report.artifacts:
        share, bits = 100 * artifact.bytes / full, artifact.bits_per_weight
        table.add_row(artifact.dialect, file_size(artifact.bytes), f"{share:.0f} %", f"{bits:.2f}", artifact.path)
    sizes = [line for artifact in report.artifacts for line in _ends(artifact)]
    seconds = " · ".join(f"{step.name} {duration(step.seconds)}" for step in report.passes)
    memory = f"peak memory {memory_size(report.peak_ram_bytes)}"
    if report.peak_vram_bytes:
        memory += f", on the GPU {memory_size(report.peak_vram_bytes)}"
    parts: list[RenderableType] = [table, *sizes, *_chosen(report.bits), *_steps(report.passes)]
    parts += [*_quality(report.metrics), *report.repairs]
    parts += [f"Time      {duration(report.seconds)} ({seconds}), {memory}", ""]
    parts += profile(report.profile) if report.profile else []
    for artifact in report.artifacts:
        parts += _loads(artifact)
    return [*parts, *(f"note: {note}" for note in report.notes)]


def answers(found: Answers) -> list[RenderableType]:
    """A question, and who answered what."""
    width = max(map(len, found.answers))
    texts = {name: " ".join(text.split()) for name, text in found.answers.items()}
    cut = {name: "" if text.endswith((".", "!", "?")) else " …" for name, text in texts.items()}
    return ["", found.question, *(f"  {name:<{width}}  {text}{cut[name]}" for name, text in texts.items())]


def artifact_report(artifact: ArtifactReport) -> list[RenderableType]:
    """What an export has to tell."""
    line = f"{artifact.path}: {file_size(artifact.bytes)}, {artifact.bits_per_weight:.2f} bits per weight"
    return [line, "", *_loads(artifact)]


def plan(planned: Plan) -> list[RenderableType]:
    """Stages, files and the verdict."""
    stages = new_table("stage", "passes", "tensors", "forwards", "memory", "time", right=(2, 3, 4, 5))
    for number, stage in enumerate(planned.stages, start=1):
        about = (_memory(stage), duration(stage.seconds))
        stages.add_row(str(number), " + ".join(stage.passes), str(stage.tensors), str(stage.forwards), *about)
    files = new_table("artifact", "file", "bytes", "", "bits per weight", right=(2, 3, 4))
    for artifact in planned.artifacts:
        bits = f"{artifact.bits_per_weight:.2f}"
        for file in artifact.files:
            files.add_row(artifact.path, file.name, f"{file.bytes:,}", file_size(file.bytes), bits)
    loads = new_table("artifact", "engine", "verdict", "why")
    for found in (found for artifact in planned.artifacts for found in artifact.targets):
        loads.add_row(found.path, found.target, "loads" if found.loads else "no", found.reason or found.note)
    notes = [f"note: {note}" for stage in planned.stages for note in stage.notes]
    notes += [f"note: {artifact.path}: {note}" for artifact in planned.artifacts for note in artifact.notes]
    memory = f"about {memory_size(planned.memory_bytes)} of {memory_size(planned.max_ram)}"
    disk = f", disk {file_size(planned.folder_bytes)}" if planned.folder_bytes else ""
    verdict = f"Verdict: {planned.verdict}; memory {memory}{disk}, time about {duration(planned.seconds)}"
    size = f"{planned.parameters:,} parameters, {file_size(planned.source_bytes)}"
    return [
        f"{planned.model}: {planned.architecture}, {size}",
        *_fit(planned.fit),
        stages,
        files,
        loads,
        *([division] if (division := planned.division()) else []),
        *notes,
        *_repair(planned),
        verdict,
    ]


def _fit(fit: FitPlan | None) -> list[RenderableType]:
    """What was chosen to fit, and from what."""
    if fit is None:
        return []
    table = new_table("weights", "cache", "file", "cache takes", "in all", "", right=(2, 3, 4))
    for row in fit.rows:
        sizes = [memory_size(size) if size else "" for size in (row.weights_bytes, row.cache_bytes, row.bytes)]
        verdict = "chosen" if row.chosen else "fits" if row.fits else row.why or "too large"
        table.add_row(row.weights, row.cache, *sizes, verdict)
    said = f"To fit {memory_size(fit.allowed)} with {fit.users} × {fit.context:,} tokens of context:"
    return [said, table, *([f"note: {fit.told}"] if fit.told else [])]


def _repair(planned: Plan) -> list[str]:
    """What comes on top if gates are missed."""
    may = planned.repair
    if may is None:
        return []
    if not may.rounds:
        return ["Repair: no pass has bits, or a type of GGUF's, that can be raised"]
    work = f"at most {may.rounds} times {' + '.join(may.passes)} again, {duration(may.seconds)} in all"
    return [f"Repair, if a gate is missed: {work}; artifacts of at most {file_size(may.bytes)}"]


def checks(found: Sequence[Checked]) -> list[RenderableType]:
    """One recipe a line, and what is wrong with it."""
    lines = []
    for each in found:
        sound = "fits" if each.planned else "is sound, as far as can be told without its model"
        lines.append(f"{each.recipe}: {each.error or sound}")
        lines += [f"  {each.hint}"] if each.hint else []
    return list(lines)


def _memory(stage: StagePlan) -> str:
    """What a stage takes, of each process that trains where several share a memory."""
    times = f"{stage.processes} × " if stage.processes > 1 else ""
    return f"{times}{memory_size(stage.memory_bytes)}{', sharded' if stage.sharded else ''}"


def _ends(artifact: ArtifactReport) -> list[str]:
    """Why an artifact is larger than its bits let expect."""
    if artifact.ends is None or artifact.ends.bytes < _WORTH_A_WORD * artifact.bytes:
        return []
    size = file_size(artifact.ends.bytes)
    return [f"{artifact.dialect}: {size} of {file_size(artifact.bytes)} are embeddings in {artifact.ends.format}"]


def _chosen(bits: Mapping[str, int | str]) -> list[RenderableType]:
    """How many modules got how many bits, or which type, and of which kind they are."""
    if not bits:
        return []
    kinds = Counter(name.rpartition(".")[2] for name in bits)
    table = new_table(
        "types chosen" if str in map(type, bits.values()) else "bits chosen", "modules", "which", right=(0, 1)
    )
    for width in sorted(set(bits.values()), key=str):
        found = Counter(name.rpartition(".")[2] for name, chosen in bits.items() if chosen == width)
        which = (f"all {kind}" if count == kinds[kind] else f"{count} {kind}" for kind, count in found.items())
        table.add_row(str(width), str(found.total()), ", ".join(which))
    return [table]


def _steps(passes: Sequence[PassReport]) -> list[RenderableType]:
    """What each step took and left, where a recipe measures more than once."""
    if sum(step.metrics is not None for step in passes) < 2:
        return []
    table = new_table("step", "took", "perplexity", "KL", "top-1", right=(1, 2, 3, 4))
    for step in passes:
        table.add_row(step.name, duration(step.seconds), *_figures(step.metrics))
    return [table]


def _figures(metrics: Metrics | None) -> list[str]:
    """Perplexity, KL divergence and agreement; blank where they were not measured."""
    if metrics is None:
        return []
    agreement = None if metrics.top1_agreement is None else 100 * metrics.top1_agreement
    shown = ((metrics.perplexity, "{:.2f}"), (metrics.kl_divergence, "{:.4f}"), (agreement, "{:.1f} %"))
    return ["" if value is None else form.format(value) for value, form in shown]


def _quality(metrics: Metrics) -> list[RenderableType]:
    """The line on quality; nothing where no pass measured it."""
    if metrics.perplexity is None:
        return []
    text = f"Quality   perplexity {metrics.perplexity:.2f}"
    if metrics.reference_perplexity is not None:
        text += f" (original {metrics.reference_perplexity:.2f})"
    if metrics.kl_divergence is not None:
        text += f" · KL divergence {metrics.kl_divergence:.4f} nats per token"
    if metrics.top1_agreement is not None:
        text += f" · top-1 agreement {100 * metrics.top1_agreement:.1f} %"
    if metrics.acceptance is not None:
        text += f" · as a draft {100 * metrics.acceptance:.1f} % accepted"
    return [text]


def _loads(artifact: ArtifactReport) -> list[RenderableType]:
    """The lines that load an artifact, ready to copy."""
    width = max((len(engine) for engine in artifact.loads), default=0)
    lines = [f"  {engine:<{width}}  {line}" for engine, line in artifact.loads.items()]
    return [f"{artifact.dialect}:", *lines]
