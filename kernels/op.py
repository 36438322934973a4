"""Ops: a torch function that says what is computed, and beside it, where it pays, a kernel that computes it on a GPU.

A kernel is found by its file: `kernels/gpu/<name of the op>.py` has a function of the op's name with its
parameters, and `takes`, which says of the same arguments whether the kernel can. Nothing is imported, and no GPU
asked for, before a CUDA tensor comes.
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from importlib.util import find_spec
from itertools import chain
from typing import Generic, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from compress import kernels
from compress.kernels.fallbacks import count

P = ParamSpec("P")
R = TypeVar("R")

# The last of the rooms, which may use all others: found by its name, as what is in it is.
gpu = importlib.import_module(f"{kernels.__name__}.gpu")

_only_reference: ContextVar[bool] = ContextVar("_only_reference", default=False)


@dataclass(frozen=True)
class Kernel(Generic[P, R]):
    """An op's version for GPUs, and which arguments it takes."""

    run: Callable[P, R]
    takes: Callable[P, bool]


class Op(Generic[P, R]):
    """What `@op` makes of a torch function, the reference: called as it is, and computing the same.

    `counts` says how calls with CUDA tensors were served, as `kernel` or as `reference`; nothing depends on it. The
    latter are counted in the report of a run as well.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.name = reference.__name__
        self.counts: Counter[str] = Counter()
        update_wrapper(self, reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        there = next((x for x in chain(args, kwargs.values()) if isinstance(x, Tensor) and x.is_cuda), None)
        if there is None or _only_reference.get():
            return self.reference(*args, **kwargs)
        if self.kernel is None or not self.kernel.takes(*args, **kwargs):
            self.counts["reference"] += 1
            why = "there is no kernel of it" if self.kernel is None else "its kernel does not take the case"
            count(f"{self.name} ran as plain torch on the GPU: {why}")
            return self.reference(*args, **kwargs)
        self.counts["kernel"] += 1
        with torch.cuda.device_of(there):  # Triton launches on the current device, not on that of the tensors
            return self.kernel.run(*args, **kwargs)

    @cached_property
    def kernel(self) -> Kernel[P, R] | None:
        """The version for GPUs; None if there is no file of it, or if this machine cannot build it (it then warns)."""
        name = f"{gpu.__name__}.{self.name}"
        if find_spec(name) is None:
            return None
        if lacking := gpu.lacking():
            warnings.warn(f"{self.name} runs as plain torch: its kernel needs {lacking}", stacklevel=3)
            return None
        module = importlib.import_module(name)
        return Kernel(getattr(module, self.name), module.takes)


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make a torch function an op: with CUDA tensors its kernel runs, if there is one and it takes them."""
    return Op(reference)


@contextmanager
def force(version: Literal["reference"]) -> Iterator[None]:
    """Within, ops run as plain torch on every device: to compare with, or to rule a kernel out."""
    token = _only_reference.set(version == "reference")
    try:
        yield
    finally:
        _only_reference.reset(token)


def ops() -> list[Op[..., object]]:
    """Every op that a module of the kernels defines, by name; there is no list to keep."""
    found: dict[str, Op[..., object]] = {}
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        if not module.name.startswith(f"{gpu.__name__}."):
            values = vars(importlib.import_module(module.name)).values()
            found |= {value.name: value for value in values if isinstance(value, Op)}
    return [found[name] for name in sorted(found)]
