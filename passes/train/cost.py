"""What a training takes, counted from shapes: operations, and the memory of a whole model that learns."""

from __future__ import annotations

import math
from dataclasses import replace

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.forward.cost import BATCH_TOKENS, RUNTIME, Cost, Extent, elements, linears, walk_cost
from compress.passes.loss.chunked import CHUNK
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.options import Precision, TrainOptions
from compress.passes.train.trainable import learning

# Elements that operators touch, for each there is: counted from the code, not yet compared with a run.
_TOUCHED = 6
"""Of inputs and outputs of linears, in one forward; a backward does twice as much."""
_LOSS = 5
"""Of logits, likewise."""
_ROUNDED = 12
"""Of weights that are computed from codes, likewise."""
_MOVED = 5
"""Of what learns, in a step of the optimizer."""
_LOGITS = 6
"""Tensors of a chunk's logits that there are at once."""
_KEPT = 3
"""Of inputs and outputs of linears: what a layer keeps of a token for its backward."""
_SAVED = 32
"""Bytes on disk for each number that moves: two states (it and its moments), two of what is best."""
_HEAP = 1.15
"""What the heap occupies for a byte that is in use."""


def training_cost(
    model: ModelSpec,
    anatomy: Anatomy,
    sequences: Extent,
    options: TrainOptions,
    budget: int,
    teacher: bool,
    asked: bool,
) -> Cost:
    """A training of the whole model on `sequences`, some of them held out.

    `teacher`: another model of its size runs beside it; `asked`: it has answered all `sequences` before.
    """
    count, length = sequences
    learned = options.steps * options.batch
    measured = (1 + math.ceil(options.steps / options.interval)) * min(options.looked_at, count)
    micro = min(options.micro_batch or max(1, BATCH_TOKENS // length), options.batch)
    rounded, moved = _learning(model, anatomy, options)
    passes = learned * (3 + options.checkpointing + teacher) + measured * (1 + teacher)
    effort = _forward(model, anatomy, length, options.precision) * passes
    effort += Effort(elements=3 * _ROUNDED * rounded * math.ceil(learned / micro) + _MOVED * moved * options.steps)
    ask = walk_cost(model, anatomy, sequences if asked else (0, 0), budget)
    if options.precision == "bf16":  # the teacher's, too
        ask = replace(ask, effort=replace(ask.effort, flops=0.0, half=ask.effort.flops))
    held = 4 * model.parameters * (1 + teacher) + 16 * moved + rounded * (1 + _width(options))
    memory = held + micro * length * _kept(model, anatomy, options) + _head(model, anatomy)
    return Cost(effort + ask.effort, max(ask.memory, RUNTIME + int(_HEAP * memory)), 0, _SAVED * moved)


def _learning(model: ModelSpec, anatomy: Anatomy, options: TrainOptions) -> tuple[int, int]:
    """How many weights are computed from codes, and how many numbers the optimizer moves."""
    named = [model.tensors[name] for name in learning(model, sorted(model.tensors), options, anatomy)]
    rounded = sum(spec.size for spec in named if spec.format is not None)
    if options.train == "lora":
        return rounded, sum(options.lora.rank * sum(spec.shape) for spec in named)
    return rounded, sum(spec.size for spec in named if spec.format is None or options.train != "scales")


def _forward(model: ModelSpec, anatomy: Anatomy, length: int, precision: Precision) -> Effort:
    """One sequence through all layers and the head."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    layers = linears(model, anatomy)
    weights = elements(shape for layer in layers for shape in layer) + vocabulary * hidden
    touched = _TOUCHED * sum(sum(shape) for layer in layers for shape in layer) + _LOSS * vocabulary
    products = 2 * length * weights + 4 * length**2 * hidden * len(layers)
    return Effort(**{"half" if precision == "bf16" else "flops": products}, elements=length * touched)


def _kept(model: ModelSpec, anatomy: Anatomy, options: TrainOptions) -> int:
    """Bytes that a token takes until its backward: what every layer keeps, or one layer and the inputs of all."""
    _, hidden = model.tensors[anatomy.embedding].shape
    layers = [_KEPT * sum(sum(shape) for shape in layer) for layer in linears(model, anatomy)]
    whole = max(layers) + 2 * hidden * len(layers) if options.checkpointing else sum(layers)
    return _width(options) * whole


def _head(model: ModelSpec, anatomy: Anatomy) -> int:
    """Bytes of a chunk's logits, and of the gradient of the head."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    return 4 * vocabulary * (_LOGITS * CHUNK + hidden)


def _width(options: TrainOptions) -> int:
    """Bytes of a number in the forward."""
    return 2 if options.precision == "bf16" else 4
