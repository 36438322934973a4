"""A layer's experts one by one: transformers stacks their weights, here each matrix is a linear layer of its own.

So experts are traced, paused at, gathered for and rewritten like any other linear layer, each with the tokens
that were routed to it and no others. How stacks lie and what happens between the two products are told by
the flags that transformers' decorator sets (integrations/moe.py, `use_experts_implementation`). Llama 4's experts do
not have it: what is known of them is said here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.formats.base import Origin
from compress.passes.model.flight import routed

_DOWN = "down_proj"
_OF_LLAMA4 = "Llama4TextExperts"
_FLAGS_OF_LLAMA4 = {"has_gate": True, "has_bias": False, "is_transposed": True}


def is_experts(module: nn.Module) -> bool:
    """Whether `module` is a stack of experts whose forward is known here."""
    if type(module).__name__ == _OF_LLAMA4:
        for flag, value in _FLAGS_OF_LLAMA4.items():
            setattr(module, flag, value)
    known = all(isinstance(getattr(module, flag, None), bool) for flag in ("has_gate", "has_bias", "is_transposed"))
    normed = getattr(module, "has_post_expert_norm", False)  # transformers 5.17 does not know of it
    return known and not normed and getattr(module, _DOWN, torch.empty(0)).ndim == 3


class Expert(nn.Module):
    """Up (and gate), what lies between, down. `parts`: matrices of each product; 0 for one that was a stack's slice."""

    def __init__(self, stacks: Mapping[str, tuple[int, int]], parts: Mapping[str, int], bias: bool) -> None:
        super().__init__()
        for name, (outputs, inputs) in stacks.items():
            count = max(1, parts[name])
            with torch.device("meta"):
                self.add_module(
                    name,
                    nn.ModuleList(nn.Linear(inputs, outputs // count, bias) for _ in range(count))
                    if parts[name]
                    else nn.Linear(inputs, outputs, bias),
                )

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        """x [tokens, hidden] → [tokens, hidden]."""
        first, down = self.children()
        return _product(down, between(_product(first, x)))


class LinearExperts(nn.ModuleList):
    """Takes the place of transformers' experts: the same call, the same result."""

    def __init__(self, experts: Any, parts: Mapping[str, int]) -> None:
        stacks = {name: _extents(experts, name) for name in products(experts)}
        count = getattr(experts, _DOWN).shape[0]
        super().__init__(Expert(stacks, parts, experts.has_bias) for _ in range(count))
        self._stacks = [name for name, _ in experts.named_parameters()]
        for name in self._stacks:
            delattr(experts, name)
        self._rules = [experts]  # in a list, so that it is no submodule

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden [tokens, width]; top_k_index, top_k_weights [tokens, k] → [tokens, width].

        Every expert is called, be it without a token: each is a place to pause at. On the meta device, where
        nothing is known of the routing, each takes all tokens.
        """
        (rules,) = self._rules
        between = rules._apply_gate if rules.has_gate else rules.act_fn
        output = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            if hidden.is_meta:
                expert(hidden.clone(), between)
                continue
            tokens, place = torch.where(top_k_index == number)
            with routed(tokens):
                values = expert(hidden[tokens], between)
            output.index_add_(0, tokens, (values * top_k_weights[tokens, place, None]).to(output.dtype))
        return output

    def origins(self, name: str, stored: Mapping[str, str]) -> dict[str, Origin]:
        """Where the files keep each expert's tensors if they keep them stacked.

        `name` is the module's own, `stored` the files' name of each parameter (passes/model/names.py). Experts are
        numbered where the stack lies, or, if files call it otherwise than transformers does, in `name`.
        """
        apart = {product for product in products(self._rules[0]) if count_parts(f"{name}.0.{product}", stored)}
        origins: dict[str, Origin] = {}
        for stack in self._stacks:
            if (product := stack.removesuffix("_bias")) not in apart:
                file_name = stored.get(f"{name}.{stack}", f"{name}.{stack}")
                owner = file_name.removesuffix(f".{stack}") if file_name.endswith(f".{stack}") else name
                kind = "weight" if product == stack else "bias"
                transposed = self._rules[0].is_transposed and kind == "weight"
                origins |= {
                    f"{owner}.{number}.{product}.{kind}": Origin(file_name, number, transposed=transposed)
                    for number in range(len(self))
                }
        return origins


class WeighedExperts(LinearExperts):
    """Llama 4's: each expert is given all tokens, times what the router says of them, 0 for those that are others'."""

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]  # the call that it takes the place of
        """hidden [experts · tokens, width] → the same shape."""
        (rules,) = self._rules

        def between(first: Tensor) -> Tensor:
            gate, up = first.chunk(2, -1)
            return up * rules.act_fn(gate)  # type: ignore[no-any-return]

        given = hidden.unflatten(0, (len(self), -1))
        output = torch.zeros_like(given)
        for number, expert in enumerate(self):
            if hidden.is_meta:
                expert(given[number].clone(), between)
                continue
            tokens = given[number].any(-1).nonzero().squeeze(1)
            with routed(tokens):
                output[number, tokens] = expert(given[number, tokens], between)
        return output.flatten(0, 1)


def linear_experts(experts: nn.Module, parts: Mapping[str, int]) -> LinearExperts:
    """What takes the place of `experts`."""
    kind = WeighedExperts if type(experts).__name__ == _OF_LLAMA4 else LinearExperts
    return kind(experts, parts)


def beside_experts(layer: nn.Module, linear: str) -> bool:
    """Whether the module `linear` of a decoder layer stands right beside experts: what chooses or weighs them."""
    return any(
        isinstance(module, LinearExperts) for module in layer.get_submodule(linear.rpartition(".")[0]).children()
    )


def unknown_stacks(layer: nn.Module) -> list[str]:
    """The parameters of a decoder layer that hold several matrices, and that no linear layer stands for."""
    return [
        f"{name}.{leaf}".lstrip(".")
        for name, module in layer.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 2 and not isinstance(module, _ConvNd)
    ]


def products(experts: Any) -> tuple[str, str]:
    """The names of the stacks: of the first product and of the second."""
    return ("gate_up_proj" if experts.has_gate else "up_proj", _DOWN)


def count_parts(product: str, stored: Mapping[str, str]) -> int:
    """How many matrices a checkpoint keeps a product of one expert in; 0 if it is a slice of a stack."""
    return next(count for count in itertools.count() if f"{product}.{count}.weight" not in stored)


def _extents(experts: Any, stack: str) -> tuple[int, int]:
    """(out, in) of each matrix of a stack."""
    _, rows, columns = getattr(experts, stack).shape
    return (columns, rows) if experts.is_transposed else (rows, columns)


def _product(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.ModuleList):
        return torch.cat([linear(x) for linear in module], -1)
    product: Tensor = module(x)
    return product
