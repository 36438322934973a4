"""Losses per token: torch's own distributions are the judge, in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from compress.passes.loss.losses import Divergence, LogitLoss, Target, cross_entropy, forward_kl, jsd, reverse_kl

TOKENS, VOCABULARY = 6, 9
GENERATOR = torch.Generator().manual_seed(3)
TEACHER, STUDENT = 2 * torch.randn(2, TOKENS, VOCABULARY, dtype=torch.float64, generator=GENERATOR)
FOLLOWING = torch.randint(VOCABULARY, (TOKENS,), generator=GENERATOR)


def judged(divergence: str, teacher: Tensor, student: Tensor, beta: float = 0.5) -> Tensor:
    p, q = Categorical(logits=teacher), Categorical(logits=student)
    m = Categorical(probs=beta * p.probs + (1 - beta) * q.probs)
    return {
        "forward_kl": lambda: kl_divergence(p, q),
        "reverse_kl": lambda: kl_divergence(q, p),
        "jsd": lambda: beta * kl_divergence(p, m) + (1 - beta) * kl_divergence(q, m),
    }[divergence]()


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_those_of_torch(divergence: Divergence, temperature: float) -> None:
    loss = LogitLoss(divergence, temperature, beta=0.3)
    found = loss(STUDENT, loss.target(TEACHER), FOLLOWING)
    expected = judged(divergence, TEACHER / temperature, STUDENT / temperature, beta=0.3)
    torch.testing.assert_close(found, temperature**2 * expected, rtol=1e-12, atol=1e-12)


def test_jensen_shannon_of_fair_halves_is_at_most_log_2() -> None:
    apart = torch.tensor([[0.0, -1e4], [-1e4, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(jsd(apart, apart.flip(0), 0.5), torch.full((2,), math.log(2), dtype=torch.float64))


def test_the_mixture_is_the_divergence_and_a_part_of_cross_entropy() -> None:
    loss = LogitLoss(temperature=2.0, alpha=0.25)
    expected = 4 * judged("forward_kl", TEACHER / 2, STUDENT / 2) + 0.25 * functional.cross_entropy(
        STUDENT, FOLLOWING, reduction="none"
    )
    torch.testing.assert_close(loss(STUDENT, loss.target(TEACHER), FOLLOWING), expected)


def test_without_a_teacher_it_is_cross_entropy() -> None:
    found = LogitLoss(temperature=2.0, alpha=0.1)(STUDENT, None, FOLLOWING)
    torch.testing.assert_close(found, -Categorical(logits=STUDENT).log_prob(FOLLOWING))


def test_logits_of_low_precision_are_compared_in_fp32() -> None:
    found = cross_entropy(STUDENT.bfloat16(), FOLLOWING)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(STUDENT.bfloat16().float(), FOLLOWING), rtol=0, atol=0)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_the_gradient_at_any_temperature_is_that_of_finite_differences(divergence: Divergence) -> None:
    loss = LogitLoss(divergence, 1.7, alpha=0.4, beta=0.7)
    target = loss.target(TEACHER)
    assert torch.autograd.gradcheck(
        lambda logits: loss(logits, target, FOLLOWING), STUDENT.clone().requires_grad_(), fast_mode=False
    )


def test_the_gradient_of_forward_kl_is_q_less_p_by_the_temperature() -> None:
    """τ²·∂KL/∂z = τ·(q − p): arXiv 1503.02531, equation 2."""
    logits = STUDENT.clone().requires_grad_()
    loss = LogitLoss(temperature=3.0)
    loss(logits, loss.target(TEACHER), FOLLOWING).sum().backward()
    expected = 3 * ((STUDENT / 3).softmax(-1) - (TEACHER / 3).softmax(-1))
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_rows_that_are_no_token_of_both_are_masked(divergence: Divergence) -> None:
    """A student that is padded by 3 rows, a teacher by 1: only what both have counts, and nothing is NaN."""
    padded = torch.cat([STUDENT, torch.full((TOKENS, 3), 50.0)], 1).requires_grad_()
    teacher = torch.cat([TEACHER, torch.full((TOKENS, 1), 50.0)], 1)
    loss = LogitLoss(divergence, vocabulary=VOCABULARY)
    found = loss(padded, loss.target(teacher), FOLLOWING)
    torch.testing.assert_close(found, judged(divergence, TEACHER, STUDENT))
    found.sum().backward()
    assert padded.grad is not None
    assert bool((padded.grad[:, VOCABULARY:] == 0).all())


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_token_that_a_model_forbids_gives_no_nan(divergence: Divergence) -> None:
    teacher, student = TEACHER.clone(), STUDENT.clone()
    teacher[:, 0] = student[:, 0] = teacher[:, 1] = -math.inf
    student.requires_grad_()
    loss = LogitLoss(divergence)
    found = loss(student, loss.target(teacher), FOLLOWING.clamp_min(2))
    found.sum().backward()
    assert student.grad is not None
    assert bool(found.isfinite().all())
    assert bool(student.grad.isfinite().all())


def top(logits: Tensor, k: int) -> Target:
    """The k likeliest tokens and, as the outcome after them, all others."""
    log_p, ids = logits.log_softmax(-1).topk(k)
    if k == logits.shape[1]:
        return Target(log_p, ids)
    others = Categorical(logits=logits).probs.scatter(1, ids, 0).sum(1, keepdim=True)
    return Target(torch.cat([log_p, others.log()], 1), ids)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_all_tokens_as_the_top_are_the_dense_distribution(divergence: Divergence) -> None:
    loss = LogitLoss(divergence)
    found = loss(STUDENT, top(TEACHER, VOCABULARY), FOLLOWING)
    torch.testing.assert_close(found, judged(divergence, TEACHER, STUDENT))


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_one_outcome_for_all_others_never_adds_and_more_tokens_tell_more(divergence: Divergence) -> None:
    """The data processing inequality: to merge outcomes can only bring distributions nearer."""
    loss = LogitLoss(divergence)
    found = torch.stack([loss(STUDENT, top(TEACHER, k), FOLLOWING) for k in range(1, VOCABULARY + 1)])
    assert bool((found >= 0).all())
    assert bool((found.diff(dim=0) >= -1e-12).all())
    assert bool((found[0] < found[-1] - 1e-3).all())


def test_what_the_others_lack_is_bounded_by_their_mass() -> None:
    """Dense less merged is p(rest)·KL within the rest: the chain rule of KL."""
    k = 4
    target = top(TEACHER, k)
    assert target.ids is not None
    outside = torch.ones_like(TEACHER, dtype=torch.bool).scatter(1, target.ids, False)
    p, q = (logits[outside].reshape(TOKENS, -1) for logits in (TEACHER, STUDENT))
    lacking = target.log_p[:, -1].exp() * kl_divergence(Categorical(logits=p), Categorical(logits=q))
    merged = LogitLoss()(STUDENT, target, FOLLOWING)
    torch.testing.assert_close(merged + lacking, judged("forward_kl", TEACHER, STUDENT))


def test_the_gradient_of_a_merged_outcome_is_that_of_finite_differences() -> None:
    loss, target = LogitLoss("jsd", alpha=0.2), top(TEACHER, 3)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, target, FOLLOWING), STUDENT.clone().requires_grad_())


def test_a_rest_of_nearly_nothing_keeps_its_figures() -> None:
    """Where 1 − Σ q is 0 in fp32, the rest still has a log-probability."""
    logits = torch.tensor([[40.0, 0.0, 0.0]])
    found = Target(torch.zeros(1, 2), torch.tensor([[0]])).of(logits.log_softmax(-1))
    torch.testing.assert_close(found[0, 1], torch.tensor(math.log(2) - 40.0))


def test_divergences_of_a_distribution_from_itself_are_nothing() -> None:
    log_p = TEACHER.log_softmax(-1)
    for found in (forward_kl(log_p, log_p), reverse_kl(log_p, log_p), jsd(log_p, log_p, 0.2)):
        torch.testing.assert_close(found, torch.zeros(TOKENS, dtype=torch.float64))
