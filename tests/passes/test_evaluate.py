"""Evaluation as a pass: the untouched model loses nothing, a worse one more, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.formats.base import Checkpoint
from compress.passes.core.base import Pass, Setting
from compress.passes.core.carry import Boundary
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.evaluate import Evaluate, Measured
from compress.passes.forward.cost.logits import score_bytes, score_effort
from compress.passes.forward.cost.passage import Passage
from compress.passes.model.weights import decoded
from compress.passes.rtn import RTN

Evaluated = Callable[..., Run]


@pytest.fixture
def evaluated(
    corpus: Path, tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> Evaluated:
    """evaluated(folder, *passes) → the run after these passes, each a stage, and an evaluation."""

    def evaluate(folder: str, *steps: Pass) -> Run:
        run = begin(tiny_llama, tmp_path / folder)
        for step in (*steps, Evaluate(data=str(corpus), samples=3, seq_len=16)):
            carry_out(run, step)
        return run

    return evaluate


def test_the_untouched_model_is_its_own_equal(evaluated: Evaluated) -> None:
    run = evaluated("work")
    scores = run.left.scores
    assert scores is not None and scores.tokens == 3 * 15
    assert scores.kl_divergence == 0 and scores.top1_agreement == 1
    assert scores.acceptance == pytest.approx(1, abs=1e-5)
    assert scores.perplexity == scores.reference_perplexity > 1
    assert run.left.manifest["evaluation"]["tokens"] == 3 * 16


def test_fewer_bits_lose_more(evaluated: Evaluated) -> None:
    losses = []
    for bits in (8, 3):
        run = evaluated(str(bits), RTN(bits=bits, group_size=32))
        assert run.left.scores is not None and run.left.scores.kl_divergence is not None
        losses.append(run.left.scores.kl_divergence)
    assert 0 < losses[0] < losses[1]


def test_the_worst_tokens_are_told_of(evaluated: Evaluated, corpus: Path, tmp_path: Path) -> None:
    """By transformers' own forward, and torch's quantile."""
    run = evaluated("work", RTN(bits=3, group_size=32))
    text = Evaluate(data=str(corpus), samples=3, seq_len=16).read(run.source, tmp_path, lambda _: None)
    assert text is not None and run.left.scores is not None

    def log_probs(weights: Checkpoint) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(run.source.path, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.data = decoded(weights.read(name)) if name in weights.spec.tensors else parameter.data
        with torch.no_grad():
            return model(text.ids).logits[:, :-1].double().log_softmax(-1)

    before, after = log_probs(run.source), log_probs(run.model)
    by_token = (before.exp() * (before - after)).sum(-1).flatten()
    assert run.left.scores.kl_p999 == pytest.approx(float(by_token.quantile(0.999)), rel=1e-3)
    assert run.left.scores.kl_divergence == pytest.approx(float(by_token.mean()), rel=1e-3)


def test_what_was_measured_is_not_measured_again(evaluated: Evaluated) -> None:
    first = evaluated("work")
    assert [record.boundary for record in first.journal.of(Boundary)] == [1, 2, 1, 2]
    again = evaluated("work")
    assert again.left.scores == first.left.scores and again.journal.records == first.journal.records
    (measured,) = again.journal.of(Measured)
    assert again.left.then(Outcome()).scores == measured.scores


def test_two_models_are_run_and_compared(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> None:
    run, extent = begin(tiny_llama, tmp_path / "work"), (3, 16)
    given = run.model.spec, run.skeleton.anatomy, extent
    cost, once = Evaluate().cost(Setting(*given, 1 << 40)), Passage(*given).cost(1 << 40)
    assert cost.effort == once.effort * 2 + score_effort(*given, 2)
    assert cost.memory == max(once.memory, score_bytes(*given[:2], 2))
