"""How large a model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size, memory_size

if TYPE_CHECKING:
    from compress.recipes.figures.cache import Cache
    from compress.recipes.jobs.memory import Memory


def memory(table: Memory) -> list[RenderableType]:
    """A model's size by precision, and its cache."""
    size = f"{table.parameters:,} parameters, {file_size(table.stored)} stored"
    head = f"{table.model}: {table.architecture}, {size}"
    sizes = new_table("precision", "bits", "weights", "inference (×1.2)", "training (×4)", right=(1, 2, 3, 4))
    for row in table.precisions:
        figures = (memory_size(size) for size in (row.weights, row.inference, row.training))
        sizes.add_row(row.name, str(row.bits), *figures)
    parts: list[RenderableType] = [head, sizes]
    if table.cache is not None:
        parts += _cache(table.cache)
    return [*parts, *(f"note: {note}" for note in table.notes)]


def _cache(cache: Cache) -> list[RenderableType]:
    heads = f"{cache.heads} heads on {cache.kv_heads} key-value heads of {cache.head_dim}"
    per_token = ", ".join(f"{name} {memory_size(size)}" for name, size in cache.bytes_per_token.items())
    ways = new_table("sharing", "key-value heads", "per token, FP16", "of MHA", right=(1, 2, 3))
    for way in cache.sharing:
        size = memory_size(way.bytes_per_token)
        ways.add_row(way.name, str(way.kv_heads), size, f"{100 * way.ratio:.0f} %")
    batches = list(dict.fromkeys(size.batch for size in cache.sizes))
    grid = new_table("context, FP16", *(f"batch {batch}" for batch in batches), right=range(1, len(batches) + 1))
    for context in dict.fromkeys(size.context for size in cache.sizes):
        row = [memory_size(size.nbytes) for size in cache.sizes if size.context == context]
        grid.add_row(f"{context:,} tokens", *row)
    return [f"Key-value cache: {cache.kind}, {heads}; per token {per_token}", ways, grid]
