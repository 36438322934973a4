"""What is said of a path that is no checkpoint: what lies there, and what to give instead."""

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.files.unrecognized import unrecognized


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.bin", "pickle"),
        ("model.ckpt", "pickle"),
        ("model.safetensors", "weights only"),
        ("x.txt", "is not a checkpoint"),
    ],
)
def test_a_file_is_told_by_its_kind(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=said):
        open_checkpoint(tmp_path / name)


def test_a_directory_without_a_config_says_what_it_holds(tmp_path):
    for index in range(10):
        (tmp_path / f"{index}.txt").touch()
    error = unrecognized(tmp_path, ["dense"])
    assert "no config.json (it holds 0.txt, 1.txt" in str(error) and str(error).endswith(", …)")


def test_an_unknown_method_is_named_beside_those_that_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "exl3"}}')
    error = unrecognized(tmp_path, ["dense", "gptq"])
    assert "method 'exl3'" in str(error) and "dense, gptq" in error.hint
