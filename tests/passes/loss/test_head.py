"""A model cut in two computes what it computes whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.passes.loss.head import Head, hidden_states, last_hidden
from compress.passes.model.blank import fitted
from compress.passes.model.whole.loading import load_model


def test_both_halves_give_the_models_own_logits(every_family: str, make_model: object, tmp_path: Path) -> None:
    checkpoint, _ = fitted(open_checkpoint(make_model(tmp_path / "model", every_family)))  # type: ignore[operator]
    model = load_model(checkpoint, torch.device("cpu"))
    ids = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        hidden = last_hidden(model, ids, mask)
        assert torch.equal(torch.stack([Head(model)(row) for row in hidden]), whole)
        states = hidden_states(model, ids, mask)
    assert len(states) == 1 + model.config.get_text_config().num_hidden_layers
    assert torch.equal(states[-1], hidden)


def test_the_head_learns_with_the_model_and_holds_nothing_of_its_own(tiny_llama: Path) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    head = Head(model)
    assert {id(parameter) for parameter in head.parameters()} == {id(model.lm_head.weight)}
    assert not any(name.startswith("model.layers") for name, _ in head.named_modules())
    hidden = torch.randn(3, 64, requires_grad=True)
    head(hidden).sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.abs().sum() > 0)


@pytest.mark.parametrize("chunk", [1, 5])
def test_logits_of_a_few_tokens_are_those_of_all(tiny_llama: Path, chunk: int) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    hidden = torch.randn(7, 64)
    with torch.no_grad():
        parts = torch.cat([Head(model)(part) for part in hidden.split(chunk)])
        assert torch.allclose(parts, Head(model)(hidden), atol=1e-5)
