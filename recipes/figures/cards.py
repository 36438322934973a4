"""Memory of the device that computes: how much a run may use, and a limit on a GPU's that torch's allocator keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compress.formats.errors import UsageError
from compress.passes.forward.cost.base import RUNTIME
from compress.recipes.figures.budgets import memory_here


def allowed_on(device: torch.device, max_ram: int | None, max_vram: int | None) -> int:
    """Bytes that a run on `device` may use: what was allowed, or all that there is.

    Raises UsageError for a budget of the other memory, of which no plan says anything.
    """
    if device.type == "cpu":
        if max_vram is not None:
            raise UsageError(f"--max-vram speaks of a GPU, and this run is on {device}", "use --max-ram")
        return max_ram or memory_here()
    if max_ram is not None:
        raise UsageError(
            f"--max-ram speaks of the computer's memory, and this run is on {device}",
            "use --max-vram; a cgroup limits the other: systemd-run --user --scope -p MemoryMax=SIZE compress run …",
        )
    total = int(_module(device).get_device_properties(device).total_memory)
    return min(max_vram or total, total)


@contextmanager
def kept_on(device: torch.device, max_vram: int | None) -> Iterator[None]:
    """Within, torch takes no more of a GPU than `max_vram` bytes: it frees what it keeps in reserve, then raises.

    What plans count as the libraries' own (`RUNTIME`) is left to CUDA, whose context torch's allocator does not see.
    """
    if max_vram is None:
        yield
        return
    module = _module(device)
    total = int(module.get_device_properties(device).total_memory)
    module.set_per_process_memory_fraction(min(1.0, max(0, max_vram - RUNTIME) / total), device)
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(1.0, device)


def peak_on(device: torch.device) -> int:
    """The most bytes of a GPU that this process's tensors have had; 0 on a CPU."""
    return 0 if device.type == "cpu" else int(_module(device).max_memory_allocated(device))


def _module(device: torch.device) -> Any:
    """`torch.cuda`, or what stands for it on another kind of device."""
    return torch.get_device_module(device)
