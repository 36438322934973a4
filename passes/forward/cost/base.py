"""What a stage takes: operations, peak memory, forwards, disk."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.kernels.effort import Effort
from compress.passes.forward.cost.shapes import Extent

RUNTIME = 515 << 20
"""Python, torch and transformers themselves, a tokenizer and a text."""
HEAP = 1.8
"""What the heap occupies for a byte that is in use."""


@dataclass(frozen=True)
class Cost:
    """What is computed, peak memory in bytes, and forwards of the sequences through each layer.

    `disk`: bytes in the work folder at most, beside what stages leave there, of which the plan sees in the headers
    what is rewritten; `kept` is what it does not see. Each of `processes` that share a memory
    takes so much of it; `shared`: all of a run do it together; `sharded`: parameters are shared out among them.
    `notes` are what else a plan should say.
    """

    effort: Effort
    memory: int
    forwards: int
    disk: int = 0
    kept: int = 0
    processes: int = 1
    shared: bool = False
    sharded: bool = False
    notes: tuple[str, ...] = ()

    def after(self, before: Cost) -> Cost:
        """This, and what is done before it, by one process, and is over by then."""
        return replace(
            self,
            effort=self.effort + before.effort,
            memory=max(self.memory, -(-before.memory // self.processes)),
            forwards=self.forwards + before.forwards,
            disk=max(self.disk, before.disk),
            kept=self.kept + before.kept,
        )


def boundary_bytes(sequences: Extent, width: int) -> int:
    """The hidden states of all sequences between two layers, as they lie on disk."""
    return sequences[0] * sequences[1] * width * 4
