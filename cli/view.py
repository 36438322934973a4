"""Results as people read them: tables on standard output."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from compress.cli.units import duration, file_size, memory_size

if TYPE_CHECKING:
    from compress.recipes.jobs.evaluate import EvalResult
    from compress.recipes.jobs.inspect import Inspection, TensorLine
    from compress.recipes.jobs.memory import Cache, Memory
    from compress.recipes.jobs.verify import Verification
    from compress.recipes.plan import Plan
    from compress.recipes.report import ArtifactReport, Metrics, RunReport

_WIDE = 200
"""Columns where nobody looks at a terminal: a file or a pipe must not be wrapped."""


def show(*parts: RenderableType) -> None:
    """Print tables, and strings as they are: a line to copy is never wrapped."""
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def run_report(report: RunReport) -> list[RenderableType]:
    """What a finished run has to tell."""
    table = _table("", "size", "of 16 bits", "bits per weight", "files", right=(1, 2, 3))
    full = 2 * report.parameters
    table.add_row("original, 16 bits", file_size(full), "100 %", "16.00", "")
    stored = report.source_bytes
    bits, share = 8 * stored / report.parameters, 100 * stored / full
    table.add_row("original, as stored", file_size(stored), f"{share:.0f} %", f"{bits:.2f}", report.model)
    for artifact in report.artifacts:
        share, bits = 100 * artifact.bytes / full, artifact.bits_per_weight
        table.add_row(artifact.dialect, file_size(artifact.bytes), f"{share:.0f} %", f"{bits:.2f}", artifact.path)
    seconds = " · ".join(f"{step.name} {duration(step.seconds)}" for step in report.passes)
    memory = f"peak memory {memory_size(report.peak_ram_bytes)}"
    if report.peak_vram_bytes:
        memory += f", on the GPU {memory_size(report.peak_vram_bytes)}"
    parts: list[RenderableType] = [table, *_quality(report.metrics)]
    parts += [f"Time      {duration(report.seconds)} ({seconds}), {memory}", ""]
    for artifact in report.artifacts:
        parts += _loads(artifact)
    return [*parts, *(f"note: {note}" for note in report.notes)]


def artifact_report(artifact: ArtifactReport) -> list[RenderableType]:
    """What an export has to tell."""
    line = f"{artifact.path}: {file_size(artifact.bytes)}, {artifact.bits_per_weight:.2f} bits per weight"
    return [line, "", *_loads(artifact)]


def plan(planned: Plan) -> list[RenderableType]:
    """Stages, files and the verdict."""
    stages = _table("stage", "passes", "tensors", "forwards", "memory", "time", right=(2, 3, 4, 5))
    for number, stage in enumerate(planned.stages, start=1):
        about = (memory_size(stage.memory_bytes), duration(stage.seconds))
        stages.add_row(str(number), " + ".join(stage.passes), str(stage.tensors), str(stage.forwards), *about)
    files = _table("artifact", "file", "bytes", "", "bits per weight", right=(2, 3, 4))
    for artifact in planned.artifacts:
        bits = f"{artifact.bits_per_weight:.2f}"
        for file in artifact.files:
            files.add_row(artifact.path, file.name, f"{file.bytes:,}", file_size(file.bytes), bits)
    loads = _table("artifact", "target", "", "")
    for found in (found for artifact in planned.artifacts for found in artifact.targets):
        loads.add_row(found.path, found.target, "loads" if found.loads else "no", found.reason or found.note)
    notes = [f"note: {artifact.path}: {note}" for artifact in planned.artifacts for note in artifact.notes]
    memory = f"about {memory_size(planned.memory_bytes)} of {memory_size(planned.max_ram)}"
    verdict = f"Verdict: {planned.verdict}; memory {memory}, time about {duration(planned.seconds)}"
    size = f"{planned.parameters:,} parameters, {file_size(planned.source_bytes)}"
    return [f"{planned.model}: {planned.architecture}, {size}", stages, files, loads, *notes, verdict]


def memory(table: Memory) -> list[RenderableType]:
    """A model's size by precision, and its cache."""
    size = f"{table.parameters:,} parameters, {file_size(table.stored)} stored"
    head = f"{table.model}: {table.architecture}, {size}"
    sizes = _table("precision", "bits", "weights", "inference (×1.2)", "training (×4)", right=(1, 2, 3, 4))
    for row in table.precisions:
        figures = (memory_size(size) for size in (row.weights, row.inference, row.training))
        sizes.add_row(row.name, str(row.bits), *figures)
    parts: list[RenderableType] = [head, sizes]
    if table.cache is not None:
        parts += _cache(table.cache)
    return [*parts, *(f"note: {note}" for note in table.notes)]


def inspection(found: Inspection) -> list[RenderableType]:
    """A checkpoint: totals, formats, tensors (layers that are alike on one line)."""
    head = (
        f"{found.path}: {found.dialect}, {found.architecture}, {found.parameters:,} parameters, "
        f"{file_size(found.bytes)}, {found.bits_per_weight:.2f} bits per weight"
    )
    formats = _table("format", "tensors", "parameters", "bits per weight", right=(1, 2, 3))
    for line in found.formats:
        formats.add_row(line.format, str(line.tensors), f"{line.parameters:,}", f"{line.bits:.2f}")
    tensors = _table("tensor", "", "shape", "format", "bits", right=(1, 2, 4))
    for name, members in _alike(found.tensors).items():
        first = members[0]
        count = f"×{len(members)}" if len(members) > 1 else ""
        shape = " × ".join(map(str, first.shape))
        tensors.add_row(name, count, shape, first.format, f"{first.bits:.2f}")
    able = _table("", "", "")
    for name, reason in found.targets.items():
        able.add_row(name, "no" if reason else "loads it", reason)
    for name, reason in found.dialects.items():
        able.add_row(f"dialect {name}", "no" if reason else "holds it exactly", reason)
    return [head, formats, tensors, f"other files: {', '.join(found.files)}", able]


