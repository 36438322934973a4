"""The modelopt container against nvidia-modelopt 0.47's own exports (tests/conformance/modelopt_golden.py)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.compressed_tensors.schemes import Scheme
from compress.formats.errors import InputError, RefusedError
from compress.formats.modelopt.config import ALGORITHMS
from compress.formats.modelopt.dialect import ModelOpt
from compress.formats.modelopt.tensors import Float8
from compress.kernels.numbers.activations import ActivationFormat, CacheFormat
from compress.kernels.numbers.float import FloatFormat
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.numbers.int import IntFormat

GOLDEN = Path(__file__).parents[1] / "golden" / "modelopt"
LAYER = "model.layers.0.mlp.up_proj"
ATTENTION = "model.layers.0.self_attn"
STATIC, TOKEN, GROUP = (
    ActivationFormat("fp8", False, "tensor"), ActivationFormat("fp8", True), ActivationFormat("fp8", True, "group"),
)  # fmt: skip
CASES = {
    "fp8": (FloatFormat("tensor"), STATIC, CacheFormat("fp8")),
    "fp8, no cache": (FloatFormat("tensor"), STATIC, None),
    "per channel": (FloatFormat("channel"), TOKEN, CacheFormat("fp8")),
    "per block": (FloatFormat("block"), GROUP, None),
    "nvfp4": (Float4Format("nvfp4"), None, CacheFormat("fp8")),
}


def formula(shape):
    """The weights of the golden files' models."""
    return ((torch.arange(shape.numel()) * 7919 % 2001 - 1000) / 4096).view(shape)


def assert_near_formula(values):
    """FP8 has 3 bits of mantissa: values are at most 1/16 off, and those below the largest/(448·64) may be 0."""
    meant = formula(values.shape)
    assert bool(((values - meant).abs() <= meant.abs() / 16 + meant.abs().max() / 448 / 64).all())


def assert_in_steps(values):
    """Of FP4 the widest step is from 4 to 6, where 6 is a block's largest value; its scale is 1/16 off at most."""
    meant = formula(values.shape)
    largest = meant.abs().unflatten(1, (-1, 16)).amax(-1, keepdim=True).expand(-1, -1, 16).flatten(1)
    assert bool(((values - meant).abs() <= largest * 1.07 / 6).all())


def settings_of(directory):
    config = json.loads((directory / "config.json").read_bytes())
    return config["quantization_config"], json.loads((directory / "hf_quant_config.json").read_bytes())


