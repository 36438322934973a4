"""What a student is to learn of each token: a teacher's distribution, the token that followed, or both.

Losses are nats per token, [tokens]; logits [tokens, vocabulary] are taken to fp32 (fp64 stays).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]

_LEAST = -1e4
"""The log-probability that stands for none: its exponential is 0, and products with it stay finite."""


@dataclass(frozen=True)
class Target:
    """What a teacher says of some tokens: log-probabilities [tokens, outcomes] at the temperature of the loss.

    Without `ids`, outcome i is token i. With `ids` [tokens, k] int64, the first k outcomes are these tokens, and
    one outcome more, if there is one, is that it is none of them.
    """

    log_p: Tensor
    ids: Tensor | None = None

    def of(self, log_q: Tensor) -> Tensor:
        """log_q [tokens, vocabulary] of another model, for the same outcomes: [tokens, outcomes]."""
        if self.ids is None:
            return log_q
        return log_q.gather(1, self.ids) if self.log_p.shape[1] == self.ids.shape[1] else merged(log_q, self.ids)


@dataclass(frozen=True)
class LogitLoss:
    """τ²·D(p ‖ q) + α·CE, p the teacher's and q the student's distribution at temperature τ, CE at temperature 1.

    τ² keeps the size of gradients where τ changes (arXiv 1503.02531, section 2). `vocabulary`: the first so many
    tokens are those that teacher and student share, the others are masked in D (None: all are shared). `beta` is
    that of `jsd`.
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    alpha: float = 0.0
    beta: float = 0.5
    vocabulary: int | None = None

    def target(self, logits: Tensor) -> Target:
        """A teacher's `logits` [tokens, vocabulary] as what is to be learned."""
        return Target(self.log_softmax(logits))

    def log_softmax(self, logits: Tensor) -> Tensor:
        """log-probabilities [tokens, shared tokens] at temperature τ."""
        return self._softened(logits).log_softmax(-1).clamp_min(_LEAST)

    def _softened(self, logits: Tensor) -> Tensor:
        shared = _precise(logits[:, : self.vocabulary])
        return shared if self.temperature == 1 else shared / self.temperature

    def __call__(self, logits: Tensor, target: Target | None, following: Tensor) -> Tensor:
        """The loss [tokens] of a student's `logits` [tokens, vocabulary].

        `following` [tokens] int64 are the tokens that really followed. Without a target the loss is CE.
        """
        if target is None:
            return cross_entropy(logits, following)
        distance = self.temperature**2 * self._distance(logits, target)
        return distance + self.alpha * cross_entropy(logits, following) if self.alpha else distance

    def _distance(self, logits: Tensor, target: Target) -> Tensor:
        if self.divergence == "forward_kl" and target.ids is None:
            apply: Callable[..., Tensor] = _ForwardKL.apply
            return apply(self._softened(logits), target.log_p)
        log_p, log_q = target.log_p, target.of(self.log_softmax(logits))
        match self.divergence:
            case "forward_kl":
                return forward_kl(log_p, log_q)
            case "reverse_kl":
                return reverse_kl(log_p, log_q)
            case "jsd":
                return jsd(log_p, log_q, self.beta)
        assert_never(self.divergence)


def merged(log_p: Tensor, ids: Tensor) -> Tensor:
    """Of log_p [tokens, vocabulary] those of `ids` [tokens, k] and, last, that it is none of them: [tokens, k + 1]."""
    # Not log(1 − Σ p): where the rest is small, nothing of it would be left.
    rest = log_p.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, ids), rest], 1).clamp_min(_LEAST)


def cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    """−log q(following) [tokens], of logits [tokens, vocabulary] and tokens [tokens] int64."""
    apply: Callable[..., Tensor] = _CrossEntropy.apply
    return apply(logits, following)


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy`: its gradient is q − 1 at the token that followed and q elsewhere, written over log q."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, following: Tensor) -> Tensor:
        log_q = _precise(logits).log_softmax(-1)
        place = following.unsqueeze(-1)
        loss = log_q.gather(-1, place).neg_().squeeze(-1)
        ctx.save_for_backward(log_q.exp_().scatter_add_(-1, place, log_q.new_full(place.shape, -1.0)))
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul(grads[0].unsqueeze(-1)).to(ctx.dtype), None


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) [tokens], of finite log-probabilities [tokens, outcomes]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _ForwardKL(torch.autograd.Function):
    """`forward_kl` of log_p and a student's logits: its gradient is q − p, so few tensors of this size are made."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_p: Tensor) -> Tensor:
        log_q, p = logits.log_softmax(-1).clamp_min_(_LEAST), log_p.exp()
        divergence = (log_p - log_q).mul_(p).sum(-1)
        ctx.save_for_backward(log_q.exp_().sub_(p))
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0].unsqueeze(-1), None


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q ‖ p) [tokens]: the student keeps to what the teacher finds likely (arXiv 2306.08543)."""
    return forward_kl(log_q, log_p)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """β·KL(p ‖ m) + (1 − β)·KL(q ‖ m) [tokens] with m = β·p + (1 − β)·q, 0 < β < 1 (arXiv 2306.13649, equation 1)."""
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * forward_kl(log_p, log_m) + (1 - beta) * forward_kl(log_q, log_m)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
