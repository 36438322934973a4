"""Quantized weights that learn within a model: its linears and embeddings go on, and compute their weight anew.

Whatever the number format and the size of the weight, a step of the optimizer means the same: latent weights count
in steps of the grid as it was at the start, and scales are learned as s = s₀·(1 + δ), minima as m = m₀ + s₀·δ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.kernels.qtensor import NumberFormat, Params, QTensor, quantize
from compress.kernels.solve.fake_quant import clipped, dequantize_trainable, fake_quantize, to_scales

_MARGIN = 0.04
"""Of half a cell: as near to the border of its cell may a latent weight begin."""
_SOLVED = 0.5
"""As far toward its border, where the original lies behind it and a solver has chosen the cell.

Nearer, all of these would go back together at the first noise: with 0.96, SmolLM2's loss at 3 bits went from 0.15 to
0.4 between two steps.
"""
_AWAKE = 1e-3
"""Of a step of the grid: where a kept weight begins whose code is 0, for what is exactly 0 was pruned and stays so."""
_BISECTIONS = 16
_CHUNK = 1 << 20


class TrainedWeight(nn.Module, ABC):
    """A weight [out, in] whose values are those of a QTensor at every step. Parameters: `reals.<name>`, the δ."""

    def __init__(self, quantized: QTensor) -> None:
        super().__init__()
        self.number_format: NumberFormat = quantized.format
        self._names = tuple(quantized.params)
        for name, value in quantized.params.items():
            self.register_buffer(f"param_{name}", value)
        start = quantized.format.reals(quantized.params)
        self.reals = nn.ParameterDict({name: torch.zeros_like(real) for name, real in start.items()})

    @abstractmethod
    def forward(self) -> Tensor:
        """The values [out, in] fp32, differentiable in the parameters."""

    @abstractmethod
    def tensor(self) -> QTensor:
        """What is to be written; its values are those of `forward`, bit for bit."""

    @property
    def _params(self) -> Params:
        return {name: self.get_buffer(f"param_{name}") for name in self._names}

    def _moved(self) -> dict[str, Tensor]:
        start = self.number_format.reals(self._params)
        return {name: real + start["scale"] * self.reals[name] for name, real in start.items()}

    @torch.no_grad()
    def _stored(self) -> Params:
        return self.number_format.stored(self._params, self._moved())


class ScaledWeight(TrainedWeight):
    """Codes stay as they are; scales (and minima) learn."""

    def __init__(self, quantized: QTensor) -> None:
        super().__init__(quantized)
        self.register_buffer("codes", quantized.codes)

    def forward(self) -> Tensor:
        return dequantize_trainable(self.get_buffer("codes"), self.number_format, self._params, self._moved())

    def tensor(self) -> QTensor:
        return QTensor(self.number_format, self.get_buffer("codes"), self._stored())


class LatentWeight(TrainedWeight):
    """Codes learn too: they are those nearest to `latent` [out, in] fp32, counted in steps of the grid."""

    def __init__(self, quantized: QTensor, original: Tensor | None = None, kept: Tensor | None = None) -> None:
        """`original` [out, in] fp32 is what was quantized; without it a latent weight begins where its code is.

        `kept` [out, in] bool: of a pruned weight latent ones are 0 where it is False, and there alone.
        """
        super().__init__(quantized)
        self._shape = quantized.shape
        start = quantized.dequantize() if original is None else within_cells(quantized, original)
        units = self.units()
        latent = torch.where(units == 0, 0.0, start / units)
        if kept is not None:
            latent = torch.where(latent == 0, _AWAKE, latent).where(kept, 0.0)
        self.latent = nn.Parameter(latent)

    def forward(self) -> Tensor:
        return fake_quantize(self.latent, self.number_format, self._params, self._moved(), in_steps=True)

    @torch.no_grad()
    def tensor(self) -> QTensor:
        return quantize(self.latent * self.units(), self.number_format, self._stored())

    def units(self) -> Tensor:
        """What a step of the grid was at the start, for every weight: [out, in] fp32."""
        return self.number_format.expand(self._params, self._shape)["scale"] * self.number_format.step


def within_cells(quantized: QTensor, original: Tensor) -> Tensor:
    """Points [out, in] fp32 that round to the codes of `quantized`: `original` where it does, else on the way there.

    What is beyond the ends of the grid is brought back to them. Where codes span columns, the weights of a code go
    the same part of their ways.
    """
    if not quantized.format.rows_apart:
        return _within_cells(quantized, original)
    step = max(1, _CHUNK // original.shape[1])
    cut = (slice(start, start + step) for start in range(0, original.shape[0], step))
    return torch.cat([_within_cells(quantized.rows(part), original[part]) for part in cut])


def _within_cells(quantized: QTensor, original: Tensor) -> Tensor:
    number_format, values = quantized.format, quantized.dequantize()
    expanded = number_format.expand(quantized.params, quantized.shape)
    way = (original - values) / (1 - _MARGIN)

    def reached(share: Tensor) -> Tensor:
        """Where the code is still the same after `share` of the way."""
        same = number_format.value(number_format.round(values + way * share, expanded), expanded).eq(values)
        together: Tensor = same.unflatten(1, (-1, number_format.span)).all(-1)
        return together.repeat_interleave(number_format.span, 1)

    low, high = torch.zeros_like(values), torch.ones_like(values)
    low = torch.where(reached(high), high, low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        same = reached(middle)
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    point: Tensor = values + way * low * torch.where(low < 1, _SOLVED, 1 - _MARGIN)
    _, inside = clipped(to_scales(point, expanded), number_format, expanded)
    return torch.where(inside > 0, point, values)


def replace_quantized(
    model: nn.Module,
    weights: Mapping[str, QTensor],
    latent: bool,
    originals: Mapping[str, Tensor] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, TrainedWeight]:
    """Let the linears and embeddings named in `weights` learn as QTensors; what takes the weight's place, by name.

    `latent`: codes learn too, from where they are nearest to `originals` ([out, in] fp32, those that there are). Of
    those that were pruned only what is `kept` ([out, in] bool) does.
    Modules that share their weight with a named one, as heads do with embeddings, go on sharing it.
    """
    learned: dict[str, TrainedWeight] = {}
    for name, quantized in weights.items():
        original = (originals or {}).get(name)
        mask = (kept or {}).get(name)
        learned[name] = LatentWeight(quantized, original, mask) if latent else ScaledWeight(quantized)
        weight = model.get_submodule(name).get_parameter("weight")
        for module in [each for each in model.modules() if each._parameters.get("weight") is weight]:
            _compute(module, learned[name].to(weight.device))
    return learned


def _compute(module: nn.Module, weight: TrainedWeight) -> None:
    """`module` goes on, with its hooks and all that its class does, on a weight that is computed when asked for."""
    del module.weight
    module.computed = weight
    kind = type(module)
    module.__class__ = type(kind.__name__, (kind,), {"weight": property(lambda own: own.computed())})
