"""The objective of a distillation against the same written out, over whole logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from compress.formats import open_checkpoint
from compress.passes.loss.losses import LogitLoss
from compress.passes.model.sequences import Sequences
from compress.passes.model.whole.loading import load_model
from compress.passes.teach.distillation import Distillation
from compress.passes.teach.features import FeatureLoss
from compress.passes.train.examples import Examples

MASK = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
EXAMPLES = Examples(Sequences(torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(4)), MASK))


@pytest.fixture
def models(tmp_path: Path, make_model: Callable[..., Path]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A student and a teacher of the same shapes."""
    student, teacher = (
        load_model(open_checkpoint(make_model(tmp_path / str(seed), "llama", seed=seed)), torch.device("cpu"))
        for seed in (1, 2)
    )
    student.requires_grad_(True)
    return student, teacher


def test_logits_are_compared_where_a_real_token_follows(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    student, teacher = models
    loss = LogitLoss(temperature=2.0, alpha=0.3)
    found = Distillation(student, teacher, loss, None, 1.0, "fp32")(EXAMPLES, torch.arange(2))
    found.backward()
    weight = student.model.layers[0].mlp.up_proj.weight
    gradient = weight.grad.clone()
    student.zero_grad()

    ids = EXAMPLES.sequences.ids
    own, other = (model(input_ids=ids, attention_mask=MASK.long()).logits[:, :-1][MASK[:, 1:]] for model in models)
    p, q = ((logits / 2).log_softmax(-1) for logits in (other.detach(), own))
    following = ids[:, 1:][MASK[:, 1:]]
    expected = 4 * (p.exp() * (p - q)).sum() - 0.3 * own.log_softmax(-1).gather(1, following[:, None]).sum()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, weight.grad, atol=1e-5 * float(weight.grad.abs().max()))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hidden_states_are_added_by_their_weight(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    student, teacher = models
    features = FeatureLoss([(1, 1), (2, 2)], 64, 64)
    whole, logits, states = (
        Distillation(student, teacher, logit, feature, 0.5, "fp32")(EXAMPLES, torch.arange(2)).item()
        for logit, feature in ((LogitLoss(), features), (LogitLoss(), None), (None, features))
    )
    assert states > 0 and whole == pytest.approx(logits + states, rel=1e-5)


def test_in_bf16_it_is_nearly_the_same(models: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    exact, rounded = (
        Distillation(*models, LogitLoss(), None, 1.0, precision)(EXAMPLES, torch.arange(2)).item()  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.05)