FOLDERS = ["fp8", "fp8_per_channel_per_token", "w4a16_nvfp4"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_of_the_library_is_read_and_written_to_the_byte(folder, octets, export):
    model = open_checkpoint(GOLDEN / folder)
    assert model.dialect == "modelopt"
    quantized = [name for name, spec in model.spec.tensors.items() if spec.format]
    assert len(quantized) == 7 and len(model.spec.activations) == (0 if folder == "w4a16_nvfp4" else 7)
    for name in quantized:
        (assert_in_steps if folder == "w4a16_nvfp4" else assert_near_formula)(model.read(name).dequantize())
    directory = export(ModelOpt(dtype="float16"), model)
    ours, theirs = load_file(directory / "model.safetensors"), load_file(GOLDEN / folder / "model.safetensors")
    assert {name: octets(ours[name]) for name in ours} == {name: octets(theirs[name]) for name in theirs}
    assert settings_of(directory) == settings_of(GOLDEN / folder)


def test_the_formats_that_the_library_means():
    fp8, channel = (open_checkpoint(GOLDEN / name).spec for name in ("fp8", "fp8_per_channel_per_token"))
    assert fp8.tensors[f"{LAYER}.weight"].format == FloatFormat("tensor")
    assert (fp8.activations[LAYER], fp8.kv_cache) == (STATIC, CacheFormat("fp8"))
    assert channel.tensors[f"{LAYER}.weight"].format == FloatFormat("channel")
    assert (channel.activations[LAYER], channel.kv_cache) == (TOKEN, None)
    assert fp8.tensors[f"{ATTENTION}.k_scale"].shape == fp8.tensors[f"{LAYER}.input_scale"].shape == (1,)


def test_blocks_of_the_library_are_read_and_written_to_the_byte(octets):
    stored = load_file(GOLDEN / "fp8_pb_wo" / "model.safetensors")
    parts = {name.removeprefix(f"{LAYER}."): tensor for name, tensor in stored.items()}
    shape, blocks = tuple(parts["weight"].shape), FloatFormat("block")
    tensor = Float8().decode(LAYER, shape, blocks, parts.__getitem__)
    assert_near_formula(tensor.dequantize())
    made = Float8().encode("w", tensor, "float32")
    assert {part: octets(made[part]) for part in made} == {part: octets(parts[part]) for part in parts}
    specs = Float8().parts(shape, blocks, "float32")
    assert {part: spec.shape for part, spec in specs.items()} == {part: found.shape for part, found in parts.items()}
    settings = json.loads((GOLDEN / "fp8_pb_wo" / "hf_quant_config.json").read_bytes())
    assert ALGORITHMS[settings["quantization"]["quant_algo"]] == Scheme(blocks, GROUP)


@pytest.fixture
def rounding(tiny_llama, in_memory, with_rounding):
    """rounding(case) → a llama in memory; its matrices have whole blocks."""
    tensors = load_file(tiny_llama / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors |= {
        name: torch.randn(256, 128, generator=generator) for name in tensors if "layers" in name and "proj" in name
    }
    save_file(tensors, tiny_llama / "model.safetensors", {"format": "pt"})

    def make(case):
        number_format, inputs, cache = CASES[case]
        checkpoint = open_checkpoint(tiny_llama)
        names = [name for name in checkpoint.spec.tensors if "proj" in name]
        return with_rounding(in_memory(checkpoint, dict.fromkeys(names, number_format)), inputs, cache)

    return make


@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "max_shard_size": "300KB"}])
@pytest.mark.parametrize("case", CASES)
def test_models_come_back_for_us_and_for_the_witness(rounding, export, case, options, assert_same):
    model = rounding(case)
    layout = ModelOpt(**options).layout(model.spec)
    directory = export(ModelOpt(**options), model)
    sizes = {path.name: path.stat().st_size for path in directory.glob("model*")}
    assert sizes == {file.name: file.nbytes for file in layout.files}
    reopened, witness = open_checkpoint(directory), ModelOpt.witness(directory)
    assert reopened.spec.activations == model.spec.activations and reopened.spec.kv_cache == model.spec.kv_cache
    assert reopened.spec.tensors.keys() == model.spec.tensors.keys()
    for name, spec in model.spec.tensors.items():
        meant, found = model.read(name), reopened.read(name)
        if spec.format is not None:
            assert meant.format == spec.format
            assert_same(found, meant)
            assert torch.equal(witness(name), meant.dequantize())
        elif name in model.scales:
            assert reopened.spec.tensors[name] == spec
            assert torch.equal(found, meant) and torch.equal(witness(name), meant)
        else:
            assert torch.equal(found, meant.to(found.dtype)) and torch.equal(witness(name), found.float())


def test_what_stays_dense_is_excluded_by_name(rounding, in_memory, with_rounding, export):
    model = rounding("per channel").inner
    kept = {name: found for name, found in model.formats.items() if "layers.1.mlp" not in name}
    ours, theirs = settings_of(export(ModelOpt(), with_rounding(in_memory(model.inner, kept), TOKEN)))
    dense = ["lm_head", "model.embed_tokens", *(f"model.layers.1.mlp.{x}_proj" for x in ("down", "gate", "up"))]
    assert ours["ignore"] == theirs["quantization"]["exclude_modules"] == dense


def test_a_quantized_head_is_untied(make_model, tmp_path, in_memory, with_rounding, export):
    checkpoint = open_checkpoint(make_model(tmp_path / "source", "qwen3"))
    head = in_memory(checkpoint, {"lm_head.weight": FloatFormat("channel")})
    directory = export(ModelOpt(), with_rounding(head, TOKEN))
    assert json.loads((directory / "config.json").read_bytes())["tie_word_embeddings"] is False
    assert "lm_head" not in settings_of(directory)[0]["ignore"]


def formats(number_format, inputs):
    """A change that gives one layer another format."""

    def change(spec):
        name = f"{LAYER}.weight"
        tensors = {**spec.tensors, name: replace(spec.tensors[name], format=number_format)}
        others = {module: found for module, found in spec.activations.items() if module != LAYER}
        return replace(spec, tensors=tensors, activations={**others, LAYER: inputs} if inputs else others)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (formats(IntFormat(8, -1), None), "modelopt files hold FP8 and NVFP4, not int8"),
        (formats(FloatFormat("channel"), None), "go with inputs in fp8 dynamic per token, not left as they are"),
        (formats(FloatFormat("channel"), STATIC), "not in fp8 static"),
        (formats(None, TOKEN), "stays dense"),
        (formats(FloatFormat("block"), GROUP), "one algorithm for all layers"),
        (lambda spec: replace(spec, kv_cache=CacheFormat("int8")), "a cache in fp8 per tensor, not int8"),
        (lambda spec: replace(spec, kv_cache=CacheFormat("fp8", "head")), "not fp8 per head"),
        (lambda spec: replace(spec, activations={}, tensors={}), "no tensor is quantized"),
    ],
)
def test_what_no_file_says_is_refused(rounding, change, reason):
    with pytest.raises(RefusedError, match=reason):
        ModelOpt().layout(change(rounding("per channel").spec))


