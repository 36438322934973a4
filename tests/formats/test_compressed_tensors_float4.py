"""MXFP4 and NVFP4 in compressed-tensors files, against the library of that name, transformers and nvidia-modelopt."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.compressed_tensors import CompressedTensors
from compress.formats.compressed_tensors_config import quantization_config
from compress.formats.compressed_tensors_schemes import Scheme
from compress.formats.errors import InputError, RefusedError
from compress.formats.modelopt import ModelOpt
from compress.kernels.activations import ActivationFormat
from compress.kernels.float4_format import Float4Format
from compress.kernels.qtensor import quantize
from compress.recipes.recipe import from_data
from compress.recipes.run import run

MXFP4, NVFP4 = Float4Format("mxfp4"), Float4Format("nvfp4")
BOTH = pytest.mark.parametrize("number_format", [MXFP4, NVFP4], ids=lambda found: found.name)
LAYER = "model.layers.0.mlp.up_proj"
ATTENTION = "model.layers.0.self_attn"


def ignore(_):
    pass


def linear_weights(spec):
    return [name for name, found in spec.tensors.items() if ".layers." in name and len(found.shape) == 2]


@pytest.fixture
def quantized(tiny_llama, in_memory):
    """quantized(number format) → a llama in memory."""

    def make(number_format):
        checkpoint = open_checkpoint(tiny_llama)
        return in_memory(checkpoint, dict.fromkeys(linear_weights(checkpoint.spec), number_format))

    return make


@pytest.fixture
def export(tmp_path):
    """export(model, dialect, **options) → the artifact's directory."""

    def write(model, dialect=CompressedTensors, **options):
        directory = tmp_path / dialect.name
        directory.mkdir()
        dialect(**options).write(model, directory, ignore)
        return directory

    return write


def octets(tensor):
    return tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist()


def assert_same(found, meant):
    assert found.format == meant.format and torch.equal(found.codes, meant.codes)
    assert found.params.keys() == meant.params.keys()
    assert all(torch.equal(found.params[key], meant.params[key]) for key in meant.params)


@BOTH
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "max_shard_size": "40KB"}, {"dtype": "float32"}])
def test_values_survive_the_file_for_us_and_for_the_witness(quantized, export, number_format, options):
    model = quantized(number_format)
    layout = CompressedTensors(**options).layout(model.spec)
    directory = export(model, **options)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files}
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    assert reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name in model.formats:
        assert reopened.spec.tensors[name].format == number_format
        assert_same(reopened.read(name), model.read(name))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_models_of_both_come_back(tiny_llama, in_memory, export):
    checkpoint = open_checkpoint(tiny_llama)
    formats = {name: MXFP4 if "mlp" in name else NVFP4 for name in linear_weights(checkpoint.spec)}
    model = in_memory(checkpoint, formats)
    directory = export(model)
    reopened, witness = open_checkpoint(directory), CompressedTensors.witness(directory)
    for name in formats:
        assert_same(reopened.read(name), model.read(name))
        assert torch.equal(witness(name), model.read(name).dequantize())


def test_weights_of_nvidia_s_container_are_the_same(quantized, export):
    model = quantized(NVFP4)
    across = export(open_checkpoint(export(model, ModelOpt)))
    for name in model.formats:
        assert_same(open_checkpoint(across).read(name), model.read(name))


def test_scales_without_a_reciprocal_are_refused():
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
def test_tensors_that_do_not_fit_together_are_named(quantized, export, number_format, part, change):
    directory = export(quantized(number_format))
    tensors = load_file(directory / "model.safetensors")
    changed = change(tensors.pop(f"{LAYER}.{part}", None))
    if changed is not None:
        tensors[f"{LAYER}.{part}"] = changed.contiguous()
    save_file(tensors, directory / "model.safetensors")
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
    directory = export(quantized(number_format))
    config = json.loads((directory / "config.json").read_bytes())
    config["quantization_config"]["config_groups"]["group_0"]["weights"].update(change)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        open_checkpoint(directory)


