"""A model's tensors as a forward wants them, and what the forward must round as an engine will."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.formats.base import Checkpoint
from compress.formats.errors import InputError
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat, Grid, round_input
from compress.kernels.qtensor import QTensor


@dataclass(frozen=True)
class Weights:
    """`weights(name)` is a tensor by its name, dense and in the precision of the computation.

    `activations` and `kv_cache` are those of the model's ModelSpec.
    """

    read: Callable[[str], Tensor]
    activations: Mapping[str, ActivationFormat] = field(default_factory=dict)
    kv_cache: CacheFormat | None = None

    def __call__(self, name: str) -> Tensor:
        return self.read(name)

    def scale(self, name: str) -> Tensor:
        """A static scale [1] or [heads] fp32. Raises InputError if one is not a positive number."""
        scale = self.read(name).float().flatten()
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise InputError(f"{name} holds {float(scale.min()):g}; scales are positive and finite")
        return scale


def dense(checkpoint: Checkpoint) -> Weights:
    """The checkpoint's tensors as the computation wants them: decoded, fp32; and what it rounds, as of now."""

    return Weights(lambda name: decoded(checkpoint.read(name)), checkpoint.spec.activations, checkpoint.spec.kv_cache)


def decoded(tensor: Tensor | QTensor) -> Tensor:
    """A tensor's values, fp32."""
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.to(torch.float32)


def cached_as(grid: Grid | None, weights: Weights) -> Weights:
    """`weights` run with a cache on `grid`, scales per token and head; unchanged if it is None."""
    return weights if grid is None else replace(weights, kv_cache=CacheFormat(grid, "token"))


def round_inputs(linears: Mapping[str, nn.Module], weights: Weights) -> None:
    """Make each of `linears` (by the name in the checkpoint) round its input as `weights` say."""
    for name, linear in linears.items():
        if number_format := weights.activations.get(name):
            scale = None if number_format.dynamic else weights.scale(f"{name}.input_scale")
            _hook(linear, number_format, scale)


def _hook(linear: nn.Module, number_format: ActivationFormat, scale: Tensor | None) -> None:
    def round_first(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, there = args[0], None if scale is None else scale.to(args[0].device)
        rounded = round_input(x.detach(), number_format, there)
        # Straight through (arXiv 1308.3432): the difference is 0, and its gradient that of x.
        return (rounded + (x - x.detach()) if x.requires_grad else rounded, *args[1:])

    linear.register_forward_pre_hook(round_first)
