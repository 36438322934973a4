"""Which op before siblings can take over a scale of their inputs: found and proved by running the layer.

x/s into W·diag(s) gives what x into W gives. If the op before makes x/s by itself, once its parameters are
divided by s, the scale costs nothing (AWQ, arXiv 2306.00978, section 3.2; SmoothQuant, arXiv 2211.10438).
No op is known by name: the norms and linears that ran before are tried on random inputs, the nearest first.

    norm → q, k, v; gate, up     weight/s, bias/s; where the weight is stored less 1: (1 + w)/s − 1
    up → down, v → o             rows/s, bias/s; an output that feeds several inputs ties their scales (GQA)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

UNKNOWN = -1
_TOLERANCE = 1e-3
_NEAREST = 8
"""Ops that are tried for siblings. An expert's own lie near; with all others', trials grow as experts squared."""


@dataclass(frozen=True)
class Found:
    """An op that can take the scale of siblings: its name in the layer, and how its outputs become their input.

    The op has `outputs` outputs, each with parameters of its own; `norm` says that these are single numbers.
    Input c of the siblings comes from the op's output `source[c]` ([in] int64), or is UNKNOWN: it was always zero.
    A parameter p of the op with the offset o (`offsets`, by p's name) becomes (p + o)/s − o.
    """

    op: str
    offsets: Mapping[str, float]
    outputs: int
    norm: bool
    source: Tensor


@dataclass
class _Seen:
    """What one forward showed.

    `inputs`: what siblings receive, by the first of them; `before`: the ops that had ended when it began, in order.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    output: Tensor | None = None


def find_folds(
    layer: nn.Module, siblings: Sequence[Sequence[str]], forward: Callable[[], Tensor]
) -> dict[str, Found | None]:
    """For all siblings, by the first of them, the op that can take its scale; None where nothing was proved.

    `forward` runs the filled `layer` on fixed random hidden states; its parameters are changed on the way and
    restored. `siblings` name all linears that share an input, within the layer.
    """
    search = _Search(layer, {names[0] for names in siblings}, forward)
    return {names[0]: search.find(names) for names in siblings}


class _Search:
    def __init__(self, layer: nn.Module, firsts: set[str], forward: Callable[[], Tensor]) -> None:
        self._layer, self._firsts, self._forward = layer, firsts, forward
        self._base = self._run()
        self._random = torch.Generator().manual_seed(0)

    def find(self, siblings: Sequence[str]) -> Found | None:
        if siblings[0] not in self._base.inputs or not self._base.inputs[siblings[0]].numel():
            return None  # an expert that no token was routed to
        width = self._base.inputs[siblings[0]].shape[-1]
        for op in self._base.before[siblings[0]][: -_NEAREST - 1 : -1]:
            for offsets, rows in _ways(self._layer.get_submodule(op), width):
                found = self._try(op, offsets, rows, siblings)
                if found is not None:
                    return found
        return None

    def _run(self) -> _Seen:
        with _watched(self._layer, self._firsts) as seen:
            seen.output = self._forward()
        return seen

    def _try(self, op: str, offsets: Mapping[str, float], rows: range, siblings: Sequence[str]) -> Found | None:
        """Learn which output feeds which input with all outputs scaled differently, then prove it with others."""
        x = self._base.inputs[siblings[0]]
        steps = 2.0 ** torch.linspace(-1, 1, len(rows))
        with self._divided(op, offsets, rows, steps):
            scaled = self._run().inputs[siblings[0]]
        if scaled.shape != x.shape:  # it changes which tokens an expert gets
            return None
        nearest = _nearest(x, scaled, len(rows))
        # Powers of two: nothing is rounded, so what remains is a wrong fold, not float error.
        powers = 2.0 ** torch.randint(-2, 3, (len(rows),), generator=self._random)
        known = nearest != UNKNOWN
        scale = torch.where(known, powers[nearest], 1.0).to(x.device)
        with self._divided(op, offsets, rows, powers):
            moved = self._run()
            if not _same(moved.inputs[siblings[0]] * scale, x):
                return None
            with self._multiplied(siblings, scale):
                restored = self._run()
        # Without the compensation the layer's output must change: else the proof would prove nothing.
        if not self._gap(restored) < _TOLERANCE * self._gap(moved):
            return None
        weight = self._layer.get_submodule(op).get_parameter(next(iter(offsets)))
        return Found(op, offsets, len(weight), weight.ndim == 1, torch.where(known, nearest + rows.start, UNKNOWN))

    def _gap(self, seen: _Seen) -> float:
        assert seen.output is not None and self._base.output is not None
        return float((seen.output - self._base.output).norm())

    @contextmanager
    def _divided(self, op: str, offsets: Mapping[str, float], rows: range, factors: Tensor) -> Iterator[None]:
        module = self._layer.get_submodule(op)
        part = slice(rows.start, rows.stop)
        with _restored([module.get_parameter(name) for name in offsets]):
            for name, offset in offsets.items():
                values = module.get_parameter(name)[part]
                values.copy_((values + offset) / spread(factors.to(values), values) - offset)
            yield

    @contextmanager
    def _multiplied(self, siblings: Sequence[str], scale: Tensor) -> Iterator[None]:
        weights = [self._layer.get_submodule(name).get_parameter("weight") for name in siblings]
        with _restored(weights):
            for weight in weights:
                weight.mul_(scale)
            yield


def spread(factors: Tensor, values: Tensor) -> Tensor:
    """factors [n] so that they meet the first dimension of `values` [n, …]."""
    return factors.view(-1, *[1] * (values.ndim - 1))


@contextmanager
def _watched(layer: nn.Module, firsts: set[str]) -> Iterator[_Seen]:
    seen = _Seen()

    def begins(name: str, x: Tensor) -> None:
        if name not in seen.inputs:
            seen.inputs[name], seen.before[name] = x.detach().clone(), list(seen.ended)

    handles = []
    for name, module in layer.named_modules():
        if name in firsts:
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: begins(name, args[0])))
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(lambda *_, name=name: seen.ended.append(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restored(parameters: Sequence[Tensor]) -> Iterator[None]:
    kept = [parameter.clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, values in zip(parameters, kept):
            parameter.copy_(values)


def _ways(module: nn.Module, width: int) -> Iterator[tuple[dict[str, float], range]]:
    """How a module's outputs could be scaled by its parameters: their offsets, and which of its rows."""
    parameters = dict(module.named_parameters(recurse=False))
    counts = {len(parameter) if parameter.ndim else 0 for parameter in parameters.values()}
    if isinstance(module, nn.Linear):
        for rows in _row_ranges(module.out_features, width):
            yield dict.fromkeys(parameters, 0.0), rows
    elif counts == {width} and all(parameter.ndim == 1 for parameter in parameters.values()):
        first = next(iter(parameters))
        for offset in (0.0, 1.0):
            yield {name: offset if name == first else 0.0 for name in parameters}, range(width)


def _row_ranges(rows: int, width: int) -> Iterator[range]:
    """The rows of a linear that may feed `width` inputs: all, or the last of several fused in one (up, v)."""
    counts = [rows] if rows <= width else [width, (rows - width) // 2]
    return (range(rows - count, rows) for count in counts if count > 1 and width % count == 0)


def _nearest(before: Tensor, after: Tensor, count: int) -> Tensor:
    """Of `count` factors 2^−1 … 2^1, evenly spaced in the exponent, which each channel was divided by: [in] int64."""
    before, after = (x.flatten(0, -2).double() for x in (before, after))
    at = before.abs().argmax(0, keepdim=True)
    ratio = (before.gather(0, at) / after.gather(0, at)).squeeze(0)
    found = ((ratio.log2() + 1) / 2 * (count - 1)).nan_to_num(0, 0, 0).round().clamp(0, count - 1).long()
    return torch.where(before.abs().amax(0) > 0, found, UNKNOWN).cpu()


def _same(found: Tensor, expected: Tensor) -> bool:
    """Whether all channels are equal, each within its own float error."""
    if found.shape != expected.shape:
        return False
    difference, size = (x.flatten(0, -2).abs().amax(0) for x in (found - expected, expected))
    return bool((difference <= _TOLERANCE * size).all())
