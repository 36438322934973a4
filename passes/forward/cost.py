"""What a walk over the layers takes, counted from shapes: operations and peak memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.half import halved_effort
from compress.kernels.share import ALONE, Crew
from compress.passes.model.anatomy import Anatomy

BATCH_TOKENS = 4096
"""Tokens per forward: enough to keep matrix products efficient, few enough to keep activations small."""
_SMALLER = 4
"""So many times fewer, where memory is short."""
_LEAST_TOKENS = 1024
"""So many where all are few: for several processes to have some each."""
SHARES = 8
"""Of how many parts of the batches statistics are summed up apart: more processes than that cannot share them."""
RUNTIME = 515 << 20
"""Python, torch and transformers themselves, a tokenizer and a text."""
HEAP = 1.8
"""What the heap occupies for a byte that is in use."""
_HELD, _MAPPED = 2.4, 1.3
"""The same of what is held in many pieces; of pieces too large for the heap, which come from the system. Measured."""
_LARGE = 32 << 20
"""Bytes from which on a piece is that large (passes/forward/heap.py)."""
_PASSING = 4
"""Tensors as large as a batch's widest input that there are at once in a layer."""

# Elements that operators touch, for each there is: measured on SmolLM2, on one thread.
_TOUCHED = 6
"""Of inputs and outputs of linears: norms, activations, what statistics are gathered from."""
_CARRIED = 20
"""Of hidden states that are written and read again."""
_READ = 22
"""Of weights that are read and decoded."""
_FILLED = 3000
"""Calls in which a layer's module is made and filled, whatever its size. Measured."""
SCORED_TOKENS = 256
"""Tokens whose logits are there at once."""
_COMPARED = 7
"""Tensors as large as these that there are at once."""
_SCORED = 26
"""Of logits: their logarithms, what is compared."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What architectures call the number of experts."""

Extent = tuple[int, int]
"""How many sequences, and how long each is."""


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


def held_bytes(model: ModelSpec, anatomy: Anatomy, sequences: Extent, streams: int) -> int:
    """Memory that holds every batch at siblings, at most: residual, normed input, widest linear input; all fp32."""
    _, width = model.tensors[anatomy.embedding].shape
    return sequences[0] * sequences[1] * 4 * streams * (2 * width + _widest(_inputs(model, anatomy), width))