def test_one_format_under_the_other_s_name_is_refused(quantized, export):
    directory = export(quantized(NVFP4))
    config = (directory / "config.json").read_text()
    (directory / "config.json").write_text(config.replace("nvfp4-pack-quantized", "mxfp4-pack-quantized"))
    with pytest.raises(InputError, match="what is read of it is nvfp4-pack-quantized"):
        open_checkpoint(directory)


# The library.


@pytest.fixture
def library():
    return pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")


def compressor_of(library, number_format):
    return library.BaseCompressor.get_value_from_registry(f"{number_format.name}-pack-quantized")


def preset(library, number_format):
    return library.quantization.preset_name_to_scheme(f"{number_format.name}A16", ["Linear"])


@BOTH
def test_the_configuration_says_what_the_library_s_preset_says(library, number_format):
    model = ModelSpec({}, {f"{LAYER}.weight": TensorSpec((32, 32), "float32", number_format)})
    found = library.QuantizationConfig.model_validate(quantization_config(model))
    [scheme] = found.config_groups.values()
    meant = preset(library, number_format)
    assert scheme.weights.model_dump() == meant.weights.model_dump() and scheme.input_activations is None
    assert found.format == scheme.format == Scheme(number_format).format
    assert library.compressors.format.infer_module_format(torch.nn.Linear, meant) == found.format


@BOTH
@pytest.mark.parametrize("shape", [(32, 64), (37, 96), (200, 256)])
def test_bytes_and_values_equal_the_library_s(library, number_format, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[:, :4] *= 1000  # scales of many sizes
    tensor = quantize(weight, number_format, number_format.fit(weight))
    ours = Scheme(number_format).storage.encode("w", tensor, "float16")
    compressor, scheme = compressor_of(library, number_format), preset(library, number_format)
    # On the grid itself, so that signs of zeros stay: the library's rounding drops them.
    grid = number_format.value(tensor.codes.float(), {"scale": torch.ones(())})
    pack = library.compressors.nvfp4.pack_fp4_to_uint8
    assert octets(ours["weight_packed"]) == octets(pack(grid))
    given = {"weight": tensor.dequantize() + 0.0, "weight_scale": block_scales(tensor)}
    if number_format == NVFP4:
        given["weight_global_scale"] = 1 / tensor.params["tensor_scale"][0]
    packed = compressor.compress(given, scheme)
    assert ours.keys() == packed.keys()
    assert all(octets(ours[part]) == octets(packed[part]) for part in ours if part != "weight_packed")
    assert octets(pack(grid + 0.0)) == octets(packed["weight_packed"])
    assert torch.equal(compressor.decompress(ours, scheme)["weight"].float(), tensor.dequantize())


def block_scales(tensor):
    """The scales of blocks as the library has them before it compresses them."""
    stored = tensor.params["scale"]
    return 2.0 ** (stored.float() - 127) if tensor.format == MXFP4 else stored.view(torch.float8_e4m3fn).float()


def compressed(library, weights, number_format):
    """What the library makes of a model: parts by name. The scales are its own observers'."""
    compressor, scheme = compressor_of(library, number_format), preset(library, number_format)
    utils = library.quantization.utils
    parts = {}
    for name, weight in weights.items():
        blocks = weight.unflatten(1, (-1, number_format.block))
        given = {"weight": weight}
        if number_format == NVFP4:
            given["weight_global_scale"] = utils.generate_gparam(weight.min(), weight.max()).reshape(1)
        whole = given.get("weight_global_scale")
        given["weight_scale"], _ = utils.calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights, whole)
        found = compressor.compress(given, scheme)
        parts |= {f"{name.removesuffix('weight')}{part}": value for part, value in found.items()}
    return parts


