"""Experts of codes all at once give what they give one by one, on a GPU; on a CPU they stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretended
import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.kernels.fallbacks import counting
from compress.passes.model.blank import fitted
from compress.passes.model.experts import LinearExperts
from compress.passes.model.whole.coded_experts import CodedExperts
from compress.passes.model.whole.loading import load_model
from compress.recipes.recipe import from_data
from compress.recipes.run import run

CPU, AWAY = torch.device("cpu"), torch.device(pretended.NAME)
Make = Callable[..., Checkpoint]


@pytest.fixture
def quantized(make_model: Callable[..., Path], tmp_path: Path) -> Make:
    """quantized(family, steps…) → its files, each step a pass, int4 unless told."""

    def make(family: str, *steps: dict[str, Any]) -> Checkpoint:
        path = make_model(tmp_path / family, family)
        passes = [*(steps or [{"rtn": {"group_size": 32}}]), {"export": {"dialect": "compressed-tensors"}}]
        report = run(from_data({"model": str(path), "passes": passes}), tmp_path / "out")
        return open_checkpoint(Path(report.artifacts[0].path))

    return make


def logits(checkpoint: Checkpoint, device: torch.device, coded: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    view, blank = fitted(checkpoint)
    model = load_model(view, device, blank=blank, coded=coded)
    ids = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, model(ids.to(device), use_cache=False).logits.cpu()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text"])
def test_on_a_gpu_all_experts_of_a_layer_are_multiplied_at_once(family: str, quantized: Make) -> None:
    files = quantized(family)
    expected = logits(files, CPU, coded=False)[1]
    with pretended.gpu(), counting() as fallen:
        model, found = logits(files, AWAY, coded=True)
    assert any(isinstance(module, CodedExperts) for module in model.modules())
    assert not any(isinstance(module, LinearExperts) for module in model.modules())
    assert not fallen
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_experts_stay_as_they_are(quantized: Make) -> None:
    with counting() as fallen:
        model, _ = logits(quantized("mixtral"), CPU, coded=True)
    assert not any(isinstance(module, CodedExperts) for module in model.modules())
    assert not any("experts" in what for what in fallen)


def test_matrices_of_an_expert_that_differ_in_bits_are_products_of_their_own(quantized: Make) -> None:
    files = quantized("mixtral", {"rtn": {"group_size": 32, "bits": [{"match": "*.w3", "value": 8}, {"value": 4}]}})
    expected = logits(files, CPU, coded=False)[1]
    with pretended.gpu():
        model, found = logits(files, AWAY, coded=True)
    (experts, *_) = (module for module in model.modules() if isinstance(module, CodedExperts))
    assert [len(product._stacks) for product in (experts._first, experts._second)] == [2, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [
    {"rtn": {"group_size": 32, "bits": [{"match": "*.experts.0.*", "value": 8}, {"value": 4}]}},
    {"int8": {}},
])  # fmt: skip
def test_experts_that_do_not_go_together_are_multiplied_one_by_one_and_counted(step, quantized: Make) -> None:
    files = quantized("mixtral", step)
    expected = logits(files, CPU, coded=False)[1]
    with pretended.gpu(), counting() as fallen:
        model, found = logits(files, AWAY, coded=True)
    assert not any(isinstance(module, CodedExperts) for module in model.modules())
    assert sum(number for what, number in fallen.items() if "one by one" in what) == 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
