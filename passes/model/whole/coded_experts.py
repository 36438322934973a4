"""A layer's experts whose weights are codes, all at once: what takes their place on a GPU, where a model only computes.

Tokens are put in the order of their experts, and each product of all experts is one launch. Nothing is waited for: how
many tokens an expert has never leaves the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress.kernels.fallbacks import count
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.product.multiply_experts import experts_product
from compress.kernels.product.stack import Stack, joined, stacked
from compress.kernels.product.words import Words
from compress.passes.model.experts import LinearExperts, WeighedExperts, parts_of


class Product(nn.Module):
    """One product of all experts, in so many `stacks` as their matrices come in; `bias` [experts, rows] or None."""

    def __init__(self, stacks: Sequence[Stack], bias: Tensor | None) -> None:
        super().__init__()
        self._stacks = list(stacks)
        self._bias = bias

    def forward(self, inputs: Tensor, experts: Tensor, ends: Tensor) -> Tensor:
        """inputs [n, columns] in the order of their `experts` [n], which `ends` [experts] → [n, rows]."""
        found = [experts_product(inputs, stack, ends) for stack in self._stacks]
        values = found[0] if len(found) == 1 else torch.cat(found, -1)
        return values if self._bias is None else values + self._bias[experts]


class CodedExperts(nn.Module):
    """Takes the place of `LinearExperts`: the same call, the same result up to rounding."""

    def __init__(self, experts: LinearExperts, products: Sequence[Product]) -> None:
        super().__init__()
        self._count = len(experts)
        self._first, self._second = products
        self._between = experts.between

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden [tokens, width]; top_k_index, top_k_weights [tokens, k] → [tokens, width]."""
        each = top_k_index.shape[1]
        experts, order = top_k_index.flatten().sort(stable=True)
        values = torch.empty(len(order), hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        values[order] = self._computed(hidden[order // each], experts)
        shared = values.view(-1, each, hidden.shape[1]) * top_k_weights.unsqueeze(2)
        return shared.sum(1).to(hidden.dtype)

    def _computed(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """What the experts make of `inputs` [n, width] that are in their order; `experts` [n] says whose they are."""
        numbers = torch.arange(self._count, device=experts.device)
        ends = torch.searchsorted(experts, numbers, right=True, out_int32=True)
        found: Tensor = self._second(self._between(self._first(inputs, experts, ends)), experts, ends)
        return found


class CodedWeighedExperts(CodedExperts):
    """Takes the place of `WeighedExperts`."""

    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]  # the call that it takes the place of
        """hidden [experts · tokens, width] → the same shape."""
        numbers = torch.arange(self._count, device=hidden.device).repeat_interleave(len(hidden) // self._count)
        experts, order = numbers.masked_fill(~hidden.any(1), self._count).sort(stable=True)
        output = torch.empty_like(hidden)
        # What is nobody's comes last, and stays 0.
        found = self._computed(hidden[order], experts)
        output[order] = found.masked_fill((experts == self._count).unsqueeze(1), 0)
        return output


def coded_experts(experts: LinearExperts) -> CodedExperts | None:
    """What takes the place of `experts`; None, and counted, if their weights do not go together.

    Those on a CPU stay, too: nothing there would do it at once.
    """
    linears = [list(map(parts_of, expert.children())) for expert in experts]
    flat = [linear for expert in linears for parts in expert for linear in parts]
    if not any(isinstance(linear, CodedLinear) and linear.words for linear in flat):
        return None
    products = [_product([expert[product] for expert in linears]) for product in range(2)]
    kind = CodedWeighedExperts if isinstance(experts, WeighedExperts) else CodedExperts
    if products[0] is None or products[1] is None:
        count("experts of a layer are multiplied one by one: their weights differ in form, or their inputs are rounded")
        return None
    return kind(experts, [product for product in products if product is not None])


def _product(experts: Sequence[Sequence[nn.Module]]) -> Product | None:
    """One product of the experts, of whose linears each has a list."""
    words = [[each for linear in expert if (each := _words(linear))] for expert in experts]
    if any(len(found) < len(expert) for found, expert in zip(words, experts)):
        return None
    wholes = [joined(parts) for parts in words]
    # Matrices of an expert that do not go into one, because they differ in bits, are products of their own.
    columns = [wholes] if all(wholes) else zip(*words)
    stacks = [stacked([each for each in column if each is not None]) for column in columns]
    there = [stack for stack in stacks if stack is not None]
    biases = [linear.bias for expert in experts for linear in expert if isinstance(linear.bias, Tensor)]
    biased = torch.cat(biases).view(len(experts), -1) if biases else None
    return Product(there, biased) if len(there) == len(stacks) else None


def _words(linear: nn.Module) -> Words | None:
    """Its weight; None if it is not in words, or if something else is done with inputs first."""
    return linear.words if isinstance(linear, CodedLinear) and not linear._forward_pre_hooks else None
