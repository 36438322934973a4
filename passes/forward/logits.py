"""The logits of a few tokens through several models side by side, layer by layer, all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from compress.passes.forward.heap import return_freed_memory
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import Weights

if TYPE_CHECKING:
    from compress.passes.model.skeleton import Skeleton


def logits_of(skeleton: Skeleton, sequences: Sequences, models: Sequence[Weights]) -> list[Tensor]:
    """Each model's logits [tokens, vocabulary] fp32 for the one sequence of `sequences`, which has no padding.

    One layer of one model is in memory at a time. For long or many sequences there is `Walk`.
    """
    hidden = [skeleton.front(weights)(sequences) for weights in models]
    for index in range(len(skeleton.anatomy.layers)):
        hidden = [_through(skeleton, index, weights, x, sequences) for weights, x in zip(models, hidden)]
        return_freed_memory()
    return [_projected(skeleton, weights, x) for weights, x in zip(models, hidden)]


def _through(skeleton: Skeleton, index: int, weights: Weights, hidden: Tensor, sequences: Sequences) -> Tensor:
    call = skeleton.call(index, sequences, skeleton.watch(index, weights))
    return skeleton.run(skeleton.layer(index, weights), hidden, call)


def _projected(skeleton: Skeleton, weights: Weights, hidden: Tensor) -> Tensor:
    project, _ = skeleton.back(weights)
    return project(hidden)[0].float().cpu()