def results(rows: Sequence[EvalResult]) -> list[RenderableType]:
    """Evaluations side by side."""
    table = _table("model", "size", "perplexity", "KL (nats)", "top-1", "tokens", right=(1, 2, 3, 4, 5))
    for row in rows:
        kl = "–" if row.kl_divergence is None else f"{row.kl_divergence:.4f}"
        top1 = "–" if row.top1_agreement is None else f"{100 * row.top1_agreement:.1f} %"
        table.add_row(row.path, file_size(row.bytes), f"{row.perplexity:.3f}", kl, top1, f"{row.tokens:,}")
    return [table]


def verification(found: Verification) -> list[RenderableType]:
    """What was compared, what is not as it was written, and the verdict."""
    checks = _table("check", "compared", "problems", right=(1, 2))
    for check, count in found.checked.items():
        checks.add_row(check, f"{count:,}", str(sum(problem.check == check for problem in found.problems)))
    problems = [f"{problem.check}: {problem.where} {problem.what}" for problem in found.problems]
    lines = []
    if found.largest_difference is not None:
        lines.append(f"logits: at most {found.largest_difference:.2g} nats from the recorded ones")
    if found.engine_difference is not None:
        engine = ", ".join(f"{name} {version}" for name, version in found.engine.items())
        lines.append(f"engine: at most {found.engine_difference:.2g} nats from the recorded logits ({engine})")
    if found.not_here:
        lines.append(f"engine: not asked, {found.not_here}")
    verdict = "passed" if found.passed else "did NOT pass"
    return [checks, *problems, *lines, f"{found.path} ({found.dialect}): {verdict}"]


def names(rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    """Names, and what each is for."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(Text(name, style="bold"), text)
    return [table]


def options(schema: Mapping[str, Any]) -> list[RenderableType]:
    """The options of a pass or a dialect, from its JSON Schema."""
    table = _table("option", "type", "default", "")
    required = schema.get("required", [])
    for name, option in schema.get("properties", {}).items():
        default = "required" if name in required else _plain(option.get("default"))
        kind = type_name(option, schema.get("$defs", {}))
        table.add_row(name, kind, default, option.get("description", ""))
    return [schema.get("description", ""), table]


def type_name(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A JSON Schema's type in a few words: `integer 2…8 or a list of {match, value}`."""
    if "$ref" in schema:
        return type_name(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        kinds = [type_name(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        inner = schema.get("items", {})
        if "$ref" in inner and "value" in definitions[inner["$ref"].rpartition("/")[2]].get("properties", {}):
            return "a list of {match, value}"
        return f"a list of {type_name(inner, definitions)}"
    low = schema.get("minimum", schema.get("exclusiveMinimum", ""))
    high = schema.get("maximum", schema.get("exclusiveMaximum", ""))
    limits = f" {low}…{high}" if (low, high) != ("", "") else ""
    return f"{schema.get('type', 'any')}{limits}"


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
    return [text]


def _loads(artifact: ArtifactReport) -> list[RenderableType]:
    """The lines that load an artifact, ready to copy."""
    width = max((len(engine) for engine in artifact.loads), default=0)
    lines = [f"  {engine:<{width}}  {line}" for engine, line in artifact.loads.items()]
    return [f"{artifact.dialect}:", *lines]


def _cache(cache: Cache) -> list[RenderableType]:
    heads = f"{cache.heads} heads on {cache.kv_heads} key-value heads of {cache.head_dim}"
    per_token = ", ".join(f"{name} {memory_size(size)}" for name, size in cache.bytes_per_token.items())
    ways = _table("sharing", "key-value heads", "per token, FP16", "of MHA", right=(1, 2, 3))
    for way in cache.sharing:
        size = memory_size(way.bytes_per_token)
        ways.add_row(way.name, str(way.kv_heads), size, f"{100 * way.ratio:.0f} %")
    batches = list(dict.fromkeys(size.batch for size in cache.sizes))
    grid = _table("context, FP16", *(f"batch {batch}" for batch in batches), right=range(1, len(batches) + 1))
    for context in dict.fromkeys(size.context for size in cache.sizes):
        row = [memory_size(size.nbytes) for size in cache.sizes if size.context == context]
        grid.add_row(f"{context:,} tokens", *row)
    return [f"Key-value cache: {cache.kind}, {heads}; per token {per_token}", ways, grid]


def _alike(tensors: Iterable[TensorLine]) -> dict[str, list[TensorLine]]:
    """Tensors by their name with `*` for the layer's number, and by shape and format."""
    groups: dict[tuple[str, tuple[int, ...], str], list[TensorLine]] = {}
    for tensor in tensors:
        key = (re.sub(r"\.\d+\.", ".*.", tensor.name), tensor.shape, tensor.format)
        groups.setdefault(key, []).append(tensor)
    lines: dict[str, list[TensorLine]] = {}
    for (pattern, _, _), members in groups.items():
        name = pattern if len(members) > 1 and pattern not in lines else members[0].name
        lines[name] = members
    return lines


def _table(*headers: str, right: Iterable[int] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    numbers = set(right)
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in numbers else "left", overflow="fold")
    return table


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value is None or value == [] else str(value)
