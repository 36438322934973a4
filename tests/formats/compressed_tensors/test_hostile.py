"""compressed-tensors files whose tensors do not fit together or whose configuration lies: input errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.formats.compressed_tensors.dialect import CompressedTensors
from compress.formats.errors import InputError
from compress.kernels.numbers.int import IntFormat

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def artifact(quantized, export):
    return export(CompressedTensors(), quantized(IntFormat(4, 32, "integer")))


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


def test_a_trivial_order_of_columns_is_read(artifact, assert_same):
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
