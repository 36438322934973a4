"""What quantized weights cost: by hand, with the untouched weights of one sort put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.passes.choice.prices import Price, Prices
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.rtn import RTN
from compress.passes.sweep.sweep import sweep


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> Iterator[Run]:
    """After rounding to 3 bits, with text at hand."""
    run = begin(tiny_llama, tmp_path / "work")
    step = RTN(bits=3, group_size=32)
    run.left = run.left.then(sweep(run, Stage((step,), {}, run.work), [step]))
    tokens = torch.randint(0, 320, (4, 16), generator=torch.Generator().manual_seed(1))
    run.left = run.left.then(Outcome(calibration=Sequences(tokens)))
    yield run


def priced(run: Run, name: str) -> list[Price]:
    outcome = Prices().model(run, Stage((Prices(),), {"name": name}, run.work))
    return [Price.model_validate(found) for found in outcome.manifest["prices"]]


def test_a_sort_costs_what_kl_its_untouched_weights_save(run: Run) -> None:
    tokens = run.left.calibration.ids  # type: ignore[union-attr]
    down = "model.layers.1.mlp.down_proj"

    def log_probs(restored: str = "", untouched: bool = False) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(run.source.path, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if name in run.model.spec.tensors and not untouched and name != f"{restored}.weight":
                value = run.model.read(name)
                parameter.data = value if isinstance(value, torch.Tensor) else value.dequantize()
        with torch.no_grad():
            return model(tokens).logits[:, :-1].log_softmax(-1)

    def divergence(restored: str) -> float:
        reference = log_probs(untouched=True)
        return float((reference.exp() * (reference - log_probs(restored))).sum(-1).mean())

    saved = divergence("") - divergence(down)
    (price,) = [found for found in priced(run, "all") if down in found.modules]
    assert price.modules == {down: (64, 128)}
    assert price.cost == pytest.approx(abs(saved), rel=1e-3)


def test_without_text_the_errors_themselves_are_the_prices(run: Run) -> None:
    run.left = replace(run.left, calibration=None)
    for price in priced(run, "none"):
        kinds = [float(run.left.reports[name]["relative_error"]) for name in price.modules]
        assert price.cost == pytest.approx(sum(kinds))
