"""The bitsandbytes container, against bitsandbytes' own bytes (golden) and transformers' rule for dense layers."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.bitsandbytes.config import quantization_config
from compress.formats.bitsandbytes.dialect import BitsAndBytes
from compress.formats.bitsandbytes.tensors import encode
from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.codebook import CodebookFormat, quantize_plainly
from compress.kernels.numbers.int import IntFormat
from compress.kernels.numbers.row_int8 import RowInt8Format
from compress.kernels.qtensor import quantize

NF4, FP4, DOUBLE = CodebookFormat("nf4"), CodebookFormat("fp4"), CodebookFormat("nf4", 32, True)
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def golden(request):
    return load_file(request.path.parents[1] / "golden" / "bitsandbytes.safetensors")


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_bytes_equal_bitsandbytes_own(golden, table, double):
    kind = f"{table}_double." if double else f"{table}."
    theirs = {name.removeprefix(kind): tensor for name, tensor in golden.items() if name.startswith(kind)}
    ours = quantize_plainly(golden["weight"], CodebookFormat(table, 64, double))
    assert torch.equal(ours.dequantize(), theirs.pop("values"))
    made = encode(ours, "float32")
    assert made.keys() == theirs.keys()
    for name, tensor in made.items():
        if "quant_state" in name:
            assert bytes(tensor.numpy()).rstrip(b" ") == bytes(theirs[name].numpy())
        else:
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def test_int8_bytes_equal_bitsandbytes_own(golden):
    weight = golden["weight"].half().float()
    ours = quantize(weight, RowInt8Format(), RowInt8Format().fit(weight))
    made = encode(ours, "float32")
    assert torch.equal(made["weight"], golden["int8.weight"]) and torch.equal(made["SCB"], golden["int8.SCB"])
    assert torch.equal(ours.dequantize(), golden["int8.values"])


@pytest.mark.parametrize("number_format", [NF4, FP4, DOUBLE, IntFormat(8, -1), RowInt8Format()], ids=lambda f: f.name)
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_values_survive_the_file_and_its_layout_is_exact(quantized, export, number_format, shard_size):
    model = quantized(number_format)
    options = {"max_shard_size": shard_size, "dtype": "bfloat16"}
    layout = BitsAndBytes(**options).layout(model.spec)
    directory = export(BitsAndBytes(**options), model)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files} and (len(sizes) > 1) == (shard_size == "40KB")
    reopened, witness = open_checkpoint(directory), BitsAndBytes.witness(directory)
    assert reopened.dialect == "bitsandbytes" and reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        if spec.format is None:
            assert torch.equal(found, meant.bfloat16())
            continue
        assert torch.equal(found.codes, meant.codes) and reopened.spec.tensors[name].shape == spec.shape
        assert torch.allclose(found.dequantize(), meant.dequantize(), rtol=3e-7, atol=0)
        assert torch.allclose(witness(name), meant.dequantize(), rtol=3e-7, atol=0)
        if isinstance(number_format, CodebookFormat):
            assert found.format == number_format and torch.equal(found.dequantize(), meant.dequantize())
            assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    after = json.loads((export(BitsAndBytes(), quantized(DOUBLE)) / "config.json").read_bytes())
    described = after.pop("quantization_config")
    assert after == {**before, "dtype": "float16"}
    assert described == {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6.0,
    }  # fmt: skip


def skipped(module, patterns):
    """transformers' rule, from its documentation of `should_convert_module`."""
    return any(
        module == pattern or module.startswith(f"{pattern}.") or module.endswith(pattern) for pattern in patterns
    )


def test_dense_linears_are_listed_and_no_others_match(quantized):
    specs = quantized({r"1\.mlp|0\.self_attn\.[qk]": NF4}).spec.tensors
    said = quantization_config(specs, "float16")["llm_int8_skip_modules"]
    for name, spec in specs.items():
        if ".layers." in name and len(spec.shape) == 2:
            assert skipped(name.removesuffix(".weight"), said) == (spec.format is None), name
    assert skipped("lm_head", said)


