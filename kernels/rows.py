"""How many rows of a matrix a chain of operators takes at once: what one leaves in a CPU's cache, the next finds."""

from __future__ import annotations

import torch

FEW, MANY = 1 << 16, 1 << 18
"""Elements on a CPU: for short chains, whose time is that of memory, and for long ones of small results. Measured."""
_ELSEWHERE = 1 << 26


def rows_at_once(columns: int, device: torch.device, elements: int = MANY) -> int:
    """How many rows of so many `columns` have so many elements, at least one; on other devices far more."""
    return max(1, (elements if device.type == "cpu" else _ELSEWHERE) // columns)
