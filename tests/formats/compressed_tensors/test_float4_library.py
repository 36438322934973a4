"""MXFP4 and NVFP4 in compressed-tensors files, against the library of that name and transformers through it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors.config import quantization_config
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.compressed_tensors.schemes import Scheme
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import quantize

MXFP4, NVFP4 = Float4Format("mxfp4"), Float4Format("nvfp4")
BOTH = pytest.mark.parametrize("number_format", [MXFP4, NVFP4], ids=lambda found: found.name)
LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def library():
    return pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")


def compressor_of(library, number_format):
    return library.BaseCompressor.get_value_from_registry(f"{number_format.name}-pack-quantized")


def preset(library, number_format):
    return library.quantization.preset_name_to_scheme(f"{number_format.name}A16", ["Linear"])


@BOTH
def test_the_configuration_says_what_the_library_s_preset_says(library, number_format):
    model = ModelSpec({}, {f"{LAYER}.weight": TensorSpec((32, 32), "float32", number_format)})
    found = library.QuantizationConfig.model_validate(quantization_config(model))
    [scheme] = found.config_groups.values()
    meant = preset(library, number_format)
    assert scheme.weights.model_dump() == meant.weights.model_dump() and scheme.input_activations is None
    assert found.format == scheme.format == Scheme(number_format).format
    assert library.compressors.format.infer_module_format(torch.nn.Linear, meant) == found.format


@BOTH
@pytest.mark.parametrize("shape", [(32, 64), (37, 96), (200, 256)])
def test_bytes_and_values_equal_the_library_s(library, number_format, shape, octets):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[:, :4] *= 1000  # scales of many sizes
    tensor = quantize(weight, number_format, number_format.fit(weight))
    ours = Scheme(number_format).storage.encode("w", tensor, "float16")
    compressor, scheme = compressor_of(library, number_format), preset(library, number_format)
    # On the grid itself, so that signs of zeros stay: the library's rounding drops them.
    grid = number_format.value(tensor.codes.float(), {"scale": torch.ones(())})
    pack = library.compressors.nvfp4.pack_fp4_to_uint8
    assert octets(ours["weight_packed"]) == octets(pack(grid))
    given = {"weight": tensor.dequantize() + 0.0, "weight_scale": block_scales(tensor)}
    if number_format == NVFP4:
        given["weight_global_scale"] = 1 / tensor.params["tensor_scale"][0]
    packed = compressor.compress(given, scheme)
    assert ours.keys() == packed.keys()
    assert all(octets(ours[part]) == octets(packed[part]) for part in ours if part != "weight_packed")
    assert octets(pack(grid + 0.0)) == octets(packed["weight_packed"])
    assert torch.equal(compressor.decompress(ours, scheme)["weight"].float(), tensor.dequantize())


def block_scales(tensor):
    """The scales of blocks as the library has them before it compresses them."""
    stored = tensor.params["scale"]
    return 2.0 ** (stored.float() - 127) if tensor.format == MXFP4 else stored.view(torch.float8_e4m3fn).float()


def compressed(library, weights, number_format):
    """What the library makes of a model: parts by name. The scales are its own observers'."""
    compressor, scheme = compressor_of(library, number_format), preset(library, number_format)
    utils = library.quantization.utils
    parts = {}
    for name, weight in weights.items():
        blocks = weight.unflatten(1, (-1, number_format.block))
        given = {"weight": weight}
        if number_format == NVFP4:
            given["weight_global_scale"] = utils.generate_gparam(weight.min(), weight.max()).reshape(1)
        whole = given.get("weight_global_scale")
        given["weight_scale"], _ = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights, whole)
        found = compressor.compress(given, scheme)
        parts |= {f"{name.removesuffix('weight')}{part}": value for part, value in found.items()}
    return parts


@pytest.fixture
def theirs(library, tiny_llama, linear_weights):
    """theirs(number format) → a llama that the library compressed, with a row and a block of zeros."""

    def make(number_format):
        dense = load_file(tiny_llama / "model.safetensors")
        weights = {name: dense.pop(name) for name in linear_weights(open_checkpoint(tiny_llama))}
        weights[f"{LAYER}.weight"][3] = weights[f"{LAYER}.weight"][5, 32:64] = 0
        save_file(dense | compressed(library, weights, number_format), tiny_llama / "model.safetensors")
        stored_as = Scheme(number_format).format
        group = preset(library, number_format).model_copy(update={"format": stored_as})
        settings = library.QuantizationConfig(
            config_groups={"group_0": group}, ignore=["lm_head"], format=stored_as, quantization_status="compressed"
        )
        config = json.loads((tiny_llama / "config.json").read_bytes())
        config["quantization_config"] = settings.to_dict()
        (tiny_llama / "config.json").write_text(json.dumps(config, default=str))
        return tiny_llama, weights

    return make


@BOTH
def test_a_file_of_the_library_holds_for_us_what_it_holds_for_the_library(
    library, theirs, export, number_format, octets
):
    directory, weights = theirs(number_format)
    model, stored = open_checkpoint(directory), load_file(directory / "model.safetensors")
    witness, compressor = CompressedTensors.witness(directory), compressor_of(library, number_format)
    for name in weights:
        start = name.removesuffix("weight")
        parts = {part.removeprefix(start): value for part, value in stored.items() if part.startswith(start)}
        meant = compressor.decompress(parts, preset(library, number_format))["weight"]
        found = model.read(name).dequantize()
        assert model.spec.tensors[name].format == number_format
        assert meant.dtype == torch.bfloat16 and torch.equal(found.bfloat16(), meant)
        assert torch.equal(witness(name), found)
    again = load_file(export(CompressedTensors(dtype="float32"), model) / "model.safetensors")
    changed = {name for name in stored if octets(again[name]) != octets(stored[name])}
    assert changed == ({f"{LAYER}.weight_scale"} if number_format == MXFP4 else set())  # zeros had the exponent 0


def test_a_global_scale_that_is_no_power_of_two_is_read_to_rounding(library, theirs):
    directory, _ = theirs(NVFP4)
    model, stored = open_checkpoint(directory), load_file(directory / "model.safetensors")
    whole = stored[f"{LAYER}.weight_global_scale"]
    assert float(whole.frexp().mantissa) != 0.5
    found = model.read(f"{LAYER}.weight")
    scales = (stored[f"{LAYER}.weight_scale"].float() / whole).repeat_interleave(16, 1)
    meant = library.compressors.nvfp4.unpack_fp4_from_uint8(stored[f"{LAYER}.weight_packed"], *found.shape) * scales
    torch.testing.assert_close(found.dequantize(), meant, rtol=2**-22, atol=0)


@BOTH
def test_transformers_answers_as_our_values_do(library, quantized, export, tiny_llama, number_format):
    model = quantized(number_format)
    directory = export(CompressedTensors(), model)
    tokens = torch.arange(32).unsqueeze(0)
    ours = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    read = {name: model.read(name) for name in model.spec.tensors}
    ours.load_state_dict(
        {name: found.dequantize() if name in model.formats else found for name, found in read.items()},
        strict=False,
    )
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
        # What recipes/engines/facts.py says: beside tensors of another type, it computes with two.
        half = export(CompressedTensors(dtype="float16"), model, "half")
        with pytest.raises(RuntimeError, match="same dtype"):
            AutoModelForCausalLM.from_pretrained(half)(tokens)
