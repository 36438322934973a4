"""What a model that runs takes of a machine beside its weights and its cache."""

from __future__ import annotations

ROOM = 1.2
"""Activations, buffers and fragmentation: a rule of thumb."""
USED_VRAM = 0.9
"""The part of a GPU's memory that an engine takes (vLLM: gpu_memory_utilization)."""


def with_room(nbytes: float) -> int:
    """Weights, or weights and cache, in bytes, with what comes on top."""
    return round(nbytes * ROOM)
