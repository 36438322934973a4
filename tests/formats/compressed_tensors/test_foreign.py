"""Files as llm-compressor saves them, written by the library compressed-tensors: scales in the model's own type."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.awq.dialect import AWQ
from compress.formats.bitsandbytes.dialect import BitsAndBytes
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.dense.dialect import Dense
from compress.formats.errors import RefusedError
from compress.formats.gguf.dialect import GGUF
from compress.formats.gptq.dialect import GPTQ
from compress.formats.views.fit import Decoded, fit_spec
from compress.kernels.numbers.activations import CacheFormat
from compress.kernels.qtensor import QTensor

library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
quantization = pytest.importorskip("compressed_tensors.quantization")
calculate_qparams = pytest.importorskip("compressed_tensors.quantization.utils").calculate_qparams

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
TENSOR = {"strategy": "tensor", "dynamic": False}
TOKEN = {"strategy": "token", "dynamic": True}
CASES = {
    "int4": {"weights": INT4},
    "int4 asymmetric": {"weights": {**INT4, "symmetric": False}},
    "int8": {"weights": INT8},
    "int8 dynamic": {"weights": INT8, "input_activations": {**INT8, **TOKEN}},
    "int8 static": {"weights": INT8, "input_activations": {**INT8, **TENSOR}},
    "fp8 dynamic": {"weights": FP8, "input_activations": {**FP8, **TOKEN}},
    "fp8 static": {"weights": {**FP8, **TENSOR}, "input_activations": {**FP8, **TENSOR}},
    "cache": None,
    "int4 and cache": {"weights": INT4},
}
LAYER = "model.layers.0.mlp.up_proj.weight"
ATTENTION = "model.layers.1.self_attn"


def fill_scales(model):
    """Scales of the extreme values, as a calibration leaves them; those of inputs and cache are made up."""
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and isinstance(module, torch.nn.Linear):
            size = scheme.weights.group_size or module.weight.shape[1]
            rows = module.weight.view(len(module.weight), -1, size)
            if scheme.weights.strategy == "tensor":
                rows = module.weight.view(-1)
            scale, zero = calculate_qparams(*rows.aminmax(dim=-1), scheme.weights)
            module.weight_scale.data = scale.view(module.weight_scale.shape).to(module.weight.dtype)
            module.weight_zero_point.data = zero.view(module.weight_scale.shape)
        for index, name in enumerate(("input_scale", "k_scale", "v_scale")):
            if hasattr(module, name):
                getattr(module, name).data.fill_(0.3 / (index + 7))


@pytest.fixture
def foreign(tiny_llama, tmp_path):
    """foreign(case, dtype) → the directory of a llama of that type, and the schemes of its layers."""

    def make(case, dtype):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=getattr(torch, dtype))
        scheme = CASES[case]
        groups = {"group_0": quantization.QuantizationScheme(targets=["Linear"], **scheme)} if scheme else {}
        cache = quantization.QuantizationArgs(**{**FP8, **TENSOR}) if "cache" in case else None
        config = quantization.QuantizationConfig(config_groups=groups, kv_cache_scheme=cache, ignore=["lm_head"])
        quantization.apply_quantization_config(model, config)
        fill_scales(model)
        compressor = library.ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(tmp_path / "foreign")
        compressor.update_config(tmp_path / "foreign")
        shutil.copy(tiny_llama / "tokenizer.json", tmp_path / "foreign")
        return tmp_path / "foreign", compressor.quantization_config.config_groups

    return make


def decompressed(directory, groups):
    """Every weight that the library decompresses, by name: in the type that it gives it."""
    parts = {}
    for name, value in load_file(directory / "model.safetensors").items():
        parts.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = value
    for scheme in groups.values():
        decompress = library.BaseCompressor.get_value_from_registry(scheme.format).decompress
        for module, held in parts.items():
            if "weight_scale" in held:
                yield f"{module}.weight", decompress(held, scheme)["weight"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_values_equal_the_library_s_and_come_back(foreign, case, dtype, export):
    directory, groups = foreign(case, dtype)
    checkpoint, theirs = open_checkpoint(directory), dict(decompressed(directory, groups))
    assert {name for name, spec in checkpoint.spec.tensors.items() if spec.format} == theirs.keys()
    assert bool(theirs) == (case != "cache")
    for name, value in theirs.items():
        found = checkpoint.read(name)
        assert value.dtype == getattr(torch, dtype) and torch.equal(found.dequantize().to(value.dtype), value)
    if "cache" in case:
        assert checkpoint.spec.kv_cache == CacheFormat("fp8")
        meant = load_file(directory / "model.safetensors")[f"{ATTENTION}.k_scale"]
        assert torch.equal(checkpoint.read(f"{ATTENTION}.k_scale"), meant.float())
    ours = export(CompressedTensors(dtype=dtype), checkpoint)
    again, witness = open_checkpoint(ours), CompressedTensors.witness(ours)
    assert again.spec.tensors == checkpoint.spec.tensors and again.spec.kv_cache == checkpoint.spec.kv_cache
    for name in checkpoint.spec.tensors:
        found, meant = again.read(name), checkpoint.read(name)
        if isinstance(meant, QTensor):
            assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)
            found, meant = found.dequantize(), meant.dequantize()
        assert torch.equal(found, meant) and torch.equal(witness(name), meant.float())


def logits_of(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(32).unsqueeze(0)).logits


def test_a_cache_alone_is_said_as_the_library_says_it(foreign, tiny_llama, export):
    directory, _ = foreign("cache", "float32")
    artifact = export(CompressedTensors(dtype="float32"), open_checkpoint(directory))
    # transformers rounds keys and values, with the scales of the file.
    assert torch.equal(logits_of(artifact), logits_of(directory))
    assert not torch.equal(logits_of(artifact), logits_of(tiny_llama))
    ours, theirs = (
        json.loads((path / "config.json").read_bytes())["quantization_config"] for path in (artifact, directory)
    )
    theirs["kv_cache_scheme"].setdefault("actorder")  # some versions leave what is null out
    assert ours == {key: theirs[key] for key in ours} | {"version": ours["version"]}
    assert ours["config_groups"] == {} and ours["format"] == "dense"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_weights_are_the_decoded_ones(foreign, dtype, export):
    checkpoint = open_checkpoint(foreign("int4", dtype)[0])
    dense = Dense(dtype="float32")
    decoded = Decoded(checkpoint, fit_spec(checkpoint.spec, dense, requantize=True))
    directory = export(dense, decoded)
    assert torch.equal(open_checkpoint(directory).read(LAYER), checkpoint.read(LAYER).dequantize())


HALVES = [("int4", GPTQ()), ("int4", AWQ()), ("int4", GGUF()), ("int8", BitsAndBytes())]


@pytest.mark.parametrize(("case", "dialect"), HALVES)
def test_containers_of_float16_scales_refuse_float32_ones(foreign, case, dialect):
    spec = open_checkpoint(foreign(case, "float32")[0]).spec
    with pytest.raises(RefusedError, match=r"mlp\.down_proj\.weight exactly.*float32.*dense") as refused:
        fit_spec(spec, dialect, requantize=False)
    assert "requantize" in refused.value.hint


@pytest.mark.parametrize(("case", "dialect"), HALVES)
def test_containers_of_float16_scales_hold_those_of_a_bfloat16_model(foreign, case, dialect, export):
    checkpoint = open_checkpoint(foreign(case, "bfloat16")[0])
    converted = export(dialect, checkpoint)
    reopened, witness = open_checkpoint(converted), dialect.witness(converted)
    meant = checkpoint.read(LAYER).dequantize()
    assert torch.equal(reopened.read(LAYER).dequantize(), meant) and torch.equal(witness(LAYER), meant)


@pytest.mark.parametrize("dialect", [GPTQ(), AWQ(), GGUF()])
def test_bfloat16_scales_below_float16_are_refused_by_name(foreign, dialect, export):
    directory, _ = foreign("int4", "bfloat16")
    tensors = load_file(directory / "model.safetensors")
    tensors[LAYER.replace("weight", "weight_scale")][3] = 2.0**-30
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match=f"{re.escape(LAYER)}.*float16 does not hold its scales"):
        export(dialect, open_checkpoint(directory))
