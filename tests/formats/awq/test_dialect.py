"""The AWQ container, against AutoAWQ's own bytes and values and a naive unpacker."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.awq.config import quantization_config
from compress.formats.awq.dialect import AWQ
from compress.formats.awq.tensors import decode, encode
from compress.formats.base import TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("autoawq_*.safetensors"))
ASYM, SYM = IntFormat(4, 32, "integer"), IntFormat(4, 32)


def golden_of(path):
    golden = load_file(path)
    size = -1 if "channel" in path.stem else 32
    parts = {name.removeprefix("out."): tensor for name, tensor in golden.items() if name.startswith("out.")}
    params = {"scale": golden["in.scale"], "zero": golden["in.zero"]}
    return QTensor(IntFormat(4, size, "integer"), golden["in.codes"], params), parts, golden["values"]


def naive(tensors, module):
    """The values of one layer [out, in] in plain Python."""

    def codes(words):
        return [word >> 4 * (4 * (i % 2) + i // 2) & 15 for word in words for i in range(8)]

    scales = tensors[f"{module}.scales"].double()
    zeros = torch.tensor([codes(words) for words in tensors[f"{module}.qzeros"].tolist()])
    weights = torch.tensor([codes(words) for words in tensors[f"{module}.qweight"].tolist()])
    size = len(weights) // len(scales)
    lines = [scales[i // size] * (line - zeros[i // size]) for i, line in enumerate(weights)]
    return torch.stack(lines).T.float()


def test_the_golden_files_are_there():
    assert [path.stem for path in GOLDEN] == ["autoawq_g32", "autoawq_g32_signed", "autoawq_per_channel"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_packed_bytes_equal_autoawq_s(path):
    tensor, theirs, _ = golden_of(path)
    made = encode("x", tensor)
    assert made.keys() == theirs.keys()
    for name, packed in made.items():
        assert packed.dtype == theirs[name].dtype and torch.equal(packed, theirs[name]), name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_values_equal_autoawq_s_zero_points_of_0_and_15_and_negative_scales_included(path):
    tensor, theirs, values = golden_of(path)
    assert {0, 15} <= set(tensor.params["zero"].unique().tolist())
    read = decode("layer.weight", theirs, tensor.format.group_size)
    assert torch.equal(read.dequantize(), values)
    assert int(read.params["zero"].min()) >= 1 and read.format == tensor.format
    kept = (tensor.params["zero"] > 0).all(1)
    assert kept.any() and torch.equal(read.codes[kept], tensor.codes[kept])


@pytest.mark.parametrize("number_format", [ASYM, SYM, IntFormat(4, 16, "integer"), IntFormat(4, -1, "integer")])
def test_values_survive_the_file_for_us_for_the_witness_and_for_the_naive_reader(quantized, export, number_format):
    model = quantized(number_format)
    directory = export(AWQ(), model)
    tensors = load_file(directory / "model.safetensors")
    reopened, witness = open_checkpoint(directory), AWQ.witness(directory)
    assert reopened.dialect == "awq" and reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        if spec.format is None:
            assert torch.equal(found, meant.half()) and torch.equal(witness(name), meant.half().float())
            continue
        assert reopened.spec.tensors[name].format == IntFormat(4, number_format.group_size, "integer")
        assert torch.equal(found.codes, meant.codes)
        assert torch.equal(found.params["scale"], meant.params["scale"])
        assert torch.equal(found.dequantize(), meant.dequantize())
        assert torch.equal(witness(name), meant.dequantize())
        assert torch.equal(naive(tensors, name.removesuffix(".weight")), meant.dequantize())


def test_logits_of_the_unpacked_file_equal_the_model_in_memory(family, assert_logits_equal):
    assert_logits_equal(AWQ(dtype="float32"), ASYM, family, naive)


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_layout_is_exact(quantized, assert_layout_exact, dtype, shard_size):
    assert_layout_exact(AWQ, quantized(ASYM), dtype, shard_size)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    directory = export(AWQ(), quantized({"(?<!k)_proj": ASYM}))
    after = json.loads((directory / "config.json").read_bytes())
    assert after.pop("quantization_config") == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": [f"model.layers.{layer}.self_attn.k_proj" for layer in range(2)],
    }  # fmt: skip
    assert list(after.items()) == list({**before, "dtype": "float16"}.items())


def test_the_same_model_gives_the_same_bytes(quantized, assert_same_bytes):
    assert_same_bytes(AWQ(), lambda: quantized(ASYM))


LAYER = "model.layers.0.mlp.up_proj.weight"
SPEC = {
    "8 bits": (LAYER, (32, 32), IntFormat(8, 32), "gptq files hold 2, 3, 4 and 8"),
    "real minimums": (LAYER, (32, 32), IntFormat(4, 32, "real"), "whole zero points"),
    "head": ("lm_head.weight", (320, 32), ASYM, "decoder layers only"),
    "embedding": ("model.embed_tokens.weight", (320, 32), ASYM, "decoder layers only"),
    "12 outputs": (LAYER, (12, 32), ASYM, "12 outputs do not divide by 8"),
    "group size": (LAYER, (32, 48), ASYM, "do not divide"),
    "another group size": (LAYER, (32, 64), IntFormat(4, 64), "one group size, here 32"),
}


@pytest.mark.parametrize("case", SPEC)
def test_what_the_container_cannot_hold_is_refused_by_name(case, quantized, assert_refused):
    assert_refused(AWQ(), quantized(ASYM), SPEC[case])


def test_an_unquantized_model_is_refused(quantized):
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        AWQ().layout(quantized({}).spec)


def test_the_head_is_not_listed_as_unconverted():
    specs = {LAYER: TensorSpec((32, 32), "float32", ASYM), "lm_head.weight": TensorSpec((320, 32), "float32")}
    assert quantization_config(specs)["modules_to_not_convert"] == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"version": "gemv"}, "'gemv'"),
        ({"version": "llm-awq"}, "'llm-awq'"),
        ({"backend": "llm-awq"}, "packed as AWQ"),
        ({"bits": 8}, "4 bits"),
        ({"zero_point": False}, "zero points"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "32"}, "group_size is 32"),
        ({"group_size": 10**12}, "do not fit together"),
        ({"group_size": 64}, "do not fit together"),
    ],
)
def test_a_wrong_configuration_is_refused(quantized, export, settings, reason, edit):
    directory = export(AWQ(), quantized(ASYM))
    edit(directory, **settings)
    with pytest.raises(InputError, match=reason):
        open_checkpoint(directory)


def damage(tensors, case):
    module = LAYER.removesuffix(".weight")
    if case == "no scales":
        del tensors[f"{module}.scales"]
    elif case == "short zeros":
        tensors[f"{module}.qzeros"] = tensors[f"{module}.qzeros"][:-1].clone()
    elif case == "empty":
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{module}.{part}"] = tensors[f"{module}.{part}"][:0].clone()
    elif case == "a vector":
        tensors[f"{module}.qweight"] = tensors[f"{module}.qweight"][0].clone()
    elif case == "float words":
        tensors[f"{module}.qweight"] = tensors[f"{module}.qweight"].float()
    elif case == "twice":
        tensors[f"{module}.weight"] = torch.zeros(128, 64)
    elif case == "large scales":
        tensors[f"{module}.scales"] = torch.full_like(tensors[f"{module}.scales"], 1e5, dtype=torch.float32)
    else:
        tensors[f"{module}.scales"].fill_(float("nan"))


@pytest.mark.parametrize(
    "case", ["no scales", "short zeros", "empty", "a vector", "float words", "twice", "large scales", "nan"]
)
def test_damaged_tensors_are_refused_by_name(quantized, export, case):
    directory = export(AWQ(), quantized(ASYM))
    tensors = load_file(directory / "model.safetensors")
    damage(tensors, case)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=re.escape("model.layers.0.mlp.up_proj")):
        open_checkpoint(directory).read(LAYER)