def test_a_quantized_head_is_not_skipped_and_is_untied(make_model, tmp_path, in_memory, export):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    directory = export(BitsAndBytes(), in_memory(checkpoint, {"lm_head.weight": NF4}))
    config = json.loads((directory / "config.json").read_bytes())
    assert "lm_head" not in config["quantization_config"]["llm_int8_skip_modules"]
    assert config["tie_word_embeddings"] is False
    assert open_checkpoint(directory).spec.tensors["lm_head.weight"].format == NF4


def spec(number_format, shape=(64, 64)):
    return TensorSpec(shape, "float32", number_format)


@pytest.mark.parametrize(
    ("name", "number_format", "reason"),
    [
        ("a.weight", IntFormat(4, 64), "not int4 g64 sym"),
        ("a.weight", IntFormat(8, 64), "per channel"),
        ("a.weight", IntFormat(8, -1, "integer"), "per channel"),
        ("a.weight", CodebookFormat("lloyd_max"), "dense holds all"),
        ("a.weight", CodebookFormat("nf4", 16), "blocks of 32, 64"),
        ("a.weight", CodebookFormat("nf4", 128), "block sizes that work: 32, 64"),
        ("model.embed_tokens.weight", NF4, "linear layers only"),
    ],
)
def test_what_cannot_be_held_is_refused_with_what_can(name, number_format, reason):
    model = ModelSpec({}, {name: spec(number_format)})
    assert reason in BitsAndBytes().misfit(name, model.tensors[name], model)
    with pytest.raises(RefusedError):
        BitsAndBytes().layout(model)


def test_mixed_kinds_and_dense_models_are_refused():
    for other in (FP4, IntFormat(8, -1)):
        with pytest.raises(RefusedError, match="one kind of number"):
            BitsAndBytes().layout(ModelSpec({}, {"a.weight": spec(NF4), "b.weight": spec(other)}))
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        BitsAndBytes().layout(ModelSpec({}, {"a.weight": spec(None)}))
    mixed = ModelSpec({}, {"a.weight": spec(NF4), "b.weight": spec(DOUBLE)})
    assert BitsAndBytes().layout(mixed).nbytes > 0


def restated(directory, changes):
    """The quantization state of one layer, with `changes` in its keys: a tensor by name."""
    held = load_file(directory / "model.safetensors")
    name = next(name for name in held if name.startswith(Q_PROJ) and "quant_state" in name)
    said = json.loads(bytes(held[name].numpy())) | changes
    return {name: torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)}


def part(directory, name):
    return load_file(directory / "model.safetensors")[f"{Q_PROJ}.{name}"]


STATES = [
    {"shape": [64]}, {"shape": [64, 128]}, {"shape": [64, -64]}, {"shape": [True, 64]}, {"shape": None},
    {"shape": [2**40, 64]}, {"blocksize": 48}, {"blocksize": "32"}, {"blocksize": 2**70},
    {"quant_type": "fp4"}, {"nested_offset": "0"}, {"nested_offset": 1e300}, {"nested_offset": True},
    {"nested_blocksize": 128}, {"nested_dtype": "float16"}, {"blocksize": 64},
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=str)
def test_lying_states_are_input_errors(quantized, export, state, edit):
    directory = export(BitsAndBytes(), quantized({"q_proj": CodebookFormat("nf4", 32, True)}))
    edit(directory, restated(directory, state))
    with pytest.raises(InputError, match="q_proj"):
        open_checkpoint(directory).read(f"{Q_PROJ}.weight")


