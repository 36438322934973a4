"""A model goes on with what it is given: token by token as its whole forward says, from prompts of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from compress.passes.core.generation import continued

LENGTH = 24  # beyond the windows of those families that have one


@pytest.fixture
def model(every_family: str, make_model: Callable[..., Path], tmp_path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "model", every_family)).eval()


def test_every_token_is_the_one_that_its_share_of_the_whole_forwards_probabilities_draws(
    model: PreTrainedModel,
) -> None:
    generator = torch.Generator().manual_seed(3)
    given = torch.randint(1, 320, (5, LENGTH), generator=generator)
    begun, uniform = torch.tensor([1, 4, 9, 23, 24]), torch.rand(5, LENGTH, generator=generator)
    found = continued(model, given, begun, uniform)
    with torch.no_grad():
        upto = model(found).logits.double().softmax(-1).cumsum(-1)
    for row, start in enumerate(begun.tolist()):
        assert found[row, :start].equal(given[row, :start])
        for position in range(start, LENGTH):
            share, token = uniform[row, position], int(found[row, position])
            below = float(upto[row, position - 1, token - 1]) if token else 0.0
            assert below - 1e-4 <= share <= float(upto[row, position - 1, token]) + 1e-4


def test_rows_do_not_depend_on_those_beside_them(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    given, uniform = torch.zeros(3, LENGTH, dtype=torch.int64), torch.rand(3, LENGTH, generator=generator)
    begun, steps = torch.ones(3, dtype=torch.int64), list[int]()
    together = continued(model, given, begun, uniform, lambda: steps.append(1))
    alone = [continued(model, given[:1], begun[:1], row[None]) for row in uniform]
    assert together.equal(torch.cat(alone)) and len(steps) == LENGTH - 1
    assert not bool(given.any())  # as it was


def test_the_share_of_each_token_is_its_probability(tiny_llama: Path) -> None:
    """At temperature 1, with the least likely tokens among them: 16,384 draws against the model's own word."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompt = torch.tensor([[7, 0]]).repeat(1 << 14, 1)
    uniform = torch.rand(1 << 14, 2, generator=torch.Generator().manual_seed(0))
    drawn = continued(model, prompt, torch.ones(1 << 14, dtype=torch.int64), uniform)[:, 1]
    with torch.no_grad():
        expected: Tensor = model(torch.tensor([[7]])).logits[0, -1].softmax(-1)
    found = torch.bincount(drawn, minlength=320) / (1 << 14)
    assert float((found - expected).abs().sum()) / 2 < 0.08  # total variation; top-k of 50 or τ of 0.7 is far above
