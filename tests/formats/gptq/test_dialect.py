"""The GPTQ container, against AutoGPTQ's own bytes and a naive unpacker."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.formats import open_checkpoint
from compress.formats.base import TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gptq.dialect import GPTQ
from compress.formats.gptq.tensors import encode
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("autogptq_*.safetensors"))


def naive(tensors, module, offset=1):
    """The values of one layer [out, in] in plain Python: each line of words is one long number."""
    groups = tensors[f"{module}.g_idx"].tolist()
    bits = len(tensors[f"{module}.qweight"]) * 32 // len(groups)

    def codes(words, count):
        number = sum((word & 0xFFFFFFFF) << 32 * index for index, word in enumerate(words))
        return [number >> bits * index & (1 << bits) - 1 for index in range(count)]

    rows = [codes(words, len(groups)) for words in tensors[f"{module}.qweight"].T.tolist()]
    zeros = [codes(words, len(rows)) for words in tensors[f"{module}.qzeros"].tolist()]
    scales = tensors[f"{module}.scales"].float().tolist()
    return torch.tensor(
        [
            [scales[group][row] * (code - zeros[group][row] - offset) for code, group in zip(line, groups)]
            for row, line in enumerate(rows)
        ]
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_packed_bytes_equal_autogptq_s(path):
    golden = load_file(path)
    bits, kind = int(path.stem[9]), path.stem.rpartition("_")[2]
    groups, columns = golden["in.scale"].shape[1], golden["in.codes"].shape[1]
    number_format = IntFormat(bits, columns // groups, "middle" if kind == "sym" else "integer")
    params = {"scale": golden["in.scale"]} | ({} if kind == "sym" else {"zero": golden["in.zero"]})
    made = encode("layer.weight", QTensor(number_format, golden["in.codes"], params), "gptq")
    theirs = {name.removeprefix("out."): tensor for name, tensor in golden.items() if name.startswith("out.")}
    assert made.keys() == theirs.keys()
    for name, tensor in made.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def test_the_golden_files_cover_every_width():
    assert [path.stem for path in GOLDEN] == [
        f"autogptq_{case}" for case in ("2bit_asym", "3bit_asym", "4bit_asym", "4bit_sym", "8bit_asym")
    ]


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("zero", ["middle", "integer"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, 32), (4, 64), (8, -1)])
def test_values_survive_the_file_for_us_for_the_witness_and_for_the_naive_reader(
    quantized, export, bits, group_size, zero, checkpoint_format, assert_same
):
    model = quantized(IntFormat(bits, group_size, zero))
    directory = export(GPTQ(checkpoint_format=checkpoint_format), model)
    tensors = load_file(directory / "model.safetensors")
    reopened, witness = open_checkpoint(directory), GPTQ.witness(directory)
    assert reopened.dialect == "gptq" and reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        assert reopened.spec.tensors[name].format == spec.format
        if spec.format is None:
            assert torch.equal(found, meant.half()) and torch.equal(witness(name), meant.half().float())
            continue
        assert_same(found, meant)
        assert torch.equal(witness(name), meant.dequantize())
        if name.endswith("0.mlp.down_proj.weight"):
            module = name.removesuffix(".weight")
            assert torch.equal(naive(tensors, module, checkpoint_format == "gptq"), meant.dequantize())


def test_logits_of_the_unpacked_file_equal_the_model_in_memory(family, assert_logits_equal):
    assert_logits_equal(GPTQ(dtype="float32"), IntFormat(4, 32), family, naive)


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_layout_is_exact(quantized, assert_layout_exact, dtype, shard_size):
    model = quantized(IntFormat(4, 32))
    directory = assert_layout_exact(GPTQ, model, dtype, shard_size)
    reopened = open_checkpoint(directory)
    for name in model.spec.tensors:
        found = reopened.read(name)
        assert found.dtype == getattr(torch, dtype) if isinstance(found, torch.Tensor) else found.params["scale"].dtype


def test_progress_names_every_tensor_once(quantized, tmp_path):
    model = quantized(IntFormat(4, 32))
    seen = []
    GPTQ(max_shard_size="10KB").write(model, tmp_path, seen.append)
    assert sorted(seen) == sorted(model.spec.tensors)


def test_the_config_is_the_source_s_with_only_what_changed(quantized, export, tiny_llama):
    before = json.loads((tiny_llama / "config.json").read_bytes())
    directory = export(GPTQ(), quantized(IntFormat(4, 32)))
    after = json.loads((directory / "config.json").read_bytes())
    described = json.loads((directory / "quantize_config.json").read_bytes())
    assert described == after.pop("quantization_config")
    assert list(after.items()) == list({**before, "dtype": "float16"}.items())
    assert described == {
        "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "lm_head": False,
        "quant_method": "gptq", "checkpoint_format": "gptq", "pack_dtype": "int32",
    }  # fmt: skip
    files = {path.name for path in tiny_llama.iterdir()} - {"config.json"}
    for name in files - {"model.safetensors"}:
        assert (directory / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_the_same_model_gives_the_same_bytes(quantized, assert_same_bytes):
    assert_same_bytes(GPTQ(), lambda: quantized(IntFormat(3, 16, "integer")))


def test_a_quantized_head_is_declared_and_untied(make_model, tmp_path, in_memory, export, linear_weights):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    names = [*linear_weights(checkpoint), "lm_head.weight"]
    directory = export(GPTQ(), in_memory(checkpoint, dict.fromkeys(names, IntFormat(4, 32))))
    config = json.loads((directory / "config.json").read_bytes())
    assert config["quantization_config"]["lm_head"] and config["tie_word_embeddings"] is False
    assert open_checkpoint(directory).spec.tensors["lm_head.weight"].format == IntFormat(4, 32)


SPEC = {
    "5 bits": ("a.proj.weight", (32, 32), IntFormat(5, 32), "2, 3, 4 or 8 bits"),
    "real minimums": ("a.proj.weight", (32, 32), IntFormat(4, 32, "real"), "whole zero points"),
    "embedding": ("model.embed_tokens.weight", (320, 32), IntFormat(4, 32), "linear layers only"),
    "33 outputs": ("a.proj.weight", (33, 32), IntFormat(4, 32), "33 × 32"),
    "48 inputs": ("a.proj.weight", (32, 48), IntFormat(4, 16), "32 × 48"),
    "group size": ("a.proj.weight", (32, 64), IntFormat(4, 48), "do not divide"),
}


@pytest.mark.parametrize("case", SPEC)
def test_what_the_container_cannot_hold_is_refused_by_name(case, quantized, assert_refused):
    assert_refused(GPTQ(), quantized(IntFormat(4, 32)), SPEC[case])


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight", "model.layers.0.mlp.up_proj.weight"])
def test_linear_layers_fit(name, quantized):
    spec = TensorSpec((320, 64), "float32", IntFormat(4, 32))
    assert GPTQ().misfit(name, spec, quantized(IntFormat(4, 32)).spec) is None


def test_a_model_without_quantized_tensors_is_refused(tiny_llama):
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        GPTQ().layout(open_checkpoint(tiny_llama).spec)


class ZeroOfNought:
    """A layer whose zero point is 0: codes 0 … 15 stand for values that are never negative."""

    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def read(self, name):
        tensor = self.inner.read(name)
        if name == "model.layers.1.mlp.up_proj.weight":
            tensor.params["zero"][5, 0] = 0
        return tensor

    def files(self):
        return self.inner.files()


def test_a_zero_point_of_0_is_refused_by_name_in_v1_and_held_by_v2(quantized, tmp_path):
    model = ZeroOfNought(quantized(IntFormat(4, 32, "integer")))
    with pytest.raises(RefusedError, match=r"layers\.1\.mlp\.up_proj\.weight has a zero point of 0"):
        GPTQ().write(model, tmp_path, lambda _: None)
    assert not list(tmp_path.glob("model.safetensors*"))
    GPTQ(checkpoint_format="gptq_v2").write(model, tmp_path, lambda _: None)
    found = open_checkpoint(tmp_path).read("model.layers.1.mlp.up_proj.weight")
    assert int(found.params["zero"][5, 0]) == 0
