"""MXFP4 and NVFP4 in compressed-tensors files: read back, shared between fused layers, refused where they lie."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from compress.formats import open_checkpoint
from compress.formats.base import TensorSpec
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.errors import InputError, RefusedError
from compress.formats.modelopt.dialect import ModelOpt
from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import quantize
from compress.recipes.recipe import from_data
from compress.recipes.run import run

MXFP4, NVFP4 = Float4Format("mxfp4"), Float4Format("nvfp4")
BOTH = pytest.mark.parametrize("number_format", [MXFP4, NVFP4], ids=lambda found: found.name)
LAYER = "model.layers.0.mlp.up_proj"


@BOTH
@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "max_shard_size": "40KB"}, {"dtype": "float32"}])
def test_values_survive_the_file_for_us_and_for_the_witness(quantized, export, number_format, options, assert_same):
    model = quantized(number_format)
    layout = CompressedTensors(**options).layout(model.spec)
    directory = export(CompressedTensors(**options), model)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files}
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    assert reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name in model.formats:
        assert reopened.spec.tensors[name].format == number_format
        assert_same(reopened.read(name), model.read(name))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_models_of_both_come_back(quantized, export, assert_same):
    model = quantized({"mlp": MXFP4, "self_attn": NVFP4})
    directory = export(CompressedTensors(), model)
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    for name in model.formats:
        assert_same(reopened.read(name), model.read(name))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_weights_of_nvidia_s_container_are_the_same(quantized, export, assert_same):
    model = quantized(NVFP4)
    across = export(CompressedTensors(), open_checkpoint(export(ModelOpt(), model, "modelopt")))
    for name in model.formats:
        assert_same(open_checkpoint(across).read(name), model.read(name))


def test_scales_without_a_reciprocal_are_refused(assert_same):
    # Above √2 reciprocals lie 1.8 steps apart: of three neighbours, one at least is none.
    weight, storage = torch.ones(2, 16), Scheme(NVFP4).storage
    refused = 0
    for step in range(3):
        scale = torch.full((2, 1), 1.9) + step * 2**-23
        tensor = quantize(weight, NVFP4, {**NVFP4.fit(weight), "tensor_scale": scale})
        try:
            parts = storage.encode("w", tensor, "float16")
        except RefusedError as error:
            assert "export dialect: modelopt" in str(error.hint)
            refused += 1
        else:
            assert_same(storage.decode(LAYER, (2, 16), NVFP4, parts.__getitem__), tensor)
    assert refused


def test_layers_that_engines_fuse_share_the_scale_of_the_tensor(tiny_llama, tmp_path):
    # vLLM 0.32, schemes/compressed_tensors_w4a4_nvfp4.py, takes the largest for all.
    passes = [{"nvfp4": {}}, {"export": {"dialect": "compressed-tensors", "path": "artifact"}}]
    run(from_data({"model": str(tiny_llama), "passes": passes}), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "artifact" / "model.safetensors")
    scales = {name.removesuffix(".weight_global_scale"): value for name, value in stored.items() if "global" in name}
    assert len(scales) == 14
    for layers in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]):
        assert len({float(scales[f"model.layers.0.{layer}"]) for layer in layers}) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"activations": {LAYER: ActivationFormat("fp8", True)}}, "mxfp4 go with inputs as they are, not in fp8"),
        ({"tensors": {f"{LAYER}.weight": TensorSpec((32, 48), "float32", MXFP4)}}, "blocks of 32"),
        ({"tensors": {"model.embed_tokens.weight": TensorSpec((32, 64), "float32", MXFP4)}}, "leave it dense"),
    ],
)
def test_what_does_not_fit_is_refused(quantized, change, reason):
    with pytest.raises(RefusedError, match=reason):
        CompressedTensors().layout(replace(quantized(MXFP4).spec, **change))


def test_vllm_finds_its_tensors():
    """vLLM 0.32, schemes/compressed_tensors_w4a4_{mxfp4,nvfp4}.py create_weights: names, dtypes and shapes."""
    packed = {"weight_packed": TensorSpec((128, 32), "uint8")}
    parts = {found: Scheme(found).storage.parts((128, 64), found, "float16") for found in (MXFP4, NVFP4)}
    assert parts[MXFP4] == packed | {"weight_scale": TensorSpec((128, 2), "uint8")}
    scales = {"weight_scale": ((128, 4), "float8_e4m3fn"), "weight_global_scale": ((1,), "float32")}
    assert parts[NVFP4] == packed | {part: TensorSpec(*found) for part, found in scales.items()}


# Files of strangers.


def fp8(code):
    return lambda scale: torch.full(scale.shape, code, dtype=torch.uint8).view(torch.float8_e4m3fn)


def filled(value):
    return lambda tensor: torch.full_like(tensor, value)


def absent(_):
    return None


@pytest.mark.parametrize(
    ("number_format", "part", "change"),
    [
        *((MXFP4, "weight_scale", filled(exponent)) for exponent in (0, 253, 255)),
        (MXFP4, "weight_scale", lambda scale: scale.half()), (MXFP4, "weight_scale", lambda scale: scale[:, :1]),
        (MXFP4, "weight_scale", lambda scale: scale.view(torch.int8)), (MXFP4, "weight_scale", absent),
        (MXFP4, "weight_packed", lambda packed: packed[1:]), (MXFP4, "weight_packed", absent),
        (MXFP4, "weight_packed", lambda packed: packed.flatten()),
        (MXFP4, "weight_packed", lambda packed: packed.view(torch.int8)),
        (MXFP4, "weight_shape", lambda _: torch.tensor([128, 64])),
        (MXFP4, "weight_global_scale", lambda _: torch.ones(1)),
        *((NVFP4, "weight_scale", fp8(code)) for code in (0x00, 0x7F, 0x80, 0xB8, 0xFF)),
        (NVFP4, "weight_scale", lambda scale: scale.view(torch.uint8)),
        (NVFP4, "weight_scale", lambda scale: scale.float()),
        (NVFP4, "weight_scale", lambda scale: scale.float().to(torch.float8_e5m2)),
        (NVFP4, "weight_packed", lambda packed: packed[:, 1:]),
        *((NVFP4, "weight_global_scale", filled(float(x))) for x in ("0", "-1", "nan", "inf", "1e-38", "3e38")),
        (NVFP4, "weight_global_scale", lambda _: torch.ones(2)),
        (NVFP4, "weight_global_scale", lambda _: torch.ones(())),
        (NVFP4, "weight_global_scale", lambda scale: scale.half()), (NVFP4, "weight_global_scale", absent),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_together_are_named(quantized, export, number_format, part, change, edit):
    directory = export(CompressedTensors(), quantized(number_format))
    name = f"{LAYER}.{part}"
    edit(directory, {name: change(load_file(directory / "model.safetensors").get(name))})
    with pytest.raises(InputError, match=LAYER):
        open_checkpoint(directory).read(f"{LAYER}.weight")


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        {"num_bits": 6}, {"num_bits": 8}, {"group_size": 64}, {"group_size": None}, {"strategy": "channel"},
        {"strategy": "tensor"}, {"symmetric": False}, {"dynamic": True}, {"dynamic": "local"}, {"type": "int"},
        {"block_structure": [1, 16]},
    ],
)  # fmt: skip
def test_configurations_that_mean_something_else_are_refused(quantized, export, number_format, change):
    directory = export(CompressedTensors(), quantized(number_format))
    config = json.loads((directory / "config.json").read_bytes())
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(change)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        open_checkpoint(directory)


def test_one_format_under_the_other_s_name_is_refused(quantized, export):
    directory = export(CompressedTensors(), quantized(NVFP4))
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace("nvfp4-pack-quantized", "mxfp4-pack-quantized"))
    with pytest.raises(InputError, match="what is read of it is nvfp4-pack-quantized"):
        open_checkpoint(directory)
