"""The model that learns: the run's tensors, what of them learns, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.kernels.qtensor import QTensor
from compress.passes.core.run import Run
from compress.passes.model.whole.loading import load_model
from compress.passes.rtn import RTN
from compress.passes.train.options import TrainOptions
from compress.passes.train.student import Student

IDS = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def quantized(tiny_llama: Path, tmp_path: Path, swept: Callable[..., Run]) -> Run:
    return swept(tiny_llama, tmp_path / "run", [RTN(bits=3, group_size=32, skip=("o_proj",))])


@pytest.mark.parametrize("train", ["all", "scales", "norms"])
def test_it_begins_as_the_model_that_it_is(quantized: Run, train: str) -> None:
    student = Student(quantized, TrainOptions.model_validate({"train": train}))
    with torch.no_grad():
        found = student.model(input_ids=IDS).logits
        expected = load_model(quantized.model, quantized.device)(input_ids=IDS).logits
    assert torch.equal(found, expected)
    for name in quantized.model.spec.tensors:
        if name in student.weights:
            held, given = quantized.model.read(name), student.tensors([name])[name]
            assert isinstance(held, QTensor) and isinstance(given, QTensor)
            assert torch.equal(held.codes, given.codes) and torch.equal(held.params["scale"], given.params["scale"])


def test_latent_weights_remember_what_was_rounded(quantized: Run) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    original, rounded = quantized.source.read(name), quantized.model.read(name)
    assert isinstance(original, torch.Tensor) and isinstance(rounded, QTensor)
    weight = Student(quantized, TrainOptions()).weights[name]
    latent = weight.get_parameter("latent").detach() * rounded.format.expand(rounded.params, rounded.shape)["scale"]
    away = (latent - original).square().sum()
    assert float(away) < 0.1 * float((rounded.dequantize() - original).square().sum())


def test_each_sort_of_parameter_learns_at_its_own_rate(quantized: Run) -> None:
    options = TrainOptions(lr=1e-6, lr_norms=1e-5, lr_codes=1e-4, lr_scales=1e-3)
    groups = {group.rate: set(group.parameters) for group in Student(quantized, options).groups(options)}
    assert {name.rpartition("model.")[2] for name in groups[1e-5]} >= {"norm.weight", "layers.0.input_layernorm.weight"}
    assert all(name.endswith(".latent") for name in groups[1e-4])
    assert all(name.endswith(".reals.scale") for name in groups[1e-3])
    assert "model.layers.0.self_attn.o_proj.weight" in groups[1e-6]
    assert len(groups[1e-4]) == len(groups[1e-3]) == 12


def test_units_are_layers_and_ends(quantized: Run) -> None:
    student = Student(quantized, TrainOptions())
    units = student.units(quantized)
    assert list(units) == ["ends", "model.layers.0", "model.layers.1"]
    assert sorted(name for names in units.values() for name in names) == sorted(quantized.model.spec.tensors)
