"""INT8 and FP8: the forward that is measured is the one an engine computes, written out here by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.fp8 import FP8
from compress.passes.gptq import GPTQ
from compress.passes.int8 import INT8
from compress.passes.model.weights import Weights
from compress.passes.model.whole.loading import load_model
from compress.passes.mxfp4 import MXFP4
from compress.passes.nvfp4 import NVFP4
from compress.passes.options.inputs import smoothing_scale
from compress.passes.rtn import RTN

PASSES = {
    "int8 dynamic": INT8(),
    "int8 static": INT8(activations="static"),
    "int8 none": INT8(activations="none"),
    "fp8 tensor dynamic": FP8(per="tensor"),
    "fp8 channel static": FP8(activations="static"),
    "fp8 block dynamic": FP8(per="block"),
    "fp8 search": FP8(search="inputs"),
}


class ByHand(torch.nn.Module):
    """A quantized linear: integer (or FP8) operands, their product, then the scales."""

    def __init__(self, linear, weight, grid, scale, group):
        super().__init__()
        self.linear, self.weight, self.grid, self.scale, self.group = linear, weight, grid, scale, group

    def round(self, x, scale):
        if self.grid == "int8":
            return (x / scale).round().clamp(-128, 127) * scale
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale

    def forward(self, x):
        top = 127 if self.grid == "int8" else 448
        if self.scale is not None:
            x = self.round(x, self.scale)
        elif self.group and x.shape[-1] > 128:
            x = torch.cat([self.round(part, part.abs().amax(-1, keepdim=True) / top) for part in x.split(128, -1)], -1)
        elif self.grid:
            x = self.round(x, x.abs().amax(-1, keepdim=True) / top)
        return torch.nn.functional.linear(x, self.weight, self.linear.bias)


def by_hand(source, run, rows):
    """Logits of transformers' own model whose linears are replaced."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name in [name for name in run.model.rewritten if name.endswith(".weight")]:
        module = name.removesuffix(".weight")
        stored, number_format = run.model.read(name), run.model.spec.activations.get(module)
        scale = None
        if number_format and not number_format.dynamic:
            scale = run.model.read(f"{module}.input_scale")
        parent, _, leaf = module.rpartition(".")
        grid = number_format and number_format.grid
        group = bool(number_format and number_format.per == "group")
        hand = ByHand(model.get_submodule(module), stored.dequantize(), grid, scale, group)
        setattr(model.get_submodule(parent), leaf, hand)
    with torch.no_grad():
        return model(rows.ids).logits


@pytest.mark.parametrize(
    "family, name", [*(("llama", name) for name in PASSES), ("gpt_neox", "int8 static"), ("qwen3", "fp8 block dynamic")]
)
def test_the_forward_rounds_as_an_engine_does(family, name, tmp_path, make_model, swept, scores, rows):
    source = make_model(tmp_path / family, family)
    run = swept(source, tmp_path / "work", [PASSES[name]])
    expected = by_hand(source, run, rows)
    model = load_model(run.model, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(rows.ids).logits, expected, rtol=1e-3, atol=1e-3)
    found = scores(run, run.model, run.source)
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)(rows.ids).logits
    log_p, log_q = expected[:, :-1].log_softmax(-1), reference[:, :-1].log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    assert found.kl_divergence == pytest.approx(float(kl), rel=0.02) and found.kl_divergence > 1e-6


def test_activations_cost_more_than_none(tmp_path, tiny_llama, swept, scores):
    losses = {}
    for mode in ("none", "dynamic", "static"):
        run = swept(tiny_llama, tmp_path / mode, [INT8(activations=mode)])
        losses[mode] = scores(run, run.model, run.source).kl_divergence
    assert 0 < losses["none"] < losses["dynamic"] < losses["static"] < 0.05


def test_what_plan_promises_is_what_comes(tmp_path, tiny_llama, begin, swept):
    rules = [{"match": "*.down_proj", "value": "static"}, {"match": "*.o_proj", "value": "none"}, {"value": "dynamic"}]
    step = INT8.model_validate({"activations": rules, "skip": ["*.gate_proj"]})
    planned = step.plan(
        begin(tiny_llama, tmp_path / "a").model.spec, begin(tiny_llama, tmp_path / "a").skeleton.anatomy
    )
    run = swept(tiny_llama, tmp_path / "b", [step])
    assert run.model.spec == planned
    layer = "model.layers.1."
    assert planned.activations[f"{layer}mlp.down_proj"] == ActivationFormat("int8", False, "tensor")
    assert planned.activations[f"{layer}mlp.up_proj"] == ActivationFormat("int8", True, "token")
    assert not {f"{layer}self_attn.o_proj", f"{layer}mlp.gate_proj"} & set(planned.activations)
    assert planned.tensors[f"{layer}self_attn.o_proj.weight"].format == IntFormat(8, -1)
    assert [name for name in planned.tensors if name.endswith("input_scale")] == [
        f"model.layers.{index}.mlp.down_proj.input_scale" for index in range(2)
    ]
    assert run.model.read(f"{layer}mlp.down_proj.input_scale").shape == (1,)


def test_a_resumed_run_rounds_as_well(tmp_path, tiny_llama, swept):
    step = INT8(activations="static")
    first = swept(tiny_llama, tmp_path / "work", [step])
    again = swept(tiny_llama, tmp_path / "work", [step])
    assert again.model.spec == first.model.spec and again.model.spec.activations
    name = "model.layers.0.mlp.up_proj.input_scale"
    assert torch.equal(again.model.read(name), first.model.read(name))


