"""What is in a checkpoint, how good it is, and whether it is as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size
from compress.cli.views.layers import alike

if TYPE_CHECKING:
    from compress.recipes.jobs.evaluate import EvalResult, Figures
    from compress.recipes.jobs.inspect import Inspection
    from compress.recipes.jobs.verify import Verification


def inspection(found: Inspection) -> list[RenderableType]:
    """A checkpoint: totals, formats, tensors (layers that are alike on one line)."""
    head = (
        f"{found.path}: {found.dialect}, {found.architecture}, {found.parameters:,} parameters, "
        f"{file_size(found.bytes)}, {found.bits_per_weight:.2f} bits per weight"
    )
    formats = new_table("format", "tensors", "parameters", "bits per weight", right=(1, 2, 3))
    for line in found.formats:
        formats.add_row(line.format, str(line.tensors), f"{line.parameters:,}", f"{line.bits:.2f}")
    tensors = new_table("tensor", "", "shape", "format", "bits", right=(1, 2, 4))
    for name, members in alike(found.tensors, lambda each: each.name, lambda each: (each.shape, each.format)).items():
        first = members[0]
        count = f"×{len(members)}" if len(members) > 1 else ""
        shape = " × ".join(map(str, first.shape))
        tensors.add_row(name, count, shape, first.format, f"{first.bits:.2f}")
    able = new_table("engine or container", "verdict", "why not")
    for name, reason in found.targets.items():
        able.add_row(name, "no" if reason else "loads it", reason)
    for name, reason in found.dialects.items():
        able.add_row(name, "no" if reason else "holds it exactly", reason)
    missed = [f"missed gates: {'; '.join(found.missed_gates)}"] if found.missed_gates else []
    return [head, *missed, formats, tensors, f"other files: {', '.join(found.files)}", able]


def results(rows: Sequence[EvalResult]) -> list[RenderableType]:
    """Evaluations side by side, ★ where no other is both as small and as near to the reference; then text by text."""
    from compress.recipes.page.scores import Row, front

    best = front([Row(row.path, row.bytes, row.kl_divergence) for row in rows])
    timed = any(row.tokens_per_second is not None for row in rows)
    heads = ("perplexity", "KL (nats)", "KL 99.9 %", "top-1", "accepted", "tokens", *(["tokens/s"] if timed else []))
    table = new_table("model", "size", *heads, right=range(1, 9))
    for row in rows:
        pace = [_figure(row.tokens_per_second, 1)] if timed else []
        mark = " ★" if row.path in best and len(best) < len(rows) else ""
        table.add_row(row.path + mark, file_size(row.bytes), *_scores(row), f"{row.tokens:,}", *pace)
    return [table, *([_by_text(rows)] if any(row.domains for row in rows) else [])]


def _by_text(rows: Sequence[EvalResult]) -> Table:
    heads = ("perplexity", "KL (nats)", "KL 99.9 %", "top-1", "accepted")
    table = new_table("text", "model", *heads, right=range(2, 7))
    for text in rows[0].domains:
        for row in rows:
            table.add_row(text, row.path, *_scores(row.domains[text]))
    return table


def _scores(found: Figures) -> list[str]:
    kl, worst = _figure(found.kl_divergence, 4), _figure(found.kl_p999, 3)
    return [f"{found.perplexity:.3f}", kl, worst, _part(found.top1_agreement), _part(found.acceptance)]


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _part(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f} %"


def verification(found: Verification) -> list[RenderableType]:
    """What was compared, what is not as it was written, and the verdict."""
    checks = new_table("check", "compared", "problems", right=(1, 2))
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
    if found.signature == "not checked":
        lines.append("signature: not checked, --public-key or --identity says whose it is to be")
    if found.missed_gates:
        lines.append(f"missed gates: {'; '.join(found.missed_gates)}")
    verdict = "passed" if found.passed else "did NOT pass"
    return [checks, *problems, *lines, f"{found.path} ({found.dialect}): {verdict}"]
