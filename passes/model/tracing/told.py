"""A decoder layer whose linears give what they are told: its attention as a function, and no weight is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from compress.passes.model.anatomy import Call
from compress.passes.model.cache import with_cache


@dataclass(frozen=True)
class Seen:
    """Keys and values as they are cached [batch, heads, tokens, width]; what the linear `output` is given then."""

    keys: Tensor
    values: Tensor
    output: str
    arrived: Tensor


class Told:
    """`layer`, a copy of its own, is run as `calls` says for so many sequences, up to the linear after its cache.

    `hidden` is the length of a hidden state, `config` the model's; `calls` were recorded with a cache. Vectors, as
    norms have, become random.
    """

    def __init__(
        self,
        layer: nn.Module,
        calls: Callable[[int], Call],
        hidden: int,
        config: PreTrainedConfig,
        device: torch.device,
    ) -> None:
        self._layer, self._calls, self._config = layer, calls, config
        self._hidden, self._device = hidden, device
        self._given: Mapping[str, Tensor] = {}
        self._cached: tuple[Tensor, Tensor] | None = None
        self.linears: dict[str, tuple[int, int]] = {}
        """Inputs and outputs of each."""
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                self.linears[name] = (module.in_features, module.out_features)
                module.forward = partial(self._give, name)  # type: ignore[method-assign]
            else:
                _fill(module, device)

    def __call__(self, given: Mapping[str, Tensor]) -> Seen | None:
        """What is seen if linears give [sequences, tokens, out] fp32, those not named 0; None if nothing is cached."""
        self._given, self._cached = given, None
        sequences, tokens, _ = next(iter(given.values())).shape
        call = with_cache(self._calls(sequences), self._config, self._cache)
        hidden = torch.zeros(sequences, tokens, self._hidden, device=self._device)
        try:
            with torch.no_grad():
                self._layer(hidden, *call.args, **call.kwargs)
        except _Reached as reached:
            return reached.seen
        return None

    def _cache(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._cached = (keys, values)
        return keys, values

    def _give(self, name: str, x: Tensor) -> Tensor:
        if self._cached is not None:
            keys, values = (states.cpu() for states in self._cached)
            raise _Reached(Seen(keys, values, name, x.cpu()))
        given = self._given.get(name, torch.zeros(()))
        return given.to(self._device).expand(*x.shape[:-1], self.linears[name][1])


class _Reached(Exception):
    """How the layer is left."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen


def _fill(module: nn.Module, device: torch.device) -> None:
    """Vectors of `module` become random, larger parameters ones that occupy nothing."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters(recurse=False):
        vector: Any = 0.5 + torch.rand(parameter.shape, generator=generator)
        value = vector if parameter.ndim < 2 else torch.ones(()).expand(parameter.shape)
        setattr(module, name, nn.Parameter(value.to(device), requires_grad=False))
