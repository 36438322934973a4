"""A whole checkpoint in memory: transformers' own, whatever form the files keep it in; what is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import QTensor
from compress.passes.model.whole.loading import load_model

CPU = torch.device("cpu")


def test_every_parameter_is_that_of_the_files(tiny_llama: Path) -> None:
    model = load_model(open_checkpoint(tiny_llama), CPU)
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for name, parameter in expected.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_a_whole_model_computes_what_transformers_computes(
    family: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_model(tmp_path / family, family)
    judge = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_model(open_checkpoint(path), torch.device("cpu"))(ids).logits
        assert torch.equal(ours, judge(ids).logits)


def test_codes_are_decoded_to_the_type_asked_for(written_as_gptq: Path) -> None:
    files = open_checkpoint(written_as_gptq)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_model(files, CPU, torch.bfloat16).get_parameter(name)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, files.read(name).dequantize().bfloat16())  # type: ignore[union-attr]


def test_codes_may_stay_codes(written_as_gptq: Path) -> None:
    files = open_checkpoint(written_as_gptq)
    coded, decoded = load_model(files, CPU, coded=True), load_model(files, CPU)
    kept = {name: module for name, module in coded.named_modules() if isinstance(module, CodedLinear)}
    quantized = {name for name, spec in files.spec.tensors.items() if spec.format}
    assert {f"{name}.weight" for name in kept} == quantized
    ids = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(coded(ids).logits, decoded(ids).logits)


@pytest.mark.usefixtures("compiling")
def test_a_model_of_codes_compiles_in_one_piece(written_as_gptq: Path) -> None:
    """Half of its layers as on a GPU, where codes lie in words."""
    model = load_model(open_checkpoint(written_as_gptq), CPU, coded=True)
    layers = [module for module in model.modules() if isinstance(module, CodedLinear)]
    for layer in layers[::2]:
        assert isinstance(layer._weight, QTensor)
        layer._weight = words_of(layer._weight) or layer._weight
    assert any(isinstance(layer._weight, Words) for layer in layers)
    ids = torch.randint(1, 320, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize(("change", "message"), [
    (lambda tensors: tensors.pop("model.norm.weight"), "has no tensor model.norm.weight"),
    (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"has shape \[3\]"),
])  # fmt: skip
def test_what_does_not_belong_together_is_named(change, message: str, tiny_llama: Path) -> None:
    path = tiny_llama / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=message):
        load_model(open_checkpoint(tiny_llama), CPU)
