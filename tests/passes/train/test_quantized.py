"""Quantized weights that learn: what they start from, what a step moves, and that nothing else moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress.formats import open_checkpoint
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.qtensor import NumberFormat, QTensor, quantize
from compress.passes.model.whole.loading import load_model
from compress.passes.train import quantized as module_under_test
from compress.passes.train.quantized import (
    LatentWeight,
    ScaledWeight,
    TrainedWeight,
    replace_quantized,
    within_cells,
)

FORMATS: list[NumberFormat] = [
    IntFormat(2, 32),
    IntFormat(4, 32),
    IntFormat(3, -1, "integer"),
    IntFormat(4, 32, "real"),
    IntFormat(8, -1),
    CodebookFormat("nf4", 32),
    CodebookFormat("fp4", 32, True),
    CodebookFormat("lloyd_max", 32),
    FloatFormat("channel"),
    FloatFormat("block"),
    Float4Format("mxfp4"),
    Float4Format("nvfp4"),
    RowInt8Format(),
]
every_format = pytest.mark.parametrize("number_format", FORMATS, ids=lambda f: f.name)


def shifted(number_format: NumberFormat, seed: int = 0) -> tuple[Tensor, QTensor]:
    """A weight, and codes of it as a solver chooses them: of another weight nearby, some beyond the grid."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(9, 96, generator=generator) * 0.05
    solved = weight + torch.randn(9, 96, generator=generator) * 0.02
    return weight, quantize(solved, number_format, number_format.fit(solved * 0.8))


def same(a: QTensor, b: QTensor) -> bool:
    return (
        a.format == b.format
        and torch.equal(a.codes, b.codes)
        and all(torch.equal(a.params[name], b.params[name]) for name in (*a.params, *b.params))
    )


