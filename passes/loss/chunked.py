"""A loss over the vocabulary without a tensor of tokens × vocabulary: logits exist for one chunk of tokens at a time.

The gradient with respect to the hidden states is no larger than they are, and that with respect to the head no
larger than the head. So both are computed chunk by chunk in the forward, while a chunk's logits are there, and
kept; the head runs once, and the backward only multiplies (arXiv 2410.10989, section 3.2, for cross-entropy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 512
"""Tokens whose logits exist at once: enough to keep the head's product efficient."""

Project = Callable[[Tensor], Tensor]
"""hidden [tokens, width] → logits [tokens, vocabulary]."""
PerChunk = Callable[[Tensor, slice], Tensor]
"""(logits [t, vocabulary] of some of the tokens, which) → the losses [t] of these."""


def chunked_loss(
    hidden: Tensor,
    project: Project,
    per_chunk: PerChunk,
    trained: Sequence[Tensor] | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """The sum [] of the losses of `hidden` [tokens, width]; fp32, or fp64 where `hidden` is.

    `trained` are the tensors that `project` computes with and that may want a gradient: parameters, or what was
    computed from them once for all chunks. None: the parameters of `project`, if that is a module. The result
    can be differentiated once; a second time raises RuntimeError.
    """
    if trained is None:
        trained = list(project.parameters()) if isinstance(project, nn.Module) else []
    wanted = [tensor for tensor in trained if tensor.requires_grad]
    if torch.is_grad_enabled() and (hidden.requires_grad or wanted):
        loss: Tensor = _ChunkedLoss.apply(hidden, project, per_chunk, chunk, *wanted)  # type: ignore[no-untyped-call]
        return loss
    with torch.no_grad():
        return _total(hidden, [per_chunk(project(hidden[part]), part).sum() for part in _chunks(hidden, chunk)])


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, project: Project, per_chunk: PerChunk, chunk: int, *trained: Tensor
    ) -> Tensor:
        grads = [torch.zeros_like(tensor, dtype=_at_least_fp32(tensor)) for tensor in trained]
        of_hidden = torch.zeros_like(hidden)
        losses = []
        for part in _chunks(hidden, chunk):
            here = hidden[part].detach().requires_grad_(hidden.requires_grad)
            with torch.enable_grad():
                loss = per_chunk(project(here), part).sum()
            _add_gradients(loss, {here: of_hidden[part], **dict(zip(trained, grads))})
            losses.append(loss.detach())
        ctx.grads = [of_hidden, *(grad.to(tensor.dtype) for grad, tensor in zip(grads, trained))]
        return _total(hidden, losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.grads:
            raise RuntimeError("the gradients of a chunked loss are used up: differentiate it once")
        # In place: a copy of a large head's is gigabytes.
        of_hidden, *of_trained = (grad.mul_(of_loss) for grad in ctx.grads)
        ctx.grads = []
        return of_hidden, None, None, None, *of_trained


def _add_gradients(loss: Tensor, totals: dict[Tensor, Tensor]) -> None:
    """Add the gradient of `loss` with respect to each key that wants one to its value."""
    inputs = [tensor for tensor in totals if tensor.requires_grad]
    for tensor, grad in zip(inputs, torch.autograd.grad(loss, inputs, allow_unused=True)):
        if grad is not None:
            totals[tensor] += grad


def _chunks(hidden: Tensor, chunk: int) -> Iterator[slice]:
    for start in range(0, len(hidden), chunk):
        yield slice(start, min(start + chunk, len(hidden)))


def _total(hidden: Tensor, losses: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=_at_least_fp32(hidden), device=hidden.device)
    return sum((loss.to(total.dtype) for loss in losses), total)


def _at_least_fp32(tensor: Tensor) -> torch.dtype:
    """What sums over many tokens are kept in."""
    return torch.promote_types(tensor.dtype, torch.float32)
