"""The compressed-tensors container, against a naive unpacker and the rules by which engines find a scheme."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors import CompressedTensors
from compress.formats.compressed_tensors_config import quantization_config
from compress.formats.errors import InputError, RefusedError
from compress.kernels.int_format import IntFormat


def ignore(_):
    pass


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


def linear_weights(checkpoint):
    """The matrices of the decoder blocks, by name."""
    return [name for name, spec in checkpoint.spec.tensors.items() if ".layers." in name and len(spec.shape) == 2]


@pytest.fixture
def quantized(tiny_llama, in_memory):
    """quantized(number format or {name pattern: number format}) → a llama, quantized in memory."""

    def make(rules):
        checkpoint = open_checkpoint(tiny_llama)
        rules = rules if isinstance(rules, dict) else {"": rules}
        formats = {
            name: number_format
            for name in linear_weights(checkpoint)
            for pattern, number_format in rules.items()
            if re.search(pattern, name) and number_format
        }
        return in_memory(checkpoint, formats)

    return make


@pytest.fixture
def export(tmp_path):
    """export(model, **options) → the artifact's directory."""

    def write(model, **options):
        directory = tmp_path / "artifact"
        directory.mkdir()
        CompressedTensors(**options).write(model, directory, ignore)
        return directory

    return write


def assert_same(found, meant):
    assert found.format == meant.format and torch.equal(found.codes, meant.codes)
    assert found.params.keys() == meant.params.keys()
    assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("zero", ["middle", "integer"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (5, -1), (6, 64), (7, 32), (8, -1)])
def test_values_survive_the_file_for_us_for_the_witness_and_for_the_naive_reader(
    quantized, export, bits, group_size, zero, dtype
):
    model = quantized(IntFormat(bits, group_size, zero))
    directory = export(model, dtype=dtype)
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
def test_extents_that_fill_no_whole_word(tmp_path, tiny_llama, in_memory, export, bits, zero):
    tensors = load_file(tiny_llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.randn(37, 45, generator=torch.Generator().manual_seed(0))
    save_file(tensors, tiny_llama / "model.safetensors", {"format": "pt"})
    model = in_memory(open_checkpoint(tiny_llama), {name: IntFormat(bits, 9, zero)})
    directory = export(model)
    assert_same(open_checkpoint(directory).read(name), model.read(name))
    stored = load_file(directory / "model.safetensors")
    assert torch.equal(naive(stored, name.removesuffix(".weight"), bits), model.read(name).dequantize())
    assert torch.equal(CompressedTensors.witness(directory)(name), model.read(name).dequantize())


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_layout_is_exact(quantized, export, dtype, shard_size):
    model = quantized(IntFormat(4, 32, "integer"))
    layout = CompressedTensors(dtype=dtype, max_shard_size=shard_size).layout(model.spec)
    directory = export(model, dtype=dtype, max_shard_size=shard_size)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files}
    assert (len(sizes) > 1) == (shard_size == "40KB")


def test_progress_names_every_tensor_once(quantized, tmp_path):
    model = quantized(IntFormat(4, 32))
    seen = []
    CompressedTensors(max_shard_size="10KB").write(model, tmp_path, seen.append)
    assert sorted(seen) == sorted(model.spec.tensors)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    directory = export(quantized(IntFormat(4, 32)))
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


def test_a_quantized_head_is_untied(make_model, tmp_path, in_memory, export):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    names = [*linear_weights(checkpoint), "lm_head.weight"]
    directory = export(in_memory(checkpoint, dict.fromkeys(names, IntFormat(4, 32))))
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


def decoder(layers, chosen):
    """Specs of a decoder of 32 × 32 layers; `chosen(layer, leaf)` gives each its number format."""
    leaves = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    specs = {"model.embed_tokens.weight": TensorSpec((32, 32), "float32")}
    for layer in range(layers):
        for leaf in leaves:
            name = f"model.layers.{layer}.{leaf}.weight"
            specs[name] = TensorSpec((32, 32), "float32", chosen(layer, leaf.rpartition(".")[2]))
    return specs


