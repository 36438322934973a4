"""The library's own reading of a directory."""

import pytest
import torch
from safetensors.torch import save_file

from compress.formats.files.safetensors.witness import read_floats, read_with_library


def test_tensors_are_found_in_every_file(tmp_path):
    save_file({"a": torch.arange(3)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(2).half()}, tmp_path / "2.safetensors")
    read = read_with_library(tmp_path)
    assert read("a").tolist() == [0, 1, 2] and read("b").dtype == torch.float16
    assert read_floats(tmp_path)("b").dtype == torch.float32
    with pytest.raises(KeyError):
        read("c")