@dataclass(frozen=True)
class Flow:
    """How sequences go through a layer: `tokens` together; with `hold` all pause at siblings, and one forward does."""

    tokens: int = BATCH_TOKENS
    hold: bool = True

    def batches(self, count: int, length: int) -> list[tuple[int, int]]:
        """(start, stop) of the sequences, of `count`, that run together, and of which statistics are added at once."""
        step = max(1, min(self.tokens, max(_LEAST_TOKENS, count * length // SHARES)) // max(1, length))
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def shares(self, batches: int) -> list[range]:
        """The batches, by number, of which statistics are summed up apart before those sums are added up in order.

        That depends on nothing else, so whoever takes a share the sums are the same, bit for bit. Where statistics
        of a whole layer are gathered at once, memory is short, and they are summed up as one.
        """
        parts = max(1, min(batches, SHARES)) if self.hold else 1
        bounds = [batches * part // parts for part in range(parts + 1)]
        return [range(start, stop) for start, stop in pairwise(bounds)]


FASTEST = Flow()


def flow_of(
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    streams: int,
    budget: int,
    statistics: bool = False,
    squares: bool = True,
) -> Flow:
    """The fastest way that fits `budget` bytes, else that of least memory.

    Depends on nothing else, never on the moment. `statistics`: some are gathered of a layer that is then rewritten,
    `squares` (Hessians) among them.
    """
    flow = FASTEST
    for flow in _flows(sequences[1], statistics):
        if _memory(model, anatomy, sequences, streams, statistics, squares, flow) <= budget:
            break
    return flow


def _flows(length: int, statistics: bool) -> Iterator[Flow]:
    """The fastest first: a second forward takes longer than small batches, which end at one sequence."""
    for hold in (True, False) if statistics else (True,):
        tokens = BATCH_TOKENS
        yield Flow(tokens, hold)
        while tokens > length:
            tokens //= _SMALLER
            yield Flow(tokens, hold)


def may_read_ahead(
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    streams: int,
    budget: int,
    squares: bool = True,
    crew: Crew = ALONE,
) -> bool:
    """Whether the next layer of each stream may lie in memory beside all else, where statistics are gathered.

    Depends on the `budget` in bytes, and on the `crew` that walks, never on the moment.
    """
    flow = flow_of(model, anatomy, sequences, streams, budget, True, squares)
    memory = _memory(model, anatomy, sequences, streams, True, squares, flow, crew) + _ahead(model, anatomy, streams)
    return memory * crew.sharing <= budget


def _ahead(model: ModelSpec, anatomy: Anatomy, streams: int) -> int:
    """Memory of a layer that was read before its time."""
    return int(HEAP * streams * _largest(model, anatomy))


def _largest(model: ModelSpec, anatomy: Anatomy) -> int:
    """Bytes of the largest layer's linears, fp32."""
    return max((elements(layer) for layer in linears(model, anatomy)), default=0) * 4


def walk_cost(
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    budget: int,
    *,
    streams: int = 1,
    statistics: bool = False,
    squares: bool = True,
    rounds: int = 1,
    crew: Crew = ALONE,
) -> Cost:
    """One walk of `sequences` through every layer of `streams` models; of `statistics`, and `squares`, see `flow_of`.

    `rounds` is how often statistics are gathered of a layer, each time after what was rewritten by then. What it takes
    to gather them, and what is then done with them, is not counted here. One stream's linears may round their inputs
    where statistics are gathered. A `crew` shares the walk if there is memory for it to go as it would in one process:
    how it goes decides about bytes.
    """
    tokens = sequences[0] * sequences[1]
    flow = flow_of(model, anatomy, sequences, streams, budget, statistics, squares)
    forwards = (1 if flow.hold else 1 + rounds) if tokens else 0

    def memory(crew: Crew) -> int:
        gathered = bool(tokens) and statistics
        ahead = gathered and may_read_ahead(model, anatomy, sequences, streams, budget, squares, crew)
        each = _memory(model, anatomy, sequences, streams, statistics, squares, flow, crew)
        return each + (_ahead(model, anatomy, streams) if ahead else 0)

    shared = crew.count > 1 and tokens > 0 and memory(crew) * crew.sharing <= budget
    return Cost(
        effort=_forward(model, anatomy, sequences, statistics and streams == 1) * (forwards * streams)
        if tokens
        else Effort(),
        memory=memory(crew if shared else ALONE),
        forwards=forwards,
        disk=2 * streams * boundary_bytes(sequences, _hidden(model, anatomy)),  # one goes when the next is there
        processes=crew.sharing if shared else 1,
        shared=shared,
    )


def _memory(
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    streams: int,
    statistics: bool,
    squares: bool,
    flow: Flow,
    crew: Crew = ALONE,
) -> int:
    """Of each process of a `crew` that shares a walk; of its batches each has so many."""
    tokens = sequences[0] * sequences[1]
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    inputs = _inputs(model, anatomy)
    widest = _widest(inputs, hidden)
    largest = _largest(model, anatomy)
    ends = vocabulary * hidden * 4
    piece = min(tokens, max(flow.tokens, sequences[1])) * 4 * widest
    # One Hessian and its solve at a time; all of a layer's at once where statistics are gathered apart.
    together = max((sum(width**2 for width in layer) for layer in inputs), default=0)
    matrices = widest**2 + (widest**2 if flow.hold else together) if statistics and squares else 0
    if crew.count > 1 and statistics and squares:  # and one on its way from another process; of each expert abreast
        matrices = (matrices + widest**2) * (crew.count if any(map(_is_expert, anatomy.linears)) else 1)
    held = held_bytes(model, anatomy, sequences, streams) if flow.hold and statistics else 0
    parts = len(flow.shares(len(flow.batches(*sequences))))
    held = int(held * (_MAPPED if piece >= _LARGE else _HELD) * -(-parts // crew.count) / parts)
    return RUNTIME + max(int(HEAP * ends), largest * (1 + streams) + _PASSING * piece + 4 * matrices + held)


def score_effort(model: ModelSpec, anatomy: Anatomy, sequences: Extent, models: int) -> Effort:
    """What it takes to compare the logits of so many `models`, or to score those of one."""
    tokens = sequences[0] * sequences[1]
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    logits = Effort(flops=2 * tokens * vocabulary * hidden, elements=_SCORED * tokens * vocabulary)
    return (logits + Effort(elements=_READ * vocabulary * hidden)) * models


def score_bytes(model: ModelSpec, anatomy: Anatomy, models: int) -> int:
    """Memory in which the logits of so many `models` are compared: their heads, and a chunk's logits."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    return RUNTIME + 4 * vocabulary * (models * hidden + _COMPARED * SCORED_TOKENS)


def back_cost(model: ModelSpec, anatomy: Anatomy, sequences: Extent) -> Cost:
    """One forward to the end loss; and back from it, at each layer a forward and a vector-Jacobian product.

    What a layer's linears take and give stays in memory until a batch's gradient has come. All boundaries lie on disk,
    and two of the gradients.
    """
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    layers = linears(model, anatomy)
    touched = max((sum(sum(shape) for shape in layer) for layer in layers), default=0)
    batch = touched * min(sequences[0] * sequences[1], BATCH_TOKENS)
    effort = _forward(model, anatomy, sequences) * 3 + score_effort(model, anatomy, sequences, 2)
    memory = RUNTIME + int(HEAP * 4 * (batch + vocabulary * hidden))
    return Cost(effort, memory, 2, (len(layers) + 3) * boundary_bytes(sequences, hidden))


def _forward(model: ModelSpec, anatomy: Anatomy, sequences: Extent, rounded: bool = False) -> Effort:
    """Embedding and all layers once: their weights are read, hidden states lie on disk in between.

    `rounded`: linears round what they multiply, where that is faster.
    """
    (count, length), (vocabulary, hidden) = sequences, model.tensors[anatomy.embedding].shape
    tokens, layers = count * length, len(anatomy.layers)
    shapes = {name: model.tensors[f"{name}.weight"].shape for name in anatomy.linears}
    total = Effort(flops=4 * tokens * length * hidden * layers, calls=_FILLED * layers)  # attention
    multiplied = defaultdict[int, float](float)
    for name, (rows, columns) in shapes.items():
        multiplied[columns] += reached(model, name) * rows * columns
    for columns, weights in multiplied.items():
        product = Effort(flops=2 * tokens * weights)
        total += halved_effort(product, columns) if rounded else product
    touched = sum(reached(model, name) * sum(shape) for name, shape in shapes.items())
    states = tokens * hidden * (layers + 1)
    read = _READ * (elements(shapes.values()) + vocabulary * hidden)
    return total + Effort(elements=_TOUCHED * tokens * touched + _CARRIED * states + read)


def reached(model: ModelSpec, module: str) -> float:
    """The part of the tokens that come to a linear: a token goes through a few experts only."""
    config = model.config
    experts = next((config[key] for key in _EXPERTS if config.get(key)), 0)
    if not experts or not _is_expert(module):
        return 1.0
    return min(1.0, float(config.get("num_experts_per_tok", experts)) / experts)


def _is_expert(module: str) -> bool:
    return ".experts." in module


def linears(model: ModelSpec, anatomy: Anatomy) -> list[list[tuple[int, ...]]]:
    """The shapes of each layer's linears."""
    return [
        [model.tensors[f"{name}.weight"].shape for siblings in layer.siblings for name in siblings]
        for layer in anatomy.layers
    ]


def _inputs(model: ModelSpec, anatomy: Anatomy) -> list[list[int]]:
    """How wide the inputs are that each layer's siblings share."""
    return [
        [model.tensors[f"{siblings[0]}.weight"].shape[1] for siblings in layer.siblings] for layer in anatomy.layers
    ]


def _hidden(model: ModelSpec, anatomy: Anatomy) -> int:
    return model.tensors[anatomy.embedding].shape[1]


def _widest(inputs: list[list[int]], hidden: int) -> int:
    return max((width for layer in inputs for width in layer), default=hidden)


def elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(rows * columns for rows, columns in shapes)