INT4, INT8, ASYM = IntFormat(4, 32), IntFormat(8, -1), IntFormat(4, 16, "integer")
CHOICES = {
    "alike": lambda layer, leaf: INT4,
    "down in 8 bits": lambda layer, leaf: INT8 if leaf == "down_proj" else INT4,
    "attention in 8 bits": lambda layer, leaf: INT8 if leaf in ("q_proj", "k_proj", "v_proj") else INT4,
    "layer 1 dense": lambda layer, leaf: None if layer == 1 else INT4,
    "everything": lambda layer, leaf: [None, INT4, INT8, ASYM][layer % 4],
}


@pytest.mark.parametrize("case", CHOICES)
def test_engines_find_the_scheme_of_every_layer(case):
    specs = decoder(5, CHOICES[case])
    config = quantization_config(ModelSpec({}, specs))
    for name, spec in specs.items():
        module = name.removesuffix(".weight")
        if ".layers." not in name:
            continue
        joined = [module.replace("q_proj", f"{x}_proj") for x in "qkv"] if "q_proj" in module else None
        for found in (scheme_of(config, module), scheme_of(config, f"{module}+k+v", joined or [module])):
            if spec.format is None:
                assert found is None
                continue
            assert (found["num_bits"], found["group_size"] or -1) == (spec.format.bits, spec.format.group_size)
            assert found["symmetric"] == (spec.format.zero == "middle")
    assert scheme_of(config, "lm_head") is None


def test_mixed_models_come_back(quantized, export):
    rules = {r"0.*down_proj": IntFormat(8, -1), r"1.*down_proj": IntFormat(4, 64, "integer"), "[qkv]_proj": INT4}
    model = quantized(rules)
    directory = export(model)
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
def test_scales_keep_their_type_or_are_float32(quantized, export, scales, dtype):
    model = quantized(IntFormat(4, 32, "integer", scales))
    layout = CompressedTensors(dtype=dtype).layout(model.spec)
    directory = export(model, dtype=dtype)
    assert layout.nbytes == (directory / "model.safetensors").stat().st_size
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    for name, number_format in model.formats.items():
        stored_format = replace(number_format, scale_dtype="float32" if dtype == "float32" else scales)
        assert_same(reopened.read(name), replace(model.read(name), format=stored_format))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_a_model_without_quantized_tensors_is_refused(tiny_llama):
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        CompressedTensors().layout(open_checkpoint(tiny_llama).spec)


# Files of strangers.

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def artifact(quantized, export):
    return export(quantized(IntFormat(4, 32, "integer")))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")


def edit_settings(directory, change):
    config = json.loads((directory / "config.json").read_bytes())
    change(config["quantization_config"])
    (directory / "config.json").write_text(json.dumps(config))


