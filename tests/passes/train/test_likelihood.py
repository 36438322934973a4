"""Cross entropy of a model's own forward, over the tokens that count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.passes.model.sequences import Sequences
from compress.passes.model.whole.loading import load_model
from compress.passes.train.examples import Examples
from compress.passes.train.likelihood import Likelihood

IDS = torch.randint(0, 320, (3, 20), generator=torch.Generator().manual_seed(1))


def test_it_is_the_cross_entropy_of_what_is_scored(tiny_llama: Path) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    answers = torch.zeros(3, 20, dtype=torch.bool)
    answers[:, 12:] = True
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1, 17:] = False
    examples = Examples(Sequences(IDS, mask), answers)
    found = Likelihood(model, "fp32")(examples, torch.arange(3))
    log_p = model(IDS, attention_mask=mask.long()).logits.log_softmax(-1)
    expected = sum(
        -float(log_p[row, at - 1, IDS[row, at]]) for row in range(3) for at in range(12, 20) if mask[row, at]
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_its_gradient_is_that_of_transformers_own_loss(tiny_llama: Path) -> None:
    gradients = []
    for mine in (True, False):
        model = load_model(open_checkpoint(tiny_llama), torch.device("cpu")).requires_grad_(True)
        if mine:
            Likelihood(model, "fp32")(Examples(Sequences(IDS)), torch.arange(3)).backward()
        else:
            (model(IDS, labels=IDS).loss * 3 * 19).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
