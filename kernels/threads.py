"""How many threads torch's operators use: small ones are faster on one, and on a busy machine by far.

A parallel region ends when its last thread does. For an operator of some microseconds that costs more than it saves,
and where another process holds a core it waits for that process's whole slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread() -> Iterator[None]:
    """Within, operators on the CPU use one thread. For loops of small operators; products of matrices want all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
