"""What compressed-tensors files say of rounding at run time: inputs, the cache, and the weights that go with them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat

LAYER = "model.layers.0.mlp.up_proj"
ATTENTION = [f"model.layers.{index}.self_attn" for index in (0, 1)]


CASES = {
    "w8a8 dynamic": (IntFormat(8, -1), ActivationFormat("int8", True), None),
    "w8a8 static": (IntFormat(8, -1), ActivationFormat("int8", False, "tensor"), None),
    "w8a8 asymmetric": (IntFormat(8, -1, "integer"), ActivationFormat("int8", True), None),
    "w4a8": (IntFormat(4, 32), ActivationFormat("int8", True), None),
    "w8a16, int8 cache": (IntFormat(8, -1), None, CacheFormat("int8")),
    "fp8 channel": (FloatFormat("channel"), ActivationFormat("fp8", True), CacheFormat("fp8")),
    "fp8 tensor": (FloatFormat("tensor"), ActivationFormat("fp8", False, "tensor"), CacheFormat("fp8", "head")),
    "fp8 block": (FloatFormat("block"), ActivationFormat("fp8", True, "group"), None),
    "fp8 weights": (FloatFormat("block"), None, None),
}


@pytest.fixture
def rounding(quantized, with_rounding):
    """rounding(case) → a llama in memory."""

    def make(case):
        number_format, inputs, cache = CASES[case]
        return with_rounding(quantized(number_format), inputs, cache)

    return make


@pytest.mark.parametrize("case", CASES)
def test_the_rest_is_stored_as_what_engines_compute_in(rounding, export, case):
    model = rounding(case)
    directory = export(CompressedTensors(), model)
    dtype = "float16" if case == "w8a16, int8 cache" else "bfloat16"
    assert CompressedTensors().options(model.spec)["dtype"] == dtype
    assert open_checkpoint(directory).spec.config["dtype"] == dtype
    assert load_file(directory / "model.safetensors")["model.norm.weight"].dtype == getattr(torch, dtype)
    assert CompressedTensors().layout(model.spec).nbytes == (directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_rounded_at_run_time_comes_back(rounding, export, case, dtype, assert_same):
    model = rounding(case)
    layout = CompressedTensors(dtype=dtype).layout(model.spec)
    directory = export(CompressedTensors(dtype=dtype), model)
    assert layout.nbytes == (directory / "model.safetensors").stat().st_size
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    assert reopened.spec.activations == model.spec.activations and reopened.spec.kv_cache == model.spec.kv_cache
    assert reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name in model.inner.formats:
        meant, found = model.read(name), reopened.read(name)
        widened = {"scale_dtype": dtype} if isinstance(meant.format, IntFormat) else {}
        assert_same(found, replace(meant, format=replace(meant.format, **widened)))
        assert torch.equal(witness(name), meant.dequantize())
    for name, scale in model.scales.items():
        assert reopened.spec.tensors[name] == model.spec.tensors[name] and torch.equal(reopened.read(name), scale)


def test_blocks_at_the_edges(tiny_llama, in_memory, export):
    tensors = load_file(tiny_llama / "model.safetensors")
    name = f"{LAYER}.weight"
    tensors[name] = torch.randn(130, 300, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tiny_llama / "model.safetensors", {"format": "pt"})
    model = in_memory(open_checkpoint(tiny_llama), {name: FloatFormat("block")})
    directory = export(CompressedTensors(), model)
    assert torch.equal(CompressedTensors.witness(directory)(name), model.read(name).dequantize())
    assert torch.equal(open_checkpoint(directory).read(name).dequantize(), model.read(name).dequantize())


def test_scales_of_the_cache_have_the_shapes_that_the_library_gives_them(rounding, export):
    stored = load_file(export(CompressedTensors(), rounding("fp8 tensor")) / "model.safetensors")
    assert stored[f"{ATTENTION[0]}.k_scale"].shape == (2, 1, 1)
    assert stored[f"{LAYER}.input_scale"].shape == stored[f"{LAYER}.weight_scale"].shape == (1,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kv_cache": CacheFormat("fp8", "token")}, "not scales per token"),
        ({"activations": {"lm_head": ActivationFormat("int8", True)}}, "stays dense"),
        ({"activations": {LAYER: ActivationFormat("fp8", True)}}, "int8 do"),
    ],
)
def test_rounding_that_does_not_fit_is_refused(rounding, change, reason):
    with pytest.raises(RefusedError, match=reason):
        CompressedTensors().layout(replace(rounding("w8a8 dynamic").spec, **change))


@pytest.mark.parametrize(
    ("case", "name", "value"),
    [
        ("w8a8 static", f"{LAYER}.input_scale", None),
        ("w8a8 static", f"{LAYER}.input_scale", torch.ones(2)),
        ("w8a8 static", f"{LAYER}.input_scale", torch.ones(1, dtype=torch.int32)),
        ("w8a8 static", f"{LAYER}.input_scale", torch.zeros(1)),
        ("w8a8 static", f"{LAYER}.weight_scale", None),
        ("w4a8", f"{LAYER}.weight", torch.full((128, 64), 8, dtype=torch.int8)),
        ("fp8 tensor", f"{ATTENTION[0]}.v_scale", None),
        ("fp8 channel", f"{ATTENTION[0]}.v_scale", torch.ones(2)),
        ("fp8 channel", f"{ATTENTION[0]}.v_scale", -torch.ones(1)),
        ("fp8 tensor", f"{LAYER}.weight_scale", torch.zeros(1)),
        ("fp8 tensor", f"{LAYER}.weight_scale", torch.ones(128, 1)),
        ("fp8 tensor", f"{LAYER}.weight", torch.full((128, 64), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)),
        ("fp8 tensor", f"{LAYER}.weight", torch.ones(128, 64)),
    ],
)
def test_files_that_do_not_say_what_they_mean_are_refused(rounding, export, case, name, value, edit):
    directory = export(CompressedTensors(), rounding(case))
    edit(directory, {name: value})
    with pytest.raises(InputError, match=name.rpartition(".")[0]):
        checkpoint = open_checkpoint(directory)
        checkpoint.read(name)
        checkpoint.read(f"{LAYER}.weight")


def test_a_cache_without_scales_is_refused(rounding, export, edit):
    directory = export(CompressedTensors(), rounding("w8a8 dynamic"))
    edit(directory, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"})
    with pytest.raises(InputError, match="no scales"):
        open_checkpoint(directory)
