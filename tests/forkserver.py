"""Processes that begin with all imported that a run imports: it is done once for all of them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

_IMPORTED = [
    "accelerate",
    "compress.formats.gguf.dialect",
    "compress.passes.distill",
    "compress.passes.export",
    "compress.passes.train.course",
    "compress.recipes.run",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "peft",
    "torch.distributed.tensor",
]


def forkserver() -> ForkServerContext:
    """What starts them. They have the environment that its first call found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context