def set_part(part, value):
    return lambda tensors: tensors.__setitem__(f"{LAYER}.{part}", value(tensors[f"{LAYER}.weight_packed"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(f"{LAYER}.weight_packed"),
        lambda tensors: tensors.pop(f"{LAYER}.weight_scale"),
        lambda tensors: tensors.pop(f"{LAYER}.weight_shape"),
        lambda tensors: tensors.pop(f"{LAYER}.weight_zero_point"),
        set_part("weight_shape", lambda _: torch.tensor([128, 72])),
        set_part("weight_shape", lambda _: torch.tensor([-128, 64])),
        set_part("weight_shape", lambda _: torch.tensor([1 << 62, 1 << 62])),
        set_part("weight_shape", lambda _: torch.tensor([128, 64], dtype=torch.int32)),
        set_part("weight_packed", lambda packed: packed[:, 1:]),
        set_part("weight_packed", lambda packed: packed.float()),
        set_part("weight_scale", lambda _: torch.ones(128)),
        set_part("weight_scale", lambda _: torch.ones(128, 2, dtype=torch.int32)),
        set_part("weight_scale", lambda _: torch.ones(128, 4)),
        set_part("weight_zero_point", lambda _: torch.zeros(16, 1, dtype=torch.int32)),
        set_part("weight", lambda _: torch.ones(128, 64)),
        set_part("weight_g_idx", lambda _: torch.arange(64, dtype=torch.int32) % 2),
        set_part("weight_g_idx", lambda _: torch.zeros(3, dtype=torch.int32)),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(artifact, change):
    edit_tensors(artifact, change)
    with pytest.raises(InputError, match=f"{LAYER}"):
        open_checkpoint(artifact).read(f"{LAYER}.weight_packed")


def test_a_trivial_order_of_columns_is_read(artifact):
    before = open_checkpoint(artifact).read(f"{LAYER}.weight")
    for g_idx in (torch.arange(64, dtype=torch.int32) // 32, torch.full((64,), -1, dtype=torch.int32)):
        edit_tensors(artifact, set_part("weight_g_idx", lambda _, g_idx=g_idx: g_idx))
        assert_same(open_checkpoint(artifact).read(f"{LAYER}.weight"), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_scales_of_other_types_are_refused(artifact, dtype):
    edit_tensors(artifact, set_part("weight_scale", lambda _: torch.ones(128, 2).to(dtype)))
    with pytest.raises(InputError, match=f"{LAYER}.*{str(dtype).removeprefix('torch.')}"):
        open_checkpoint(artifact)


def in_group(**changes):
    return lambda settings: settings["config_groups"]["group_0"].update(changes)


def in_weights(**changes):
    return lambda settings: settings["config_groups"]["group_0"]["weights"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(quantization_status="frozen"),
        lambda settings: settings.update(sparsity_config={"format": "sparse-bitmask"}),
        lambda settings: settings.update(transform_config={"config_groups": {}}),
        lambda settings: settings.update(config_groups=None),
        lambda settings: settings.update(config_groups={}),
        lambda settings: settings.update(config_groups=["Linear"], kv_cache_scheme={"num_bits": 8, "type": "float"}),
        lambda settings: settings.update(config_groups={"W4A16": ["Linear"]}),
        lambda settings: settings.update(config_groups={"group_0": {}}),
        in_group(targets="Linear"),
        in_group(targets=[7]),
        in_group(format="marlin-24"),
        in_group(format=["pack-quantized"]),
        in_group(weights=None),
        in_group(output_activations={"num_bits": 8}),
        in_weights(num_bits=9),
        in_weights(num_bits=3),
        in_weights(num_bits="4"),
        in_weights(num_bits=True),
        in_weights(group_size=64),
        in_weights(group_size=-5),
        in_weights(group_size="32"),
        in_weights(strategy="tensor"),
        in_weights(strategy=["group"]),
        in_weights(symmetric=1),
        in_weights(symmetric=True),
        in_weights(dynamic=True),
        in_weights(dynamic="local"),
        in_weights(type="float"),
        in_weights(type=[]),
        in_weights(block_structure=[128, 128]),
        in_group(input_activations={"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}),
        in_group(input_activations={"num_bits": 4, "strategy": "token", "dynamic": True}),
        lambda settings: settings.update(kv_cache_scheme={"num_bits": 8, "type": "float"}),
        lambda settings: settings.update(kv_cache_scheme=7),
    ],
)
def test_configurations_that_mean_something_else_are_refused(artifact, change):
    edit_settings(artifact, change)
    with pytest.raises(InputError):
        open_checkpoint(artifact)


def test_no_regular_expression_of_a_file_is_run(artifact):
    edit_settings(artifact, in_group(targets=["re:(a*)*$", "re:("]))
    assert open_checkpoint(artifact).spec.tensors[f"{LAYER}.weight"].format == IntFormat(4, 32, "integer")
