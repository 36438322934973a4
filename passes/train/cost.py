"""What a training takes, counted from shapes: operations, and the memory of a whole model that learns."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.share import ALONE, Crew
from compress.passes.forward.cost.base import RUNTIME, Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.cost.shapes import Extent, elements, linears
from compress.passes.loss.chunked import CHUNK
from compress.passes.model.anatomy import Anatomy
from compress.passes.train.options import Precision, TrainOptions
from compress.passes.train.trainable import learning


class Weights(NamedTuple):
    """What a weight takes: elements that operators touch, and bytes that it holds between steps."""

    forward: int
    both: int
    """With the backward."""
    step: int
    held: int
    """Itself where it is kept; its gradient and two moments where it learns."""


LATENT, SCALED = Weights(12, 70, 10, 16), Weights(4, 14, 0, 1)
"""Quantized, and its code learns; or its scale. Measured on one thread, integers in groups of 64."""
DENSE, FROZEN = Weights(2, 6, 10, 16), Weights(2, 2, 0, 4)
"""Dense; what it touches is its copy in bf16 and the gradient of that."""

# Elements that operators touch, for each there is: counted from the code.
_TOUCHED = 6
"""Of inputs and outputs of linears, in one forward; a backward does twice as much."""
_LOSS = 5
"""Of logits, likewise."""
_LOGITS = 6
"""Tensors of a chunk's logits that there are at once."""
_KEPT = {"bf16": 3.0, "fp32": 4.4}
"""Bytes for each input and output of a linear: what a layer keeps of a token for its backward (llama, measured)."""
_SAVED = 32
"""Bytes on disk for each number that moves: two states (it and its moments), two of what is best."""
_LEFT = 4
"""Bytes on disk for each of them when all is done."""
_GATHERED = 4
"""Of what is whole for a while where parameters are sharded: gathered, copied, its gradient, that copied."""
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
    crew: Crew = ALONE,
) -> Cost:
    """A training of the whole model on `sequences`, some of them held out, by `crew`.

    `teacher`: another model of its size runs beside it; `asked`: it has answered all `sequences` before.
    """
    count, length = sequences
    micro = min(options.at_once(length), options.batch)
    looks, looked_at = 1 + math.ceil(options.steps / options.interval), min(options.looked_at, count)
    learned, measured = options.steps * options.batch, looks * looked_at
    passes = learned * (3 + options.checkpointing + teacher) + measured * (1 + teacher)
    effort = _forward(model, anatomy, length, options.precision) * passes
    backwards, forwards = options.steps * -(-options.batch // micro), looks * -(-looked_at // micro)
    weights = _weights(model, anatomy, options)
    effort += Effort(
        elements=sum(n * (w.both * backwards + w.forward * forwards + w.step * options.steps) for n, w in weights)
    )
    ask = Passage(model, anatomy, sequences if asked else (0, 0)).cost(budget)
    if options.precision == "bf16":  # the teacher's, too
        ask = replace(ask, effort=replace(ask.effort, flops=0.0, half=ask.effort.flops))
    memory, sharded = _memory(model, anatomy, options, length, budget, teacher, crew)
    moved = sum(n for n, w in weights if w.step)
    disk, kept = _SAVED * moved, _LEFT * moved
    cost = Cost(effort, memory, 0, disk, kept, crew.sharing, shared=crew.count > 1, sharded=sharded)
    return cost.after(replace(ask, forwards=0, disk=0))


def _memory(
    model: ModelSpec, anatomy: Anatomy, options: TrainOptions, length: int, budget: int, teacher: bool, crew: Crew
) -> tuple[int, bool]:
    """Bytes that each process takes, and whether these are so many because parameters are sharded."""
    weights = _weights(model, anatomy, options)
    codes = sum(n * w.held for n, w in weights if w == SCALED)
    parameters = sum(n * w.held for n, w in weights if w != SCALED) + 4 * model.parameters * teacher
    tokens = min(options.at_once(length), math.ceil(options.batch / crew.count)) * length
    working = tokens * _kept(model, anatomy, options) + _copies(model, anatomy, options) + _head(model, anatomy)
    part = parameters // crew.count + 4 * _GATHERED * _largest(model, anatomy)
    whole, shared = (RUNTIME + int(_HEAP * (codes + held + working)) for held in (parameters, part))
    wanted = whole * crew.sharing > budget if options.shard == "auto" else options.shard
    return (shared, True) if wanted and crew.count > 1 else (whole, False)


def _weights(model: ModelSpec, anatomy: Anatomy, options: TrainOptions) -> list[tuple[int, Weights]]:
    """How many there are of each sort, tensor by tensor."""
    learns = learning(model, sorted(model.tensors), options, anatomy)
    found = [
        (spec.size, quantized(options) if spec.format is not None else DENSE)
        for name, spec in model.tensors.items()
        if name in learns and options.train != "lora"
    ]
    frozen = [spec.size for name, spec in model.tensors.items() if name not in learns or options.train == "lora"]
    adapted = [sum(model.tensors[name].shape) for name in learns if options.train == "lora"]
    return [*found, (sum(frozen), FROZEN), (options.lora.rank * sum(adapted), DENSE)]


def quantized(options: TrainOptions) -> Weights:
    """What a quantized weight takes that learns."""
    return SCALED if options.train in ("scales", "norms") else LATENT


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
    layers = [_KEPT[options.precision] * sum(sum(shape) for shape in layer) for layer in linears(model, anatomy)]
    return int(max(layers, default=0) + 4 * hidden * len(layers) if options.checkpointing else sum(layers))


def _copies(model: ModelSpec, anatomy: Anatomy, options: TrainOptions) -> int:
    """Bytes of the values that linears computed with, kept for the backward where they are no parameters."""
    layers = [elements(layer) for layer in linears(model, anatomy)]
    return (2 if options.precision == "bf16" else 4) * (
        max(layers, default=0) if options.checkpointing else sum(layers)
    )


def _head(model: ModelSpec, anatomy: Anatomy) -> int:
    """Bytes of a chunk's logits, and of the gradient of the head."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    return 4 * vocabulary * (_LOGITS * CHUNK + hidden)


def _largest(model: ModelSpec, anatomy: Anatomy) -> int:
    """Elements of the largest part of the model that is whole at once: its ends, and a layer beside them."""
    vocabulary, hidden = model.tensors[anatomy.embedding].shape
    ends = vocabulary * hidden * (1 if anatomy.tied else 2)
    return ends + max((elements(layer) for layer in linears(model, anatomy)), default=0)
