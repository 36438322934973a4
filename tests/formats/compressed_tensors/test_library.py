"""The compressed-tensors container against the library of that name: its packers, and transformers through it."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors.config import quantization_config
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.compressed_tensors.schemes import Scheme
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import quantize

library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
infer_module_format = pytest.importorskip("compressed_tensors.compressors.format").infer_module_format

INT_FORMATS = [
    IntFormat(bits, size, zero) for bits in range(2, 9) for size in (16, -1) for zero in ("middle", "integer")
]
INT8_INPUTS = [ActivationFormat("int8", True), ActivationFormat("int8", False, "tensor")]
FP8_INPUTS = [ActivationFormat("fp8", True), ActivationFormat("fp8", False, "tensor"), None]
SCHEMES = [
    *(Scheme(number_format) for number_format in INT_FORMATS),
    *(Scheme(IntFormat(8, -1, zero), inputs) for inputs in INT8_INPUTS for zero in ("middle", "integer")),
    Scheme(IntFormat(4, 16), INT8_INPUTS[0]),
    *(Scheme(FloatFormat(per), inputs) for inputs in FP8_INPUTS for per in ("tensor", "channel")),
    Scheme(FloatFormat("block"), ActivationFormat("fp8", True, "group")),
    Scheme(FloatFormat("block")),
]
MODULE = "model.layers.0.mlp.up_proj"


def library_scheme(scheme):
    """The library's own reading of what our config.json says of one layer."""
    specs = {f"{MODULE}.weight": TensorSpec((32, 32), "float32", scheme.number_format)}
    activations = {MODULE: scheme.inputs} if scheme.inputs else {}
    config = library.QuantizationConfig.model_validate(quantization_config(ModelSpec({}, specs, {}, activations)))
    assert config.format == scheme.format
    [found] = config.config_groups.values()
    return found


def as_the_library_has_them(tensor, parts):
    """Weight, scale and (signed) zero point as a module has them before the library compresses it."""
    given = {"weight": tensor.dequantize(), "weight_scale": parts["weight_scale"]}
    if "zero" in tensor.params:
        signed = tensor.params["zero"].int() - (1 << tensor.format.bits - 1)
        given["weight_zero_point"] = signed.to(torch.int8)
    return given


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda found: f"{found.number_format.name} {found.format}")
@pytest.mark.parametrize("shape", [(32, 64), (37, 48), (200, 256)])
def test_bytes_and_values_equal_the_library_s(scheme, shape):
    number_format = scheme.number_format
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tensor = quantize(weight, number_format, number_format.fit(weight))
    theirs = library_scheme(scheme)
    assert infer_module_format(torch.nn.Linear, theirs) == scheme.format
    compressor = library.BaseCompressor.get_value_from_registry(scheme.format)
    ours = scheme.storage.encode("w", tensor, "float32")
    packed = compressor.compress(as_the_library_has_them(tensor, ours), theirs)
    assert ours.keys() == packed.keys()
    for part, value in ours.items():
        assert value.dtype == packed[part].dtype and torch.equal(bits_of(value), bits_of(packed[part])), part
    assert torch.equal(compressor.decompress(ours, theirs)["weight"], tensor.dequantize())
    specs = scheme.storage.parts(shape, number_format, "float32")
    assert {part: (spec.shape, spec.dtype) for part, spec in specs.items()} == {
        part: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for part, value in ours.items()
    }


def bits_of(tensor):
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def alike(name):
    return IntFormat(4, 32)


def mixed(name):
    """8 bits for some layers."""
    return IntFormat(8, -1) if "down_proj" in name or "4h_to_h" in name else IntFormat(4, 32)


def asymmetric(name):
    return IntFormat(4, 32, "integer")


@pytest.fixture
def logits(make_model, tmp_path, in_memory, linear_weights, export):
    """logits(family, choose, dtype) → of our values in a dense model, and of transformers with the artifact."""

    def compare(family, choose, dtype, **options):
        checkpoint = open_checkpoint(make_model(tmp_path / "source", family))
        model = in_memory(checkpoint, {name: choose(name) for name in linear_weights(checkpoint)})
        directory = export(CompressedTensors(dtype=dtype), model)
        theirs = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", **options)
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
    if Version(transformers.__version__) < Version("5.18"):  # 5.17 makes place for them
        ours, theirs = logits("llama", asymmetric, "float32")
        assert torch.equal(ours, theirs)
        return
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        logits("llama", asymmetric, "float32")


@pytest.mark.parametrize(("dtype", "step"), [("float16", 2e-3), ("bfloat16", 3e-2)])
def test_transformers_answers_in_half_precision(logits, dtype, step):
    ours, theirs = logits("llama", mixed, dtype)
    assert float((ours - theirs).abs().max()) <= step * float(ours.abs().max())
