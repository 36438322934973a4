"""What two checkpoints have not in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size
from compress.cli.views.layers import alike

if TYPE_CHECKING:
    from compress.passes.artifact.differences import Held, TensorDifference
    from compress.recipes.jobs.diff import Diff, Side


def diff(found: Diff) -> list[RenderableType]:
    """Both sides, tensors that differ (layers that do alike on one line), settings, answers, the verdict."""
    parts: list[RenderableType] = [_side("a", found.a), _side("b", found.b)]
    if found.tensors:
        parts.append(_tensors(found.tensors))
    if found.settings:
        settings = new_table("setting", "a", "b")
        for setting in found.settings:
            settings.add_row(setting.where, setting.a, setting.b)
        parts.append(settings)
    if found.answers:
        one, other = found.answers.perplexity
        parts.append(
            f"answers: KL divergence {found.answers.kl_divergence:.4g} nats per token, top-1 agreement "
            f"{100 * found.answers.top1_agreement:.1f} %, perplexity {one:.2f} and {other:.2f}"
        )
    counts = f"{len(found.tensors)} tensors differ, {found.alike} are alike; {len(found.settings)} settings differ"
    return [*parts, counts if found.differ else f"no difference in {found.alike} tensors and their settings"]


def _side(name: str, side: Side) -> str:
    return f"{name}: {side.path} ({side.dialect}, {file_size(side.bytes)}, {side.bits_per_weight:.2f} bits per weight)"


def _tensors(tensors: Iterable[TensorDifference]) -> Table:
    table = new_table("tensor", "", "a", "b", "max", "mean", "relative", "codes", right=(4, 5, 6, 7))
    for name, members in alike(tensors, lambda each: each.name, _kind).items():
        first, values = members[0], [each.values for each in members if each.values]
        count = f"×{len(members)}" if len(members) > 1 else ""
        figures = ("–", "–", "–")
        if values:
            mean, relative = (sum(part) / len(values) for part in zip(*((each.mean, each.relative) for each in values)))
            figures = (f"{max(each.largest for each in values):.3g}", f"{mean:.3g}", f"{100 * relative:.2f} %")
        codes = [each.codes for each in members if each.codes is not None]
        other = first.b is not None and first.a is not None and first.a.shape != first.b.shape
        held = [_held(each, shape=other or None in (first.a, first.b)) for each in (first.a, first.b)]
        table.add_row(name, count, *held, *figures, f"{sum(codes):,}" if codes else "–")
    return table


def _held(held: Held | None, *, shape: bool) -> str:
    if held is None:
        return "not there"
    return f"{held.format}, {held.bits:.2f} bits" + (f", {' × '.join(map(str, held.shape))}" if shape else "")


def _kind(each: TensorDifference) -> tuple[Held | None, Held | None, bool, bool]:
    """What is the same of tensors that changed in the same way."""
    return each.a, each.b, each.values is None, each.codes is None