def test_weights_are_int8_with_positive_scales(tmp_path, tiny_llama, swept):
    for search in ("off", "weights", "inputs"):
        run = swept(tiny_llama, tmp_path / search, [INT8(search=search)])
        weight = run.model.read("model.layers.0.mlp.up_proj.weight")
        assert isinstance(weight, QTensor) and weight.format == IntFormat(8, -1)
        assert weight.params["scale"].shape == (128, 1) and bool((weight.params["scale"] > 0).all())


def test_an_embedding_has_no_input_to_round(tmp_path, tiny_llama, begin, swept):
    run = begin(tiny_llama, tmp_path / "work")
    with pytest.raises(RefusedError, match="looked up"):
        INT8(include=("lm_head",)).plan(run.model.spec, run.skeleton.anatomy)
    run = swept(tiny_llama, tmp_path / "work", [INT8(include=("lm_head",), activations="none")])
    assert "model.embed_tokens.weight" in run.model.rewritten


def test_an_untied_head_rounds_its_input(tmp_path, make_model, swept, scores):
    source = make_model(tmp_path / "neox", "qwen3")
    losses = []
    for mode in ("none", "static"):
        run = swept(source, tmp_path / mode, [INT8(include=("lm_head",), activations=mode)])
        losses.append(scores(run, run.model, run.source).kl_divergence)
    assert 0 < losses[0] < losses[1]


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_a_scale_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="positive and finite"):
        Weights(lambda name: torch.tensor([value])).scale("x.input_scale")


def test_gptq_chooses_the_weights_that_int8_prepared(tmp_path, tiny_llama, swept, scores):
    losses = []
    for passes in ([INT8(activations="static")], [INT8(activations="static"), GPTQ(bits=8, group_size=-1)]):
        run = swept(tiny_llama, tmp_path / str(len(passes)), passes)
        losses.append(scores(run, run.model, run.source).kl_divergence)
        assert run.model.spec.activations["model.layers.0.mlp.up_proj"] == ActivationFormat("int8", False, "tensor")
    assert losses[1] < 1.2 * losses[0]


@pytest.mark.parametrize("name", ["fp8", "mxfp4", "nvfp4"])
def test_gptq_solves_for_floats(name, tmp_path, tiny_llama, swept, scores):
    plain = {"fp8": FP8(activations="none", search="off"), "mxfp4": MXFP4(search="off"), "nvfp4": NVFP4(search="off")}
    losses = []
    for number, step in enumerate((plain[name], GPTQ(format=name))):
        run = swept(tiny_llama, tmp_path / str(number), [step])
        losses.append(scores(run, run.model, run.source).kl_divergence)
    assert 0 < losses[1] < losses[0]


def test_without_a_search_the_largest_int8_weight_is_in_reach():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    assert {float(value) > 0 for value in weight.gather(1, weight.abs().argmax(1, keepdim=True))} == {True, False}
    stats = LinearStats(frozenset(), 64, torch.device("cpu"))
    found = INT8(search="off").siblings({"x": weight}, stats)["x"].weight
    scale = found.params["scale"].float()
    assert bool((scale > 0).all())
    half_a_step = 0.5 + 127.5 * 2**-10  # the scale is rounded to float16, twice
    assert bool(((found.dequantize() - weight).abs() <= half_a_step * scale).all())


def test_ranges_differ_as_asked(tmp_path, tiny_llama, swept):
    scales = {}
    for name, options in {
        "minmax": {"range": "minmax"},
        "sigma": {"range": "sigma", "sigma": 2},
        "percentile": {"range": "percentile", "percentile": 90},
        "mse": {},
    }.items():
        run = swept(tiny_llama, tmp_path / name, [INT8(activations="static", **options)])
        scales[name] = float(run.model.read("model.layers.0.mlp.down_proj.input_scale"))
    assert scales["percentile"] < scales["sigma"] < scales["minmax"] and scales["mse"] < scales["minmax"] * 1.01
    assert len(set(scales.values())) == 4


def with_outliers(source, target):
    """The same function, but some inputs of q/k/v and gate/up are 60 times as large and their columns as small."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for layer in model.model.layers:
        for norm, group in (
            (layer.input_layernorm, [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]),
            (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
        ):
            norm.weight.data[5] *= 60
            for linear in group:
                linear.weight.data[:, 5] /= 60
    model.save_pretrained(target)
    make_tokenizer_of(source, target)
    return target


def make_tokenizer_of(source, target):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_smoothquant_moves_outliers_into_weights(mode, tmp_path, tiny_llama, swept, scores):
    source = with_outliers(tiny_llama, tmp_path / "outliers")
    losses = []
    for smooth in (None, 0.5):
        run = swept(source, tmp_path / str(smooth), [INT8(activations=mode, smooth=smooth)])
        losses.append(scores(run, run.model, run.source).kl_divergence)
    assert losses[1] < 0.5 * losses[0]
    assert "model.layers.0.input_layernorm.weight" in run.model.rewritten


def test_the_smoothing_scale_is_equation_4():
    inputs, weights = (
        torch.tensor([4.0, 9.0, 0.0]),
        [torch.tensor([[1.0, -2.0, 5.0]]), torch.tensor([[-16.0, 1.0, 0.0]])],
    )
    assert smoothing_scale(inputs, weights, 0.5).tolist() == pytest.approx([4**0.5 / 16**0.5, 9**0.5 / 2**0.5, 1])


def test_other_passes_leave_activations_alone(tmp_path, tiny_llama, swept):
    run = swept(tiny_llama, tmp_path / "work", [INT8(include=("*.up_proj",)), RTN(include=("*.down_proj",))])
    assert set(run.model.spec.activations) == {f"model.layers.{index}.mlp.up_proj" for index in range(2)}
