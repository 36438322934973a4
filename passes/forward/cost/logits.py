"""What it takes to compare logits, and to come to the end loss and back."""

from __future__ import annotations

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.forward.cost.base import HEAP, RUNTIME, Cost, boundary_bytes
from compress.passes.forward.cost.flow import BATCH_TOKENS
from compress.passes.forward.cost.passage import READ, Passage
from compress.passes.forward.cost.shapes import Extent, ends, linears
from compress.passes.model.anatomy import Anatomy

SCORED_TOKENS = 256
"""Tokens whose logits are there at once."""
_COMPARED = 7
"""Tensors as large as these that there are at once."""
_SCORED = 26
"""Elements that operators touch, for each logit: their logarithms, what is compared. Measured on SmolLM2."""


def score_effort(model: ModelSpec, anatomy: Anatomy, sequences: Extent, models: int) -> Effort:
    """What it takes to compare the logits of so many `models`, or to score those of one."""
    tokens, (vocabulary, hidden) = sequences[0] * sequences[1], ends(model, anatomy)
    logits = Effort(flops=2 * tokens * vocabulary * hidden, elements=_SCORED * tokens * vocabulary)
    return (logits + Effort(elements=READ * vocabulary * hidden)) * models


def score_bytes(model: ModelSpec, anatomy: Anatomy, models: int) -> int:
    """Memory in which the logits of so many `models` are compared: their heads, and a chunk's logits."""
    vocabulary, hidden = ends(model, anatomy)
    return RUNTIME + 4 * vocabulary * (models * hidden + _COMPARED * SCORED_TOKENS)


def back_cost(model: ModelSpec, anatomy: Anatomy, sequences: Extent) -> Cost:
    """One forward to the end loss; and back from it, at each layer a forward and a vector-Jacobian product.

    What a layer's linears take and give stays in memory until a batch's gradient has come. All boundaries lie on disk,
    and two of the gradients.
    """
    vocabulary, hidden = ends(model, anatomy)
    layers = linears(model, anatomy)
    touched = max((sum(sum(shape) for shape in layer) for layer in layers), default=0)
    batch = touched * min(sequences[0] * sequences[1], BATCH_TOKENS)
    effort = Passage(model, anatomy, sequences).effort * 3 + score_effort(model, anatomy, sequences, 2)
    memory = RUNTIME + int(HEAP * 4 * (batch + vocabulary * hidden))
    return Cost(effort, memory, 2, (len(layers) + 3) * boundary_bytes(sequences, hidden))
