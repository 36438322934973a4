"""How many positions a model is made for, and whether it can be run beyond them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compress.formats.errors import RefusedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PADDING = 8
"""Rows that a table may have beyond its positions: OPT's has two."""


@dataclass(frozen=True)
class Positions:
    """`count` positions; `fixed` if they are looked up in a table, beyond which there is nothing."""

    count: int
    fixed: bool

    def refuse_beyond(self, length: int, who: str, note: Callable[[str], None]) -> None:
        """Raise RefusedError for sequences of `length` tokens that have no position; note that they are long."""
        if length <= self.count:
            return
        said = f"{who}: sequences of {length:,} tokens, and the model "
        if self.fixed:
            raise RefusedError(f"{said}has {self.count:,} positions", f"say seq_len: {self.count}, or less")
        note(f"{said}was made for {self.count:,}: what it answers beyond them says little")


def positions_of(config: PreTrainedConfig, modules: Iterable[nn.Module], tokens: nn.Module) -> Positions | None:
    """The positions of a model that consists of `modules`, `tokens` its input embedding; None if nothing limits them.

    A learned table is an embedding (GPT-2, OPT); computed ones (GPT-J's angles, GPT-Neo's mask) are buffers.
    """
    count = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1:
        return None
    parts = [part for module in modules for part in module.modules() if part is not tokens]
    learned = any(isinstance(part, nn.Embedding) and 0 <= part.num_embeddings - count <= _PADDING for part in parts)
    computed = any(count in buffer.shape for part in parts for buffer in part.buffers(recurse=False))
    return Positions(count, learned or computed)
