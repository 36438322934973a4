"""A layer's experts one by one: transformers stacks their weights, here each matrix is a linear layer of its own.

So experts are traced, paused at, gathered for and rewritten like any other linear layer, each with the tokens
that were routed to it and no others. How stacks lie and what happens between the two products are told by
the flags that transformers' decorator sets (integrations/moe.py, `use_experts_implementation`). Llama 4's experts do
not have it: what is known of them is said here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.formats.base import Origin
from compress.passes.model.flight import PausePoints, routed

Given = tuple[Tensor, Tensor | None]
"""An expert's input [tokens, hidden], and which tokens of the batch these are; None: nothing is known of them."""

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


class LinearExperts(nn.ModuleList):
    """Takes the place of transformers' experts: the same call, the same result.

    So many experts as are `abreast` are paused at one after the other before any of them computes: what is made of
    their weights meanwhile can be made at once.
    """

    abreast = 1

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
        output, places = torch.zeros_like(hidden), dict[int, Tensor]()

        def given(number: int) -> Given:
            if hidden.is_meta:
                return hidden.clone(), None
            tokens, places[number] = torch.where(top_k_index == number)
            return hidden[tokens], tokens

        for number, tokens, values in self._each(given):
            if tokens is not None:
                shares = top_k_weights[tokens, places.pop(number), None]
                output.index_add_(0, tokens, (values * shares).to(output.dtype))
        return output

    def _each(self, given: Callable[[int], Given]) -> Iterator[tuple[int, Tensor | None, Tensor]]:
        """Each expert's number, the tokens that it is `given`, and what it makes of them [tokens, hidden]."""
        for start in range(0, len(self), self.abreast):
            numbers = range(start, min(start + self.abreast, len(self)))
            inputs, tokens = zip(*map(given, numbers))
            yield from zip(numbers, tokens, self._computed([self[number] for number in numbers], inputs, tokens))

    def _computed(
        self, experts: Sequence[nn.Module], inputs: Sequence[Tensor], tokens: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        """What `experts` make of their `inputs` [tokens, hidden] each, which are those of so many `tokens`."""
        for product in range(2):
            linears = [list(expert.children())[product] for expert in experts]
            for linear, x, own in zip(linears, inputs, tokens):
                with routed(own):
                    PausePoints.meet(parts_of(linear)[0], x)
            found = []
            for linear, x, own in zip(linears, inputs, tokens):
                with routed(own):
                    found.append(_product(linear, x))
            inputs = found if product else [self.between(first) for first in found]
        return inputs

    @property
    def between(self) -> Callable[[Tensor], Tensor]:
        """What goes into the second product, of what came out of the first."""
        (rules,) = self._rules
        return rules._apply_gate if rules.has_gate else rules.act_fn  # type: ignore[no-any-return]

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
        rows = hidden.unflatten(0, (len(self), -1))
        output = torch.zeros_like(rows)

        def given(number: int) -> Given:
            if hidden.is_meta:
                return rows[number].clone(), None
            tokens = rows[number].any(-1).nonzero().squeeze(1)
            return rows[number, tokens], tokens

        for number, tokens, values in self._each(given):
            if tokens is not None:
                output[number, tokens] = values
        return output.flatten(0, 1)

    @property
    def between(self) -> Callable[[Tensor], Tensor]:
        """See `LinearExperts`."""
        act: Callable[[Tensor], Tensor] = self._rules[0].act_fn

        def gated(first: Tensor) -> Tensor:
            gate, up = first.chunk(2, -1)
            return up * act(gate)

        return gated


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


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The linears of one product of an expert."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _product(module: nn.Module, x: Tensor) -> Tensor:
    found: list[Tensor] = [linear(x) for linear in parts_of(module)]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def abreast(layer: nn.Module, firsts: Sequence[str], count: int) -> list[list[int]]:
    """Let `count` experts of `layer` stand abreast; the places `firsts`, where a forward pauses, as it comes to them.

    They are given by number; those in one list are met before any of them computes.
    """
    stacks = {name: module for name, module in layer.named_modules() if isinstance(module, LinearExperts)}
    for module in stacks.values():
        module.abreast = count

    def place(at: int) -> tuple[str, int, bool, int]:
        """Whose it is; of experts, when they are met: those abreast together, up before down."""
        for name in stacks:
            if firsts[at].startswith(f"{name}."):
                number, product, *_ = firsts[at].removeprefix(f"{name}.").split(".")
                return name, int(number) // count, product == _DOWN, int(number)
        return firsts[at], 0, False, 0

    runs = [sorted(run, key=place) for _, run in groupby(range(len(firsts)), key=lambda at: place(at)[0])]
    return [list(met) for run in runs for _, met in groupby(run, key=lambda at: place(at)[:3])]