@pytest.fixture
def theirs(library, tiny_llama):
    """theirs(number format) → a llama that the library compressed, with a row and a block of zeros."""

    def make(number_format):
        dense = load_file(tiny_llama / "model.safetensors")
        weights = {name: dense.pop(name) for name in linear_weights(open_checkpoint(tiny_llama).spec)}
        weights[f"{LAYER}.weight"][3] = weights[f"{LAYER}.weight"][5, 32:64] = 0
        save_file(dense | compressed(library, weights, number_format), tiny_llama / "model.safetensors")
        stored_as = Scheme(number_format).format
        group = preset(library, number_format).model_copy(update={"format": stored_as})
        settings = library.QuantizationConfig(
            config_groups={"group_0": group}, ignore=["lm_head"], format=stored_as, quantization_status="compressed"
        )
        config = json.loads((tiny_llama / "config.json").read_bytes())
        config["quantization_config"] = settings.to_dict()
        (tiny_llama / "config.json").write_text(json.dumps(config, default=str))
        return tiny_llama, weights

    return make


@BOTH
def test_a_file_of_the_library_holds_for_us_what_it_holds_for_the_library(library, theirs, export, number_format):
    directory, weights = theirs(number_format)
    model, stored = open_checkpoint(directory), load_file(directory / "model.safetensors")
    witness, compressor = CompressedTensors.witness(directory), compressor_of(library, number_format)
    for name in weights:
        start = name.removesuffix("weight")
        parts = {part.removeprefix(start): value for part, value in stored.items() if part.startswith(start)}
        meant = compressor.decompress(parts, preset(library, number_format))["weight"]
        found = model.read(name).dequantize()
        assert model.spec.tensors[name].format == number_format
        assert meant.dtype == torch.bfloat16 and torch.equal(found.bfloat16(), meant)
        assert torch.equal(witness(name), found)
    again = load_file(export(model, dtype="float32") / "model.safetensors")
    changed = {name for name in stored if octets(again[name]) != octets(stored[name])}
    assert changed == ({f"{LAYER}.weight_scale"} if number_format == MXFP4 else set())  # zeros had the exponent 0


def test_a_global_scale_that_is_no_power_of_two_is_read_to_rounding(library, theirs):
    directory, _ = theirs(NVFP4)
    model, stored = open_checkpoint(directory), load_file(directory / "model.safetensors")
    whole = stored[f"{LAYER}.weight_global_scale"]
    assert float(whole.frexp().mantissa) != 0.5
    found = model.read(f"{LAYER}.weight")
    scales = (stored[f"{LAYER}.weight_scale"].float() / whole).repeat_interleave(16, 1)
    meant = library.compressors.nvfp4.unpack_fp4_from_uint8(stored[f"{LAYER}.weight_packed"], *found.shape) * scales
    torch.testing.assert_close(found.dequantize(), meant, rtol=2**-22, atol=0)


# The engines.


@BOTH
def test_transformers_answers_as_our_values_do(library, quantized, export, tiny_llama, number_format):
    model = quantized(number_format)
    directory = export(model)
    tokens = torch.arange(32).unsqueeze(0)
    ours = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    read = {name: model.read(name) for name in model.spec.tensors}
    ours.load_state_dict(
        {name: found.dequantize() if name in model.formats else found.half() for name, found in read.items()},
        strict=False,
    )
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
        # What recipes/target_facts.py says: without being told, it computes with two dtypes.
        with pytest.raises(RuntimeError, match="same dtype"):
            AutoModelForCausalLM.from_pretrained(directory)(tokens)


def test_vllm_finds_its_tensors():
    """vLLM 0.32, schemes/compressed_tensors_w4a4_{mxfp4,nvfp4}.py create_weights: names, dtypes and shapes."""
    packed = {"weight_packed": TensorSpec((128, 32), "uint8")}
    parts = {found: Scheme(found).storage.parts((128, 64), found, "float16") for found in (MXFP4, NVFP4)}
    assert parts[MXFP4] == packed | {"weight_scale": TensorSpec((128, 2), "uint8")}
    scales = {"weight_scale": ((128, 4), "float8_e4m3fn"), "weight_global_scale": ((1,), "float32")}
    assert parts[NVFP4] == packed | {part: TensorSpec(*found) for part, found in scales.items()}
