"""The compressed-tensors container against the library of that name: its packers, and transformers through it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors import CompressedTensors
from compress.formats.compressed_tensors_config import quantization_config
from compress.formats.compressed_tensors_schemes import Scheme
from compress.kernels.int_format import IntFormat
from compress.kernels.qtensor import quantize

library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")

INT_FORMATS = [
    IntFormat(bits, size, zero) for bits in range(2, 9) for size in (16, -1) for zero in ("middle", "integer")
]


def ignore(_):
    pass


def scheme_and_compressor(number_format, inputs=None):
    """The library's own reading of what our config.json says of one layer, and its compressor for it."""
    name = "model.layers.0.mlp.up_proj.weight"
    model = ModelSpec({}, {name: TensorSpec((32, 32), "float32", number_format)}, activations=inputs or {})
    config = library.QuantizationConfig.model_validate(quantization_config(model))
    [scheme] = config.config_groups.values()
    return scheme, library.BaseCompressor.get_value_from_registry(scheme.format)


def as_the_library_has_them(tensor, scale_dtype):
    """Weight, scale and (signed) zero point as a module has them before the library compresses it."""
    parts = {"weight": tensor.dequantize(), "weight_scale": tensor.params["scale"].to(scale_dtype)}
    if "zero" in tensor.params:
        signed = tensor.params["zero"].int() - (1 << tensor.format.bits - 1)
        parts["weight_zero_point"] = signed.to(torch.int8)
    return parts


@pytest.mark.parametrize("number_format", INT_FORMATS, ids=lambda found: found.name)
@pytest.mark.parametrize("shape", [(32, 64), (37, 48)])
def test_packed_bytes_and_values_equal_the_library_s(number_format, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensor = quantize(weight, number_format, number_format.fit(weight))
    scheme, compressor = scheme_and_compressor(number_format)
    theirs = compressor.compress(as_the_library_has_them(tensor, torch.float32), scheme)
    ours = Scheme(number_format).storage.encode(tensor, "float32")
    assert ours.keys() == theirs.keys()
    for part, value in ours.items():
        assert value.dtype == theirs[part].dtype and torch.equal(value, theirs[part]), part
    decompressed = compressor.decompress(ours, scheme)["weight"]
    assert torch.equal(decompressed, tensor.dequantize())
    specs = Scheme(number_format).storage.parts(shape, number_format, "float32")
    assert {part: (spec.shape, spec.dtype) for part, spec in specs.items()} == {
        part: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for part, value in ours.items()
    }


def linear_weights(checkpoint):
    return [name for name, spec in checkpoint.spec.tensors.items() if ".layers." in name and len(spec.shape) == 2]


def alike(name):
    return IntFormat(4, 32)


def mixed(name):
    """8 bits for some layers."""
    return IntFormat(8, -1) if "down_proj" in name or "4h_to_h" in name else IntFormat(4, 32)


def asymmetric(name):
    return IntFormat(4, 32, "integer")


@pytest.fixture
def logits(make_model, tmp_path, in_memory):
    """logits(family, choose, dtype) → of our values in a dense model, and of transformers with the artifact."""

    def compare(family, choose, dtype, **options):
        checkpoint = open_checkpoint(make_model(tmp_path / "source", family))
        model = in_memory(checkpoint, {name: choose(name) for name in linear_weights(checkpoint)})
        (tmp_path / "artifact").mkdir()
        CompressedTensors(dtype=dtype).write(model, tmp_path / "artifact", ignore)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", dtype="auto", **options)
        assert theirs.dtype == getattr(torch, dtype)
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=theirs.dtype)
        ours.load_state_dict({name: model.read(name).dequantize() for name in model.formats}, strict=False)
        tokens = torch.arange(32).unsqueeze(0)
        with torch.no_grad():
            return ours(tokens).logits.float(), theirs(tokens).logits.float()

    return compare


@pytest.mark.parametrize("choose", [alike, mixed])
def test_transformers_answers_as_our_values_do(logits, family, choose):
    ours, theirs = logits(family, choose, "float32")
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
def test_transformers_reads_asymmetric_weights_only_when_told_to_decode_them(logits, family):
    ours, theirs = logits(family, asymmetric, "float32", quantization_config=CompressedTensorsConfig(dequantize=True))
    assert torch.equal(ours, theirs)


def test_transformers_does_not_load_asymmetric_weights_packed(logits):
    # The library packs no zero points where it prepares modules for loading; llm-compressor's files fail alike.
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        logits("llama", asymmetric, "float32")


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2e-3), ("bfloat16", 3e-2)])
def test_transformers_answers_in_half_precision(logits, dtype, step):
    ours, theirs = logits("llama", mixed, dtype)
    assert float((ours - theirs).abs().max()) <= step * float(ours.abs().max())