def test_embeddings_and_partial_blocks_are_refused(rounding):
    spec = rounding("per block").spec
    embedding = "model.embed_tokens.weight"
    found = replace(spec.tensors[embedding], format=FloatFormat("block"))
    assert "leave it dense" in ModelOpt().misfit(embedding, found, spec)
    found = replace(spec.tensors[f"{LAYER}.weight"], shape=(130, 128))
    assert "use `per: channel`" in ModelOpt().misfit(f"{LAYER}.weight", found, spec)


# Files of strangers.


@pytest.fixture(params=FOLDERS)
def stranger(request, tmp_path):
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "stranger"))


def edit_json(path, change):
    found = json.loads(path.read_bytes())
    change(found)
    path.write_text(json.dumps(found))


def test_old_files_say_it_beside_the_configuration_only(stranger):
    before = open_checkpoint(stranger).spec
    edit_json(stranger / "config.json", lambda config: config.pop("quantization_config"))
    assert open_checkpoint(stranger).spec == replace(before, files=open_checkpoint(stranger).spec.files)


def test_the_configuration_alone_says_it(stranger):
    before = open_checkpoint(stranger).spec
    (stranger / "hf_quant_config.json").unlink()
    assert open_checkpoint(stranger).spec == before


def test_the_settings_do_not_travel_to_other_containers(stranger):
    assert "hf_quant_config.json" not in open_checkpoint(stranger).files()


def in_config(**changes):
    return "config.json", lambda config: config["quantization_config"].update(changes)


def beside(**changes):
    return "hf_quant_config.json", lambda found: found["quantization"].update(changes)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (in_config(quant_algo="MIXED_PRECISION"), "MIXED_PRECISION"),
        (in_config(quant_algo=None), "names the algorithm"),
        (in_config(quant_algo=["FP8"]), "names the algorithm"),
        (in_config(quant_algo="FP8_PB_WO"), "disagree|which are not"),
        (in_config(kv_cache_scheme={"num_bits": 4}), "rounds the cache"),
        (in_config(quantization=7), "not a JSON object"),
        (beside(quant_algo="NVFP4_SVD"), "NVFP4_SVD"),
        (beside(kv_cache_quant_algo="INT8"), "rounds the cache"),
        (beside(quant_algo="fp8_pb_wo"), "disagree"),
        (("hf_quant_config.json", lambda found: found.pop("quantization")), "names the algorithm"),
    ],
)
def test_settings_that_mean_something_else_are_refused(stranger, edit, reason):
    name, change = edit
    edit_json(stranger / name, change)
    with pytest.raises(InputError, match=reason):
        open_checkpoint(stranger)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{LAYER}.weight_scale", None),
        (f"{LAYER}.weight_scale", torch.ones(7)),
        (f"{LAYER}.weight_scale", torch.ones(1, dtype=torch.int32)),
        (f"{LAYER}.weight", None),
        (f"{LAYER}.weight", torch.ones(32, 16)),
        (f"{LAYER}.weight", torch.full((32, 16), 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)),
        (f"{LAYER}.weight_scale_2", -torch.ones(())),
        (f"{LAYER}.pre_quant_scale", torch.ones(16)),
        (f"{LAYER}.input_scale", torch.ones(3)),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(stranger, name, value, edit):
    edit(stranger, {name: value})
    with pytest.raises(InputError, match=LAYER):
        open_checkpoint(stranger).read(f"{LAYER}.weight")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (f"{LAYER}.input_scale", None, "no tensor"),
        (f"{LAYER}.input_scale", torch.zeros(()), "positive"),
        (f"{LAYER}.weight_scale", -torch.ones(()), "positive"),
        (f"{ATTENTION}.k_proj.k_scale", None, "counterpart"),
        (f"{ATTENTION}.v_proj.v_scale", torch.ones(2), "not a scale"),
        (f"{ATTENTION}.k_scale", torch.ones(1), "two names"),
    ],
)
def test_static_scales_are_checked(tmp_path, name, value, reason, edit):
    directory = Path(shutil.copytree(GOLDEN / "fp8", tmp_path / "stranger"))
    edit(directory, {name: value})
    with pytest.raises(InputError, match=reason):
        model = open_checkpoint(directory)
        for found in model.spec.tensors:
            model.read(found)
