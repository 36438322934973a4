"""Two checkpoints tensor by tensor, whatever container each is in: two tensors are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from compress.formats.base import Checkpoint, TensorSpec
from compress.kernels.qtensor import QTensor
from compress.passes.artifact.inventory import bits_of, format_name
from compress.passes.model.weights import decoded

_CHUNK = 1 << 22


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Held(_Figures):
    """A tensor as one side holds it; `bits` are per weight, scales included."""

    shape: tuple[int, ...]
    format: str
    bits: float


class Distance(_Figures):
    """How far the values that two tensors decode to are apart: max and mean |a − b|, and ‖a − b‖ / ‖a‖."""

    largest: float
    mean: float
    relative: float


class TensorDifference(_Figures):
    """A tensor that the two sides do not hold alike; None for a side that has none of that name.

    `values` are None where shapes differ. Of a tensor in the same number format on both sides `codes` says how many
    codes differ, and `params` which of the parameters (scales, zero points) do.
    """

    name: str
    a: Held | None
    b: Held | None
    values: Distance | None = None
    codes: int | None = None
    params: tuple[str, ...] = ()


def differences(a: Checkpoint, b: Checkpoint, tell: Callable[[str], None]) -> Iterator[TensorDifference]:
    """The tensors that `a` and `b` do not hold alike, in the order of `a`. `tell` gets each tensor's name.

    Raises InputError for a file that cannot be read.
    """
    for name in dict.fromkeys([*a.spec.tensors, *b.spec.tensors]):
        one, other = a.spec.tensors.get(name), b.spec.tensors.get(name)
        if one is None or other is None or one.shape != other.shape:
            yield TensorDifference(name=name, a=_held(one), b=_held(other))
        elif found := _difference(name, one, other, a.read(name), b.read(name)):
            yield found
        tell(name)


def _held(spec: TensorSpec | None) -> Held | None:
    return None if spec is None else Held(shape=spec.shape, format=format_name(spec), bits=bits_of(spec))


def _difference(
    name: str, one: TensorSpec, other: TensorSpec, a: Tensor | QTensor, b: Tensor | QTensor
) -> TensorDifference | None:
    codes, params = None, tuple[str, ...]()
    if isinstance(a, QTensor) and isinstance(b, QTensor) and a.format == b.format:
        codes = int((a.codes != b.codes).sum())
        params = tuple(part for part in sorted(a.params) if not torch.equal(a.params[part], b.params[part]))
    values = _distance(decoded(a), decoded(b))
    if _held(one) == _held(other) and not (values.largest or codes or params):
        return None
    return TensorDifference(name=name, a=_held(one), b=_held(other), values=values, codes=codes, params=params)


def _distance(a: Tensor, b: Tensor) -> Distance:
    """Piece by piece: no third matrix of that size is made."""
    largest, total, squares, scale = 0.0, 0.0, 0.0, 0.0
    for one, other in zip(a.flatten().split(_CHUNK), b.flatten().split(_CHUNK)):
        apart = (one - other).abs_()
        largest = max(largest, float(apart.max()))
        total += float(apart.sum(dtype=torch.float64))
        squares += float(apart.square_().sum(dtype=torch.float64))
        scale += float(one.square().sum(dtype=torch.float64))
    relative = math.sqrt(squares / scale) if scale else math.sqrt(squares)
    return Distance(largest=largest, mean=total / max(1, a.numel()), relative=relative)
