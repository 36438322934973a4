"""Linears of a narrower layer that keep their shapes: corrected to the untouched model's outputs, as others are.

What is lost in one layer moves the inputs of all that come after; each linear makes up for what it can tell from them
(kernels/solve/correct.py). Attention's output does so for the residual stream, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.solve.correct import correct_effort, corrected_target
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian
from compress.passes.model.anatomy import LayerAnatomy
from compress.passes.narrow.walk import Narrower, Part

_KINDS = frozenset({Hessian, Drift})


def corrections(layer: LayerAnatomy, narrowed: Collection[str]) -> Iterator[Part]:
    """A part for all siblings of `layer`, but for linears that are `narrowed` themselves, and for experts."""
    for names in layer.siblings if not layer.routers else ():
        if tensors := tuple(f"{name}.weight" for name in names if name not in narrowed):
            yield Part(names[0], tensors, _corrected, _KINDS, residual=len(names) == 1)


def corrections_effort(model: ModelSpec, layer: LayerAnatomy, narrowed: Collection[str], tokens: int) -> Effort:
    """What the corrections of one layer take."""
    effort = Effort()
    for part in corrections(layer, narrowed):
        shapes = [model.tensors[name].shape for name in part.tensors]
        rows = shapes[0][0] if part.residual else None
        effort = sum((kind.effort(tokens, shapes[0][1], rows) for kind in _KINDS), effort)
        effort = sum(map(correct_effort, shapes), effort)
    return effort


def _corrected(weights: Mapping[str, Tensor], stats: LinearStats) -> Narrower:
    drift, hessian = stats[Drift], stats[Hessian].matrix
    tensors = {name: corrected_target(weight, drift.matrix, hessian, drift.gap) for name, weight in weights.items()}
    return Narrower(tensors, lambda stored: stored, {})