def step(module: nn.Module, rate: float = 0.01) -> None:
    """A step of every parameter, of size `rate`, in a random direction."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).sign() * rate)


@every_format
def test_both_begin_as_the_quantized_weight(number_format: NumberFormat) -> None:
    weight, quantized = shifted(number_format)
    for module in (ScaledWeight(quantized), LatentWeight(quantized, weight), LatentWeight(quantized)):
        assert torch.equal(module(), quantized.dequantize())
        found = module.tensor()
        assert torch.equal(found.dequantize(), quantized.dequantize())
        # Two codes for zero, +0 and −0, are the one exception.
        assert same(found, quantized) or "fp" in number_format.name
        assert all(torch.equal(found.params[name], value) for name, value in quantized.params.items())


@every_format
def test_what_is_written_is_what_was_computed(number_format: NumberFormat) -> None:
    weight, quantized = shifted(number_format)
    for module in (ScaledWeight(quantized), LatentWeight(quantized, weight)):
        step(module, rate=0.2)
        assert torch.equal(module(), module.tensor().dequantize())
        assert not torch.equal(module(), quantized.dequantize()) or number_format.name == "mxfp4"


@every_format
def test_a_step_of_scales_changes_no_code(number_format: NumberFormat) -> None:
    _, quantized = shifted(number_format)
    module = ScaledWeight(quantized)
    step(module, rate=0.3)
    assert torch.equal(module.tensor().codes, quantized.codes)
    dtypes = {name: value.dtype for name, value in quantized.params.items()}
    assert {name: value.dtype for name, value in module.tensor().params.items()} == dtypes


@every_format
def test_a_step_means_the_same_for_small_weights_and_large_ones(number_format: NumberFormat) -> None:
    weight, quantized = shifted(number_format)
    reals = number_format.reals(quantized.params)
    module = LatentWeight(quantized, weight)
    step_of_grid = number_format.expand(quantized.params, (9, 96))["scale"] * number_format.step
    torch.testing.assert_close(module.latent * step_of_grid, within_cells(quantized, weight), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        for parameter in module.reals.values():
            parameter.fill_(0.25)
    moved = number_format.stored(quantized.params, {name: real + 0.25 * reals["scale"] for name, real in reals.items()})
    assert all(torch.equal(value, moved[name]) for name, value in module.tensor().params.items())


@every_format
def test_latents_begin_where_the_original_is_or_half_way_to_it(number_format: NumberFormat) -> None:
    """Where rounding the original gives the code, nothing is lost; else as far again, and the code is another."""
    weight, quantized = shifted(number_format, seed=1)
    latent, values = within_cells(quantized, weight), quantized.dequantize()
    scale = number_format.expand(quantized.params, (9, 96))["scale"].abs()
    rounded = quantize(weight, number_format, quantized.params).dequantize()
    ends = torch.stack([
        QTensor(number_format, torch.full((9, 96), code).byte(), quantized.params).dequantize()
        for code in range(number_format.levels)
    ]).nan_to_num(0.0)  # fmt: skip
    beyond = (weight > ends.amax(0)) | (weight < ends.amin(0))
    outer = beyond & (rounded == values)
    assert bool(((latent - values).abs() <= 2**-10 * scale)[outer].all())
    # Half of a cell is at most half the distance to the farther neighbour among the values.
    further = weight + (weight - values) * 0.1
    well_within = (
        (rounded == values) & ~beyond & (quantize(further, number_format, quantized.params).dequantize() == values)
    )
    torch.testing.assert_close(latent[well_within], weight[well_within], rtol=1e-5, atol=1e-7)
    moved_on = latent + (weight - latent).sign() * 1.06 * (latent - values).abs().maximum(scale * 1e-5)
    over = quantize(moved_on, number_format, quantized.params).dequantize() != values
    clipped = (rounded != values) & ~beyond
    assert clipped.any() and float(over[clipped].float().mean()) > 0.99


@every_format
def test_rows_at_a_time_begin_at_the_same_points(number_format: NumberFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, quantized = shifted(number_format)
    whole = within_cells(quantized, weight)
    monkeypatch.setattr(module_under_test, "_CHUNK", 200)
    assert torch.equal(within_cells(quantized, weight), whole)


def test_the_two_learn_what_they_should() -> None:
    """Toward another weight: scales alone come nearer, codes and scales nearer still."""
    weight, quantized = shifted(IntFormat(3, 32))
    losses = [float((quantized.dequantize() - weight).square().sum())]
    for module in (ScaledWeight(quantized), LatentWeight(quantized, quantized.dequantize())):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss = (module() - weight).square().sum()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 0.97 * losses[0] and losses[2] < 0.7 * losses[1]


def test_half_precision_scales_stay_half_precision() -> None:
    _, quantized = shifted(IntFormat(4, 32))
    module = ScaledWeight(quantized)
    with torch.no_grad():
        module.reals["scale"].fill_(1e-5)  # too little for a half to show
    assert same(module.tensor(), quantized)
    with torch.no_grad():
        module.reals["scale"].fill_(1e-2)
    stored = module.tensor().params["scale"]
    assert stored.dtype == torch.float16 and torch.equal(stored, (quantized.params["scale"].float() * 1.01).half())


@pytest.mark.parametrize("number_format", [IntFormat(4, 32, "real"), CodebookFormat("nf4", 32, True)], ids=str)
def test_its_state_is_all_there_is(number_format: NumberFormat) -> None:
    weight, quantized = shifted(number_format)
    other_weight, other = shifted(number_format, seed=4)
    for trained, fresh in (
        (ScaledWeight(quantized), ScaledWeight(other)),
        (LatentWeight(quantized, weight), LatentWeight(other, other_weight)),
    ):
        step(trained)
        fresh.load_state_dict({name: value.clone() for name, value in trained.state_dict().items()})
        assert same(fresh.tensor(), trained.tensor())
        assert {name for name, _ in trained.named_parameters()} >= {f"reals.{name}" for name in trained.reals}


def test_codes_that_span_columns_begin_as_they_are(pairs: NumberFormat) -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight + 0.1, pairs, pairs.fit(weight))
    module = LatentWeight(quantized, weight)
    assert torch.equal(module.tensor().codes, quantized.codes)
    latent = module.latent.detach() * quantized.params["scale"]
    assert float((latent - weight).abs().mean()) < 0.9 * float((quantized.dequantize() - weight).abs().mean())


# -- within a model ---------------------------------------------------------------------------------------


IDS = torch.arange(24).view(2, 12)


def quantized_weights(model: nn.Module, *names: str) -> dict[str, QTensor]:
    number_format = IntFormat(4, 32)
    weights = {name: model.get_submodule(name).get_parameter("weight").detach() for name in names}
    return {name: quantize(weight, number_format, number_format.fit(weight)) for name, weight in weights.items()}


@pytest.mark.parametrize("latent", [False, True])
def test_a_model_computes_with_the_values_of_its_codes(tiny_llama: Path, latent: bool) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    dense = copy.deepcopy(model)
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    weights = quantized_weights(model, *names)
    for name, quantized in weights.items():
        dense.get_submodule(name).weight = nn.Parameter(quantized.dequantize())
    learned = replace_quantized(model, weights, latent=latent)
    assert isinstance(model.get_submodule(names[0]), nn.Linear) and learned.keys() == weights.keys()
    assert torch.equal(model(IDS).logits, dense(IDS).logits)
    model(IDS).logits.square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    leaves = {"computed.reals.scale", *(["computed.latent"] if latent else [])}
    assert trained == {f"{name}.{leaf}" for name in names for leaf in leaves}
    copied = copy.deepcopy(model)
    step(learned[names[0]], rate=0.5)
    assert not torch.equal(copied(IDS).logits, model(IDS).logits)


def test_a_head_goes_on_sharing_the_embedding(tiny_llama: Path) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    weights = quantized_weights(model, "model.embed_tokens")
    learned = replace_quantized(model, weights, latent=True)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding)
    assert head.computed is embedding.computed is learned["model.embed_tokens"]
    assert torch.equal(head.weight, weights["model.embed_tokens"].dequantize())
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"model.embed_tokens.computed.reals.scale", "model.embed_tokens.computed.latent"}
    model(IDS).logits.square().sum().backward()
    both = learned["model.embed_tokens"].latent.grad
    assert isinstance(both, Tensor) and bool((both != 0).any(1).all())  # rows that no token looked up have the head's


def test_what_a_module_does_beside_its_weight_stays(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """Gemma 3 scales what it looks up; phi and others have biases; hooks round inputs."""
    model = load_model(open_checkpoint(make_model(tmp_path / "gemma3", "gemma3_text")), torch.device("cpu"))
    before = model.get_input_embeddings()(IDS)
    (weight,) = quantized_weights(model, "model.embed_tokens").values()
    exact = model.get_input_embeddings().weight.detach()
    calls: list[str] = []
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append("embedded"))
    replace_quantized(model, {"model.embed_tokens": weight}, latent=False)
    after = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(after * exact[IDS], before * weight.dequantize()[IDS])
    assert calls == ["embedded"]


def test_a_bias_stays(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(open_checkpoint(make_model(tmp_path / "neox", "gpt_neox")), torch.device("cpu"))
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    linear, (weight,) = model.get_submodule(name), quantized_weights(model, name).values()
    expected = nn.functional.linear(torch.ones(1, 64), weight.dequantize(), linear.bias)
    replace_quantized(model, {name: weight}, latent=True)
    assert torch.equal(model.get_submodule(name)(torch.ones(1, 64)), expected)


def test_autocast_casts_the_weight_as_any_other(tiny_llama: Path) -> None:
    model = load_model(open_checkpoint(tiny_llama), torch.device("cpu"))
    name = "model.layers.0.mlp.up_proj"
    weights = quantized_weights(model, name)
    learned: dict[str, TrainedWeight] = replace_quantized(model, weights, latent=True)
    x = torch.randn(3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.get_submodule(name)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, nn.functional.linear(x.bfloat16(), weights[name].dequantize().bfloat16()))
    found.sum().backward()
    grads = [parameter.grad for parameter in learned[name].parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)
