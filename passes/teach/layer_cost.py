"""What it takes to let one decoder layer after the other learn, counted from shapes."""

from __future__ import annotations

from dataclasses import replace

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.forward.cost.base import HEAP, Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.cost.shapes import Extent, linears
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.cost import quantized
from compress.passes.train.options import TrainOptions

_HELD = 0.25
"""Of the memory that is allowed: hidden states that take less are kept in it while a layer learns."""
_BACKWARD = 2
"""Forwards that a backward takes: the gradient of the inputs and that of the weights."""

_VALUES = 12
"""Bytes for each weight of a layer that learns, beside what it holds: its value, the gradient of that, the best."""


def may_keep(sequences: Extent, width: int, budget: int) -> bool:
    """Whether the hidden states before and behind a layer stay in memory. Depends on the `budget` in bytes alone."""
    return _states(sequences, width) <= _HELD * budget


def layerwise_cost(options: TrainOptions, model: ModelSpec, anatomy: Anatomy, sequences: Extent, budget: int) -> Cost:
    """`options.steps` for every layer, what is held out measured between them, and both models carried along."""
    walk = Passage(model, anatomy, sequences, streams=2).cost(budget)
    if not sequences[0]:
        return walk
    micro = options.at_once(sequences[1])
    effort = _effort(options, model, anatomy, sequences[1], micro, budget)
    more = _memory(options, model, anatomy, sequences, micro, budget)
    return replace(walk, effort=walk.effort + effort, memory=walk.memory + int(HEAP * more))


def _effort(options: TrainOptions, model: ModelSpec, anatomy: Anatomy, length: int, micro: int, budget: int) -> Effort:
    """What learning takes, beside the walk."""
    looks = 2 + (options.steps - 1) // options.interval
    run = (1 + _BACKWARD) * options.steps * options.batch + looks * options.looked_at
    forward, both, step, _ = quantized(options)
    each = (
        options.steps * (_parts(options.batch, micro) * both + step)
        + looks * _parts(options.looked_at, micro) * forward
    )
    weights = sum(rows * columns for shapes in linears(model, anatomy) for rows, columns in shapes)
    return Passage(model, anatomy, (run, length)).cost(budget).effort + Effort(elements=each * weights)


def _memory(
    options: TrainOptions, model: ModelSpec, anatomy: Anatomy, sequences: Extent, micro: int, budget: int
) -> int:
    """What learning holds, beside the walk, in bytes: weights, what a backward needs, hidden states."""
    copies = quantized(options).held + _VALUES
    tokens, width = min(micro, options.batch) * sequences[1], model.tensors[anatomy.embedding].shape[1]
    layers = linears(model, anatomy)
    weights = max((sum(rows * columns for rows, columns in shapes) for shapes in layers), default=0)
    passed = max((sum(rows + columns for rows, columns in shapes) for shapes in layers), default=0)
    return weights * copies + 4 * tokens * passed + may_keep(sequences, width, budget) * _states(sequences, width)


def _parts(count: int, micro: int) -> int:
    """Forwards that `count` sequences take."""
    return -(-count // micro)


def _states(sequences: Extent, width: int) -> int:
    """Bytes of two boundaries."""
    return 2 * sequences[0] * sequences[1] * width * 4
