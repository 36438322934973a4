"""Sequences on their way through every layer of models: how they go, and what that takes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.half import halved_effort
from compress.kernels.share import ALONE, Crew
from compress.passes.forward.cost.base import HEAP, RUNTIME, Cost, boundary_bytes
from compress.passes.forward.cost.flow import FASTEST, Flow, flows
from compress.passes.forward.cost.shapes import Extent, elements, ends, inputs, is_expert, linears, reached
from compress.passes.model.anatomy import Anatomy

_HELD, _MAPPED = 2.4, 1.3
"""What the heap occupies for a byte that is held in many pieces; of pieces too large for it, which come from the
system. Measured."""
_LARGE = 32 << 20
"""Bytes from which on a piece is that large (passes/forward/heap.py)."""
_PASSING = 4
"""Tensors as large as a batch's widest input that there are at once in a layer."""

# Elements that operators touch, for each there is: measured on SmolLM2, on one thread.
_TOUCHED = 6
"""Of inputs and outputs of linears: norms, activations, what statistics are gathered from."""
_CARRIED = 20
"""Of hidden states that are written and read again."""
READ = 22
"""Of weights that are read and decoded."""
_FILLED = 3000
"""Calls in which a layer's module is made and filled, whatever its size. Measured."""


@dataclass(frozen=True)
class Passage:
    """`sequences` on their way through every layer of so many `streams`: models of one outline, side by side.

    `statistics`: some are gathered of a layer that is then rewritten, `squares` (Hessians) among them.
    """

    model: ModelSpec
    anatomy: Anatomy
    sequences: Extent
    streams: int = 1
    statistics: bool = False
    squares: bool = True

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.sequences[0] * self.sequences[1]

    def flow(self, budget: int) -> Flow:
        """The fastest way that fits `budget` bytes, else that of least memory; it never depends on the moment."""
        flow = FASTEST
        for flow in flows(self.sequences[1], self.statistics):
            if self.memory(flow) <= budget:
                break
        return flow

    def reads_ahead(self, budget: int, crew: Crew = ALONE) -> bool:
        """Whether the next layer of each stream may lie in memory beside all else, where statistics are gathered.

        Depends on the `budget` in bytes, and on the `crew` that walks, never on the moment.
        """
        if not (self.tokens and self.statistics):
            return False
        return (self.memory(self.flow(budget), crew) + self._ahead) * crew.sharing <= budget

    def cost(self, budget: int, rounds: int = 1, crew: Crew = ALONE) -> Cost:
        """What that takes within `budget` bytes.

        `rounds` is how often statistics are gathered of a layer, each time after what was rewritten by then. What it
        takes to gather them, and what is then done with them, is not counted here. One stream's linears may round their
        inputs where statistics are gathered. A `crew` shares it if there is memory for all to go as one process would:
        how they go decides about bytes.
        """
        forwards = (1 if self.flow(budget).hold else 1 + rounds) if self.tokens else 0
        shared = crew.count > 1 and self.tokens > 0 and self._within(budget, crew) * crew.sharing <= budget
        return Cost(
            effort=self.effort * (forwards * self.streams),
            memory=self._within(budget, crew if shared else ALONE),
            forwards=forwards,
            # A boundary goes when the next one is there.
            disk=2 * self.streams * boundary_bytes(self.sequences, ends(self.model, self.anatomy)[1]),
            processes=crew.sharing if shared else 1,
            shared=shared,
        )

    def _within(self, budget: int, crew: Crew) -> int:
        """Memory of each process as all go within `budget`."""
        return self.memory(self.flow(budget), crew) + (self._ahead if self.reads_ahead(budget, crew) else 0)

    @property
    def _ahead(self) -> int:
        """Memory of a layer that was read before its time."""
        return int(HEAP * self.streams * self._largest)

    @property
    def _largest(self) -> int:
        """Bytes of the largest layer's linears, fp32."""
        return max((elements(layer) for layer in linears(self.model, self.anatomy)), default=0) * 4

    @property
    def _widest(self) -> int:
        """How wide the widest input of a linear is."""
        widths = (width for layer in inputs(self.model, self.anatomy) for width in layer)
        return max(widths, default=ends(self.model, self.anatomy)[1])

    @property
    def held(self) -> int:
        """Memory that holds every batch at siblings, at most: residual, normed input, widest linear input; all fp32."""
        return self.tokens * 4 * self.streams * (2 * ends(self.model, self.anatomy)[1] + self._widest)

    def memory(self, flow: Flow, crew: Crew = ALONE) -> int:
        """Of each process of a `crew` that shares it; of its batches each has so many."""
        vocabulary, hidden = ends(self.model, self.anatomy)
        piece = min(self.tokens, max(flow.tokens, self.sequences[1])) * 4 * self._widest
        held = 0
        if flow.hold and self.statistics:
            parts = len(flow.shares(len(flow.batches(*self.sequences))))
            held = int(self.held * (_MAPPED if piece >= _LARGE else _HELD) * -(-parts // crew.count) / parts)
        layer = self._largest * (1 + self.streams) + _PASSING * piece + self._matrices(flow, crew) + held
        return RUNTIME + max(int(HEAP * 4 * vocabulary * hidden), layer)

    def _matrices(self, flow: Flow, crew: Crew) -> int:
        """Bytes of Hessians: one and its solve at a time; all of a layer's at once where they are gathered apart."""
        if not (self.statistics and self.squares):
            return 0
        widest, layers = self._widest, inputs(self.model, self.anatomy)
        together = max((sum(width**2 for width in layer) for layer in layers), default=0)
        found = widest**2 + (widest**2 if flow.hold else together)
        if crew.count > 1:  # and one on its way from another process; of each expert abreast
            found = (found + widest**2) * (crew.count if any(map(is_expert, self.anatomy.linears)) else 1)
        return 4 * found

    @property
    def effort(self) -> Effort:
        """Of one stream once: weights of the embedding and all layers are read, hidden states lie on disk in between.

        Linears round what they multiply, where that is faster, in statistics of one stream.
        """
        if not self.tokens:
            return Effort()
        (count, length), (vocabulary, hidden) = self.sequences, ends(self.model, self.anatomy)
        tokens, layers = count * length, len(self.anatomy.layers)
        shapes = {name: self.model.tensors[f"{name}.weight"].shape for name in self.anatomy.linears}
        total = Effort(flops=4 * tokens * length * hidden * layers, calls=_FILLED * layers)  # attention
        multiplied = defaultdict[int, float](float)
        for name, (rows, columns) in shapes.items():
            multiplied[columns] += reached(self.model, name) * rows * columns
        for columns, weights in multiplied.items():
            product = Effort(flops=2 * tokens * weights)
            total += halved_effort(product, columns) if self.statistics and self.streams == 1 else product
        touched = sum(reached(self.model, name) * sum(shape) for name, shape in shapes.items())
        states = tokens * hidden * (layers + 1)
        read = READ * (elements(shapes.values()) + vocabulary * hidden)
        return total + Effort(elements=_TOUCHED * tokens * touched + _CARRIED * states + read)