BROKEN = {
    "no scales": lambda held: {"weight.absmax": None},
    "scales of other blocks": lambda held: {"weight.absmax": held("weight.absmax")[:-1]},
    "scales in float": lambda held: {"weight.absmax": held("weight.absmax").float()},
    "no nested scales": lambda held: {"weight.nested_absmax": None},
    "another table": lambda held: {"weight.quant_map": held("weight.quant_map") * 0.5},
    "another nested table": lambda held: {"weight.nested_quant_map": held("weight.nested_quant_map") * 0.5},
    "weights missing": lambda held: {"weight": held("weight")[:-1]},
    "weights of another type": lambda held: {"weight": held("weight").int()},
    "no weights": lambda held: {"weight": None},
    "two states": lambda held: {"weight.quant_state.bitsandbytes__fp4": torch.zeros(4, dtype=torch.uint8)},
    "a state that is no JSON": lambda held: {"weight.quant_state.bitsandbytes__nf4": torch.zeros(4).byte()},
    "a long state": lambda held: {"weight.quant_state.bitsandbytes__nf4": torch.zeros(5000).byte()},
}


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_together_are_input_errors(quantized, export, case, edit):
    directory = export(BitsAndBytes(), quantized({"q_proj": CodebookFormat("nf4", 32, True)}))
    parts = BROKEN[case](lambda name: part(directory, name))
    edit(directory, {f"{Q_PROJ}.{name}": tensor for name, tensor in parts.items()})
    with pytest.raises(InputError, match="q_proj"):
        open_checkpoint(directory).read(f"{Q_PROJ}.weight")


BROKEN_INT8 = {
    "scales of other rows": lambda held: {"SCB": held("SCB")[:-1]},
    "weights in another type": lambda held: {"weight": held("weight").half()},
    "no weights": lambda held: {"weight": None},
    "a vector": lambda held: {"weight": held("weight").flatten()},
    "not by rows": lambda held: {"weight_format": torch.tensor(2, dtype=torch.uint8)},
}


@pytest.mark.parametrize("case", BROKEN_INT8)
def test_int8_tensors_that_do_not_fit_together_are_input_errors(quantized, export, case, edit):
    directory = export(BitsAndBytes(), quantized({"q_proj": IntFormat(8, -1)}))
    parts = BROKEN_INT8[case](lambda name: part(directory, name))
    edit(directory, {f"{Q_PROJ}.{name}": tensor for name, tensor in parts.items()})
    with pytest.raises(InputError, match="q_proj"):
        open_checkpoint(directory).read(f"{Q_PROJ}.weight")


def test_the_format_of_int8_rows_may_be_missing(quantized, export, edit):
    directory = export(BitsAndBytes(), quantized({"q_proj": IntFormat(8, -1)}))
    expected = open_checkpoint(directory).read(f"{Q_PROJ}.weight").dequantize()
    edit(directory, {f"{Q_PROJ}.weight_format": None})
    assert torch.equal(open_checkpoint(directory).read(f"{Q_PROJ}.weight").dequantize(), expected)


def test_an_artifact_exported_again_is_the_same(quantized, export):
    directory = export(BitsAndBytes(), quantized(DOUBLE))
    again = export(BitsAndBytes(), open_checkpoint(directory), "again")
    for path in directory.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_mutated_states_are_input_errors_or_are_read(quantized, export, edit):
    """200 seeded mutants of the JSON that says how to read a weight."""
    directory = export(BitsAndBytes(), quantized({"layers.0.self_attn.q_proj": CodebookFormat("nf4", 32, True)}))
    chance, read = random.Random(0), 0
    name = f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"
    original = bytes(load_file(directory / "model.safetensors")[name].numpy())
    for _ in range(200):
        mutant = bytearray(original)
        for _ in range(chance.choice((1, 2, 8))):
            mutant[chance.randrange(len(mutant))] = chance.choice(b'0123456789"[]{},:.-nulltrue x')
        edit(directory, {name: torch.frombuffer(mutant, dtype=torch.uint8)})
        try:
            open_checkpoint(directory).read(f"{Q_PROJ}.weight")
        except InputError:
            continue
        read += 1
    assert 5 < read < 200
