"""FP8 in blocks, as DeepSeek and Qwen publish it; and codes that nothing explains, which are never weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from compress.formats import open_checkpoint
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.dense.checkpoint import DenseCheckpoint
from compress.formats.errors import InputError
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float import FloatFormat

SAID = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"}
LAYER = "model.layers.0.mlp.up_proj"


def change(directory, tensors=lambda tensors: None, **settings):
    """Change the tensors in place, and what config.json says."""
    held = load_file(directory / "model.safetensors")
    tensors(held)
    save_file(held, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps({**config, **settings}))
    return directory


def to_float8(tensors, scale="weight_scale_inv"):
    """Every linear layer's weight as DeepSeek stores it."""
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, columns = (-(-extent // 128) for extent in tensors[name].shape)
        scales = torch.rand(rows, columns) / 100 + 1e-3
        spread = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
        spread = spread[: tensors[name].shape[0], : tensors[name].shape[1]]
        tensors[name] = (tensors[name] / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{name.removesuffix('weight')}{scale}"] = scales


@pytest.fixture
def float8(tiny_llama):
    return change(tiny_llama, to_float8, quantization_config=SAID)


def test_float8_in_blocks_is_what_transformers_decodes(float8):
    checkpoint = open_checkpoint(float8)
    assert isinstance(checkpoint, DenseCheckpoint)
    spec = checkpoint.spec.tensors[f"{LAYER}.weight"]
    assert (spec.shape, spec.format) == ((128, 64), FloatFormat("block"))
    assert checkpoint.spec.activations[LAYER] == ActivationFormat("fp8", True, "group")
    assert not any("scale_inv" in name for name in checkpoint.spec.tensors)
    settings = FineGrainedFP8Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(float8, quantization_config=settings, dtype=torch.float32)
    theirs = model.state_dict()[f"{LAYER}.weight"].float()
    torch.testing.assert_close(checkpoint.read(f"{LAYER}.weight").dequantize(), theirs, rtol=0, atol=0)


def test_float8_in_blocks_keeps_its_codes_in_another_container(float8, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    checkpoint = open_checkpoint(float8)
    CompressedTensors().write(checkpoint, out, lambda name: None)
    again = open_checkpoint(out)
    assert again.spec.activations == checkpoint.spec.activations
    assert torch.equal(again.read(f"{LAYER}.weight").codes, checkpoint.read(f"{LAYER}.weight").codes)
    assert torch.equal(again.read(f"{LAYER}.weight").dequantize(), checkpoint.read(f"{LAYER}.weight").dequantize())
    assert "fp8" not in json.dumps(json.loads((out / "config.json").read_bytes())["quantization_config"]["format"])


def test_scales_of_blocks_explain_themselves(tiny_llama):
    checkpoint = open_checkpoint(change(tiny_llama, to_float8))
    assert checkpoint.spec.tensors[f"{LAYER}.weight"].format == FloatFormat("block")
    assert checkpoint.spec.activations == {}
    assert float(checkpoint.read(f"{LAYER}.weight").dequantize().abs().max()) < 50  # codes go to 448


@pytest.mark.parametrize("scale", ["weight_scale", "scale", "scale_inv"])
def test_float8_beside_other_scales_is_refused_by_name(tiny_llama, scale):
    change(tiny_llama, lambda tensors: to_float8(tensors, scale))
    with pytest.raises(InputError, match=r"holds model\.layers\.0\.\S+ \(\w+\): its weights are quantized"):
        open_checkpoint(tiny_llama)


def test_float8_without_scales_is_refused(tiny_llama):
    def bare(tensors):
        tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].to(torch.float8_e4m3fn)

    with pytest.raises(InputError, match=r"up_proj\.weight \(float8_e4m3fn\)"):
        open_checkpoint(change(tiny_llama, bare))


@pytest.mark.parametrize(
    "settings",
    [{"weight_block_size": [64, 64]}, {"weight_block_size": None}, {"activation_scheme": "static"}, {"fmt": "e5m2"}],
)
def test_float8_that_is_described_otherwise_is_refused(float8, settings):
    change(float8, quantization_config={**SAID, **settings})
    with pytest.raises(InputError, match=next(iter(settings))):
        open_checkpoint(float8)


@pytest.mark.parametrize("scales", [torch.ones(2, 1), torch.ones(1, 1, dtype=torch.int32)])
def test_scales_that_do_not_fit_are_refused(float8, scales):
    change(float8, lambda tensors: tensors.update({f"{LAYER}.weight_scale_inv": scales}))
    with pytest.raises(InputError, match=r"up_proj\.weight_scale_inv.*no FP8 in blocks"):
        open_checkpoint(float8)


def test_a_scale_that_is_not_positive_is_refused(float8):
    change(float8, lambda tensors: tensors[f"{LAYER}.weight_scale_inv"].zero_())
    with pytest.raises(InputError, match="has a scale of 0"):
        open_checkpoint(float8).read(f"{LAYER}.weight")


@pytest.mark.parametrize(
    ("part", "dtype"),
    [
        ("qweight", torch.int32), ("weight_packed", torch.int32), ("weight_packed", torch.uint8),
        ("weight_scale", torch.float16), ("weight.absmax", torch.float32), ("SCB", torch.float32),
        ("weight_scale_2", torch.float32), ("weight_zero_point", torch.int8), ("input_scale", torch.float32),
        ("W_q", torch.uint8), ("q_weight", torch.int32), ("weight._data", torch.int8),
    ],
)  # fmt: skip
def test_what_a_quantizer_stores_is_never_dense(tiny_llama, part, dtype):
    change(tiny_llama, lambda tensors: tensors.update({f"{LAYER}.{part}": torch.ones(4, 4).to(dtype)}))
    with pytest.raises(InputError, match=r"up_proj.*weights are quantized"):
        open_checkpoint(tiny_llama)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_whole_numbers_are_no_weights(tiny_llama, dtype):
    change(tiny_llama, lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(128, 64).to(dtype)}))
    with pytest.raises(InputError, match=r"up_proj\.weight \(u?int"):
        open_checkpoint(tiny_llama)


def test_stacked_codes_of_experts_are_no_weights(tiny_llama):
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    change(tiny_llama, lambda tensors: tensors.update({name: torch.ones(2, 4, 4).byte()}))
    with pytest.raises(InputError, match="gate_up_proj_blocks"):
        open_checkpoint(tiny_llama)


def test_buffers_of_whole_numbers_are_welcome(tiny_llama):
    name = "model.layers.0.attn.bias"
    change(tiny_llama, lambda tensors: tensors.update({name: torch.ones(1, 1, 4, 4, dtype=torch.bool)}))
    assert open_checkpoint(tiny_llama).dialect == "dense"
