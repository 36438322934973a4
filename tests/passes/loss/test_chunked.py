"""A loss by chunks is the loss at once: value, gradients, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.passes.loss.chunked import CHUNK, chunked_loss

TOKENS, WIDTH, VOCABULARY = 11, 5, 13


class Head(nn.Module):
    """Softcapped logits of a linear with a bias, as Gemma 2 has them."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = WIDTH) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(vocabulary, width, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.randn(vocabulary, dtype=torch.float64, generator=generator))

    def forward(self, hidden: Tensor) -> Tensor:
        return 3 * torch.tanh(functional.linear(hidden, self.weight, self.bias) / 3)


def some(tokens: int = TOKENS) -> tuple[Tensor, Callable[[Tensor, slice], Tensor]]:
    """Hidden states that want a gradient, and a loss of unlike tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
    following = torch.randint(VOCABULARY, (tokens,), generator=generator)
    weights = torch.rand(tokens, dtype=torch.float64, generator=generator)

    def per_chunk(logits: Tensor, part: slice) -> Tensor:
        return weights[part] * functional.cross_entropy(logits, following[part], reduction="none")

    return hidden, per_chunk


def at_once(hidden: Tensor, head: Head, per_chunk: Callable[[Tensor, slice], Tensor]) -> Tensor:
    return per_chunk(head(hidden), slice(None)).sum()


@pytest.mark.parametrize("chunk", [1, 4, TOKENS, 100])
def test_value_and_gradients_are_those_of_the_loss_at_once(chunk: int) -> None:
    hidden, per_chunk = some()
    head = Head()
    inputs = [hidden, *head.parameters()]
    expected = at_once(hidden, head, per_chunk)
    found = chunked_loss(hidden, head, per_chunk, chunk=chunk)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    # Behind the loss there is a mean in training: 0.25 stands for it.
    for gradient, other in zip(torch.autograd.grad(found / 4, inputs), torch.autograd.grad(expected / 4, inputs)):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, per_chunk = some()
    head = Head()
    chunked_loss(hidden, head, per_chunk, chunk=4).backward()
    for tensor in (hidden, head.weight, head.bias):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, slopes(tensor, lambda: at_once(hidden, head, per_chunk)))


def slopes(tensor: Tensor, loss: Callable[[], Tensor], step: float = 1e-6) -> Tensor:
    """The central differences of `loss` by each element of `tensor`."""
    found = torch.empty_like(tensor)
    with torch.no_grad():
        flat = tensor.view(-1)
        for index in range(flat.numel()):
            sides = []
            for sign in (1, -1):
                flat[index] += sign * step
                sides.append(float(loss()))
                flat[index] -= sign * step
            found.view(-1)[index] = (sides[0] - sides[1]) / (2 * step)
    return found


def test_only_what_is_trained_gets_a_gradient() -> None:
    hidden, per_chunk = some()
    head = Head()
    head.weight.requires_grad_(False)
    chunked_loss(hidden, head, per_chunk).backward()
    assert head.weight.grad is None
    assert head.bias.grad is not None
    frozen = Head().requires_grad_(False)
    chunked_loss(hidden.detach().requires_grad_(), frozen, per_chunk).backward()
    head.zero_grad()
    chunked_loss(hidden.detach(), head, per_chunk, chunk=4).backward()
    expected = torch.autograd.grad(at_once(hidden.detach(), head, per_chunk), head.bias)
    torch.testing.assert_close(head.bias.grad, *expected)


def test_a_weight_computed_once_for_all_chunks_gets_its_gradient() -> None:
    """As one that is decoded from codes: the graph behind it is run once, after the chunks."""
    hidden, per_chunk = some()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    weight = scale.exp() * Head().weight.detach()
    found = chunked_loss(hidden, lambda x: x @ weight.T, per_chunk, [weight], chunk=4)
    expected = per_chunk(hidden @ weight.T, slice(None)).sum()
    for gradient, other in zip(
        torch.autograd.grad(found, [scale, hidden], retain_graph=True),
        torch.autograd.grad(expected, [scale, hidden]),
    ):
        torch.testing.assert_close(gradient, other)


def test_a_second_backward_is_refused() -> None:
    hidden, per_chunk = some()
    loss = chunked_loss(hidden, Head(), per_chunk)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        loss.backward()


def test_without_gradients_the_value_is_the_same() -> None:
    hidden, per_chunk = some()
    with torch.no_grad():
        found = chunked_loss(hidden, Head(), per_chunk, chunk=4)
    assert not found.requires_grad
    torch.testing.assert_close(found, chunked_loss(hidden, Head(), per_chunk).detach())


def test_no_tokens_have_no_loss() -> None:
    hidden = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True)
    loss = chunked_loss(hidden, Head(), lambda logits, part: logits.sum(-1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert hidden.grad is not None


def test_a_low_precision_head_sums_its_gradient_in_fp32() -> None:
    """1024 chunks of one token, each of gradient 1: bfloat16 would stand still at 256."""
    weight = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    chunked_loss(hidden, lambda x: x @ weight.T, lambda logits, part: logits[:, 0], [weight], chunk=1).backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert float(weight.grad) == 1024


def test_autocast_reaches_the_head() -> None:
    hidden, per_chunk = some()
    head = Head().float()
    seen = []

    def loss(logits: Tensor, part: slice) -> Tensor:
        seen.append(logits.dtype)
        return per_chunk(logits.double(), part)

    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_loss(hidden.detach().float().requires_grad_(), head, loss, chunk=4)
    found.backward()
    assert set(seen) == {torch.bfloat16}
    expected = torch.autograd.grad(at_once(hidden.detach().float(), head, per_chunk), head.weight)
    torch.testing.assert_close(head.weight.grad, *expected, rtol=0.1, atol=0.05)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def largest(loss: Callable[[], Tensor]) -> int:
    with Largest() as seen:
        loss().backward()
    return seen.elements


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    tokens, vocabulary = 4 * CHUNK, 300
    hidden, _ = some(tokens)
    head = Head(vocabulary)
    following = torch.zeros(tokens, dtype=torch.int64)

    def per_chunk(logits: Tensor, part: slice) -> Tensor:
        return functional.cross_entropy(logits, following[part], reduction="none")

    assert largest(lambda: chunked_loss(hidden, head, per_chunk)) == CHUNK * vocabulary
    assert largest(lambda: at_once(hidden, head, lambda logits, _: per_chunk(logits, slice(None)))) > CHUNK * vocabulary
