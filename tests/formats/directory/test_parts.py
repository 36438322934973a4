"""One weight as several tensors: each is read once, and asked for part by part."""

import torch
from safetensors.torch import load_file

from compress.formats.base import TensorSpec
from compress.formats.directory.parts import beside, write_parts
from compress.formats.files.safetensors.shards import plan_shards


def test_parts_stand_beside_the_weight():
    assert beside("layer.weight", {"qweight": 1, "weight.absmax": 2}) == {"layer.qweight": 1, "layer.weight.absmax": 2}


def test_a_weight_is_packed_once_and_progress_names_it(tmp_path):
    parts = {f"{module}.{part}": TensorSpec((2,), "float32") for module in "ab" for part in ("codes", "scales")}
    packed, told = [], []

    def encode(name):
        packed.append(name)
        return {f"{name}.{part}": torch.full((2,), float(ord(name))) for part in ("codes", "scales")}

    write_parts(tmp_path, plan_shards(parts, 1000), {part: part[0] for part in parts}, encode, told.append)
    assert packed == told == ["a", "b"]
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["b.scales"].tolist() == [98.0, 98.0] and set(stored) == set(parts)
