"""The compressed-tensors container, against a naive unpacker and the rules by which engines find a scheme."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors.config import quantization_config
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.errors import RefusedError
from compress.kernels.numbers.int import IntFormat


def naive(tensors, module, bits):
    """The values of one packed layer [out, in] in plain Python: each line of words is one long number."""
    rows, columns = tensors[f"{module}.weight_shape"].tolist()
    scales = tensors[f"{module}.weight_scale"].float().tolist()

    def codes(words, count):
        number = sum((word & 0xFFFFFFFF) << 32 * index for index, word in enumerate(words))
        return [number >> bits * index & (1 << bits) - 1 for index in range(count)]

    groups = len(scales[0])
    zeros = [[1 << bits - 1] * rows] * groups
    if f"{module}.weight_zero_point" in tensors:
        zeros = [codes(words, rows) for words in tensors[f"{module}.weight_zero_point"].T.tolist()]
    lines = [codes(words, columns) for words in tensors[f"{module}.weight_packed"].tolist()]
    size = columns // groups
    return torch.tensor(
        [
            [scales[row][column // size] * (code - zeros[column // size][row]) for column, code in enumerate(line)]
            for row, line in enumerate(lines)
        ]
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("zero", ["middle", "integer"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (5, -1), (6, 64), (7, 32), (8, -1)])
def test_values_survive_the_file_for_us_for_the_witness_and_for_the_naive_reader(
    quantized, export, bits, group_size, zero, dtype, assert_same
):
    model = quantized(IntFormat(bits, group_size, zero))
    directory = export(CompressedTensors(dtype=dtype), model)
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    assert reopened.dialect == "compressed-tensors" and reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        if spec.format is None:
            stored = meant.to(getattr(torch, dtype))
            assert torch.equal(found, stored) and torch.equal(witness(name), stored.float())
            continue
        stored_format = replace(spec.format, scale_dtype=dtype)
        assert reopened.spec.tensors[name].format == stored_format
        assert_same(found, replace(meant, format=stored_format))
        assert torch.equal(witness(name), meant.dequantize())
        if name.endswith("0.self_attn.k_proj.weight"):
            tensors = load_file(directory / "model.safetensors")
            assert torch.equal(naive(tensors, name.removesuffix(".weight"), bits), meant.dequantize())


@pytest.mark.parametrize("zero", ["middle", "integer"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_extents_that_fill_no_whole_word(tmp_path, tiny_llama, in_memory, export, bits, zero, assert_same):
    tensors = load_file(tiny_llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.randn(37, 45, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tiny_llama / "model.safetensors", {"format": "pt"})
    model = in_memory(open_checkpoint(tiny_llama), {name: IntFormat(bits, 9, zero)})
    directory = export(CompressedTensors(), model)
    assert_same(open_checkpoint(directory).read(name), model.read(name))
    stored = load_file(directory / "model.safetensors")
    assert torch.equal(naive(stored, name.removesuffix(".weight"), bits), model.read(name).dequantize())
    assert torch.equal(CompressedTensors.witness(directory)(name), model.read(name).dequantize())


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_layout_is_exact(quantized, assert_layout_exact, dtype, shard_size):
    assert_layout_exact(CompressedTensors, quantized(IntFormat(4, 32, "integer")), dtype, shard_size)


def test_progress_names_every_tensor_once(quantized, tmp_path):
    model = quantized(IntFormat(4, 32))
    seen = []
    CompressedTensors(max_shard_size="10KB").write(model, tmp_path, seen.append)
    assert sorted(seen) == sorted(model.spec.tensors)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    directory = export(CompressedTensors(), quantized(IntFormat(4, 32)))
    after = json.loads((directory / "config.json").read_bytes())
    described = after.pop("quantization_config")
    assert list(after.items()) == list({**before, "dtype": "float16"}.items())
    assert described == {
        "config_groups": {
            "group_0": {
                "format": "pack-quantized", "input_activations": None, "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None, "dynamic": False, "group_size": 32, "num_bits": 4, "strategy": "group",
                    "symmetric": True, "type": "int",
                },
            }
        },
        "format": "pack-quantized", "global_compression_ratio": None, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "version": "0.20.0",
    }  # fmt: skip
    for path in tiny_llama.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (directory / path.name).read_bytes() == path.read_bytes()


def test_a_quantized_head_is_untied(make_model, tmp_path, in_memory, export, linear_weights):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    names = [*linear_weights(checkpoint), "lm_head.weight"]
    directory = export(CompressedTensors(), in_memory(checkpoint, dict.fromkeys(names, IntFormat(4, 32))))
    config = json.loads((directory / "config.json").read_bytes())
    assert config["tie_word_embeddings"] is False and config["quantization_config"]["ignore"] == []
    assert open_checkpoint(directory).spec.tensors["lm_head.weight"].format == IntFormat(4, 32)


# How vLLM 0.32 and the library find the scheme of a layer, as far as we write rules: `ignore` goes first, then
# full names, then (vLLM) the joined layer's parts, then the class.


def scheme_of(config, module, joined=None):
    if module in config["ignore"] or (joined and all(part in config["ignore"] for part in joined)):
        return None
    groups = config["config_groups"].values()
    for group in groups:
        if module in group["targets"]:
            return group["weights"]
    for group in groups:
        if joined and all(part in group["targets"] for part in joined):
            return group["weights"]
    return next((group["weights"] for group in groups if "Linear" in group["targets"]), None)


INT4, INT8, ASYM = IntFormat(4, 32), IntFormat(8, -1), IntFormat(4, 16, "integer")
CHOICES = {
    "alike": lambda layer, leaf: INT4,
    "down in 8 bits": lambda layer, leaf: INT8 if leaf == "down_proj" else INT4,
    "attention in 8 bits": lambda layer, leaf: INT8 if leaf in ("q_proj", "k_proj", "v_proj") else INT4,
    "layer 1 dense": lambda layer, leaf: None if layer == 1 else INT4,
    "everything": lambda layer, leaf: [None, INT4, INT8, ASYM][layer % 4],
}


@pytest.mark.parametrize("case", CHOICES)
def test_engines_find_the_scheme_of_every_layer(case, decoder):
    specs = decoder(5, CHOICES[case])
    config = quantization_config(ModelSpec({}, specs))
    for name, spec in specs.items():
        module = name.removesuffix(".weight")
        if ".layers." not in name or len(spec.shape) != 2:
            continue
        joined = [module.replace("q_proj", f"{x}_proj") for x in "qkv"] if "q_proj" in module else None
        for found in (scheme_of(config, module), scheme_of(config, f"{module}+k+v", joined or [module])):
            if spec.format is None:
                assert found is None
                continue
            assert (found["num_bits"], found["group_size"] or -1) == (spec.format.bits, spec.format.group_size)
            assert found["symmetric"] == (spec.format.zero == "middle")
    assert scheme_of(config, "lm_head") is None


def test_mixed_models_come_back(quantized, export, assert_same):
    rules = {r"0.*down_proj": IntFormat(8, -1), r"1.*down_proj": IntFormat(4, 64, "integer"), "[qkv]_proj": INT4}
    model = quantized(rules)
    directory = export(CompressedTensors(), model)
    reopened = open_checkpoint(directory)
    witness = CompressedTensors.witness(directory)
    for name in model.formats:
        assert_same(reopened.read(name), model.read(name))
        assert torch.equal(witness(name), model.read(name).dequantize())


@pytest.mark.parametrize(
    ("name", "spec", "reason"),
    [
        ("model.layers.0.mlp.up_proj.weight", TensorSpec((32, 32), "float32", IntFormat(4, 32, "real")), "minimums"),
        ("model.embed_tokens.weight", TensorSpec((32, 32), "float32", INT4), "leave it dense"),
        ("model.layers.0.mlp.up_proj.weight", TensorSpec((32, 33), "float32", INT4), "group sizes that work"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, spec, reason):
    model = ModelSpec({}, {name: spec})
    assert reason in CompressedTensors().misfit(name, spec, model)
    with pytest.raises(RefusedError, match=re.escape(name)):
        CompressedTensors().layout(model)


@pytest.mark.parametrize("scales", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scales_keep_their_type_or_are_float32(quantized, export, scales, dtype, assert_same):
    model = quantized(IntFormat(4, 32, "integer", scales))
    layout = CompressedTensors(dtype=dtype).layout(model.spec)
    directory = export(CompressedTensors(dtype=dtype), model)
    assert layout.nbytes == (directory / "model.safetensors").stat().st_size
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    for name, number_format in model.formats.items():
        stored_format = replace(number_format, scale_dtype="float32" if dtype == "float32" else scales)
        assert_same(reopened.read(name), replace(model.read(name), format=stored_format))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_a_model_without_quantized_tensors_is_refused(tiny_llama):
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        CompressedTensors().layout(open_checkpoint(tiny_llama).spec)
