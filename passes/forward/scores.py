"""Perplexity, KL divergence, top-1 agreement and acceptance, from hidden states that stand before the final norm.

Logits exist for a few hundred tokens at a time: nothing of the vocabulary's size is kept for the whole data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial, reduce
from itertools import pairwise
from operator import add

import numpy as np
import torch
from torch import Tensor

from compress.passes.forward.cost.logits import SCORED_TOKENS
from compress.passes.forward.walk import Walk
from compress.passes.model.sequences import Sequences

_ALMOST_ALL = 0.999


@dataclass(frozen=True)
class Scores:
    """KL divergence in nats per token, reference ‖ candidate; top-1 agreement and acceptance as parts of 1.

    `acceptance` is how many of the tokens that the candidate samples the reference takes, if one drafts for the other
    (Leviathan et al. 2023, arXiv 2211.17192, definition 3.1: Σ min(p, q)); greedy decoding takes `top1_agreement`.
    `kl_p999` is the KL divergence that all but a thousandth of the tokens stay below, interpolated between tokens.
    The first token of every sequence is not scored. Without a reference the last five are None.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    acceptance: float | None = None
    kl_p999: float | None = None


@dataclass
class _Sums:
    tokens: int = 0
    loss: float = 0.0
    reference_loss: float = 0.0
    divergence: float = 0.0
    by_token: list[Tensor] = field(default_factory=list)
    agreements: int = 0
    acceptance: float = 0.0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(getattr(self, name.name) + getattr(other, name.name) for name in fields(self)))

    def scores(self) -> Scores:
        perplexity = math.exp(self.loss / self.tokens)
        if not self.by_token:
            return Scores(self.tokens, perplexity)
        return Scores(
            tokens=self.tokens,
            perplexity=perplexity,
            reference_perplexity=math.exp(self.reference_loss / self.tokens),
            kl_divergence=self.divergence / self.tokens,
            top1_agreement=self.agreements / self.tokens,
            acceptance=self.acceptance / self.tokens,
            kl_p999=float(np.quantile(torch.cat(self.by_token).double().numpy(), _ALMOST_ALL)),
        )

    def add(self, logits: Tensor, reference: Tensor | None, targets: Tensor) -> None:
        """logits, reference: [tokens, vocabulary]; targets: [tokens], the tokens that really followed."""
        log_p = logits.float().log_softmax(-1)
        self.tokens += len(targets)
        self.loss -= float(log_p.gather(1, targets[:, None]).sum(dtype=torch.float64))
        if reference is not None:
            log_q = reference.float().log_softmax(-1)
            self.reference_loss -= float(log_q.gather(1, targets[:, None]).sum(dtype=torch.float64))
            self.acceptance += float(accepted(log_q, log_p).sum(dtype=torch.float64))
            divergence, agreement = divergences(log_q, log_p)
            self.divergence += float(divergence.sum(dtype=torch.float64))
            self.by_token.append(divergence.cpu())
            self.agreements += int(agreement.sum())


def accepted(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Token by token: how likely q takes what p samples (`Scores.acceptance`), [tokens]; arguments as `divergences`."""
    return torch.minimum(log_q, log_p).exp_().sum(-1)


def divergences(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: KL divergence q ‖ p in nats [tokens], and whether both have one likeliest token [tokens].

    log_q, log_p: log-probabilities [tokens, vocabulary] fp32; `log_q` is used up.
    """
    agreement = log_q.argmax(-1) == log_p.argmax(-1)
    return log_q.exp().mul_(log_q.sub_(log_p)).sum(-1), agreement


def score(candidate: Walk, reference: Walk | None, advance: Callable[[], None] = lambda: None) -> Scores:
    """Compare two walks over the same sequences, both at their last boundary; `advance` is called after each.

    Processes that share the candidate's walk score some of the sequences each.
    """
    (whole,) = score_parts(candidate, reference, 1, advance)
    return whole


def score_parts(
    candidate: Walk, reference: Walk | None, count: int, advance: Callable[[], None] = lambda: None
) -> list[Scores]:
    """The same of all sequences, then, where `count` is above 1, of each of so many equal parts, in their order."""
    project = _projector(candidate)
    project_reference = _projector(reference) if reference else None
    lengths = _lengths(candidate.sequences)

    def scored(sequence: int) -> _Sums:
        found = _Sums()
        for start, stop in _chunks(lengths[sequence]):
            targets = candidate.sequences.ids[sequence, start + 1 : stop + 1].to(candidate.skeleton.device)
            logits = project(sequence, start, stop)
            other = project_reference(sequence, start, stop) if project_reference else None
            found.add(logits, other, targets)
        advance()
        return found

    found = candidate.share.each([partial(scored, sequence) for sequence in range(len(lengths))])
    bounds = [-(-len(found) * part // count) for part in range(count + 1)]
    parts = [reduce(add, found[start:stop], _Sums()) for start, stop in pairwise(bounds)]
    whole = reduce(add, parts)
    return [whole.scores(), *(part.scores() for part in parts if count > 1)]


def _lengths(sequences: Sequences) -> list[int]:
    """How many real tokens each sequence has."""
    return [sequences.length] * sequences.count if sequences.mask is None else sequences.mask.sum(1).tolist()


def _chunks(length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of positions that predict a real token."""
    for start in range(0, length - 1, SCORED_TOKENS):
        yield start, min(start + SCORED_TOKENS, length - 1)


def _projector(walk: Walk) -> Callable[[int, int, int], Tensor]:
    """(sequence, start, stop) → logits [stop − start, vocabulary]."""
    (stream,) = walk.streams
    project, _ = walk.skeleton.back(stream.weights)
    boundary = len(walk.skeleton.anatomy.layers)

    def logits(sequence: int, start: int, stop: int) -> Tensor:
        hidden = stream.hidden.read(boundary, sequence, sequence + 1)[:, start:stop]
        return project(hidden.to(walk.skeleton.device))[0]

    return logits
