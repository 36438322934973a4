"""The codes that a weight begins to learn from, where no pass has solved for any: the nearest, on searched scales."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from compress.kernels.qtensor import QTensor
from compress.passes.core.run import Run
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.weights import decoded
from compress.passes.options.any_format import FormatOptions
from compress.passes.options.rounding import RoundingOptions


class Nearest(RoundingOptions, FormatOptions):
    """Any number format, scales of the least squared error."""


def round_to_nearest(run: Run, options: FormatOptions, modules: Collection[str]) -> dict[str, QTensor]:
    """The weights of `modules` in the number formats of `options`, by the name of the tensor."""
    nearest = Nearest.model_validate({name: getattr(options, name) for name in FormatOptions.model_fields})
    nothing = LinearStats(frozenset(), 0, run.device)
    rounded = {}
    for siblings in _siblings(run.skeleton.anatomy):
        names = [name for name in siblings if name in modules]
        weights = {name: decoded(run.model.read(f"{name}.weight")).to(run.device) for name in names}
        for name, change in nearest.siblings(weights, nothing).items():
            assert isinstance(change.weight, QTensor)
            rounded[f"{name}.weight"] = change.weight
    return rounded


def _siblings(anatomy: Anatomy) -> Iterator[tuple[str, ...]]:
    """Linears that share an input, as some formats want them to share a scale; each end of the model alone."""
    for layer in anatomy.layers:
        yield from layer.siblings
    yield from ((name,) for name in anatomy.ends)
