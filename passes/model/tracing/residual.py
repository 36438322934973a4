"""Where the output of a linear is added to the residual stream: found by tracing, never by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.passes.model.anatomy import Call, run_weightless

_ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


def find_residuals(layer: nn.Module, call: Call, hidden: Tensor) -> dict[str, str]:
    """Linear → the module whose input is what the linear's output is added to; names within `layer`.

    The weightless `layer` is run on meta tensors, `hidden` [batch, tokens, width]. A linear whose output goes
    elsewhere first (a norm, a gate, another sum) is not among them, nor one that runs before that module.
    """
    inputs: list[tuple[str, Tensor]] = []
    outputs: list[tuple[str, Tensor, int]] = []
    hooks = [hook for name, module in layer.named_modules() for hook in _watch(name, module, inputs, outputs)]
    with _Sums() as sums:
        run_weightless(layer, call, hidden)
    for hook in hooks:
        hook.remove()
    found = {}
    for left, right in sums.terms:
        for term, other in ((left, right), (right, left)):
            for linear, output, earlier in outputs:
                taker = next((name for name, x in inputs[:earlier] if x is other), None)
                if output is term and taker is not None:
                    found[linear] = taker
    return found


class _Sums(TorchFunctionMode):
    """Notes the terms of every sum of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ADDITIONS and len(args) == 2 and all(isinstance(term, Tensor) for term in args):
            self.terms.append(args)
        return func(*args, **(kwargs or {}))


def _watch(
    name: str, module: nn.Module, inputs: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor, int]]
) -> list[Any]:
    """Hooks that note what arrives at `module`, and what a linear gives, with the count of arrivals before."""

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            inputs.append((name, args[0]))

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append((name, output, len(inputs)))

    hooks = [module.register_forward_pre_hook(before)] if name else []
    return [*hooks, module.register_forward_hook(after)] if isinstance(module, nn.Linear) else hooks
