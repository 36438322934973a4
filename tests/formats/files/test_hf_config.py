"""config.json: floats that JSON has no words for, and where it says how weights are quantized."""

import json
import math

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.files.hf_config import (
    harmless,
    is_hf_directory,
    quant_method,
    quantization_of,
    read_config,
    unquantized,
)
from compress.formats.gptq.dialect import GPTQ
from compress.kernels.numbers.int import IntFormat

INT4 = IntFormat(4, 32)


@pytest.fixture
def saying(tmp_path):
    """saying(config) → a directory with that config.json."""

    def write(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture
def moved(quantized, tmp_path):
    """moved(how) → a GPTQ directory whose config.json is what `how` makes of it; no other file says so."""

    def write(how):
        directory = tmp_path / "gptq"
        directory.mkdir()
        GPTQ().write(quantized(INT4), directory, lambda name: None)
        (directory / "quantize_config.json").unlink()
        config = json.loads((directory / "config.json").read_bytes())
        (directory / "config.json").write_text(json.dumps(how(config)))
        return directory

    return write


def inner(config):
    return {**config, "text_config": {"x": 1, "quantization_config": config.pop("quantization_config")}}


def test_special_floats_are_floats_at_any_depth(saying):
    tagged = {"__float__": "Infinity"}
    config = read_config(
        saying(a=tagged, b=[0.0, tagged], c={"d": [{"e": {"__float__": "-Infinity"}}]}, f={"__float__": "NaN"})
    )
    assert config["a"] == math.inf and config["b"] == [0.0, math.inf] and config["c"]["d"][0]["e"] == -math.inf
    assert math.isnan(config["f"])


def test_what_only_looks_like_a_special_float_stays(saying):
    config = read_config(saying(a={"__float__": "1"}, b={"__float__": "NaN", "c": 1}, d={"__float__": 1}))
    assert config == {"a": {"__float__": "1"}, "b": {"__float__": "NaN", "c": 1}, "d": {"__float__": 1}}


def test_the_bytes_of_special_floats_are_kept(tiny_llama, tmp_path):
    where = tiny_llama / "config.json"
    config = {**json.loads(where.read_bytes()), "limit": [0.0, {"__float__": "Infinity"}]}
    where.write_text(json.dumps(config))
    checkpoint = open_checkpoint(tiny_llama)
    assert checkpoint.spec.config["limit"] == [0.0, math.inf]
    assert checkpoint.files()["config.json"] == where.read_bytes()


@pytest.mark.parametrize("how", [inner, lambda config: {"a": {"b": inner(config)}, **config}], ids=["one", "three"])
def test_a_quantization_is_seen_in_every_part_of_the_configuration(moved, how):
    checkpoint = open_checkpoint(moved(how))
    assert checkpoint.dialect == "gptq"
    assert checkpoint.spec.tensors["model.layers.0.mlp.up_proj.weight"].format == INT4
    assert "quantization_config" not in checkpoint.files()["config.json"].decode()


def test_a_quantization_under_its_older_key_is_compressed_tensors(saying):
    directory = saying(compression_config={"format": "pack-quantized"})
    assert quantization_of(directory) == {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    assert quant_method(saying(compression_config={"quant_method": "other"})) == "other"


def test_the_same_said_twice_is_said_once(saying):
    same = {"quant_method": "awq", "bits": 4}
    assert quantization_of(saying(quantization_config=same, text_config={"quantization_config": same})) == same
    with pytest.raises(InputError, match="says twice"):
        quantization_of(saying(quantization_config=same, text_config={"quantization_config": {**same, "bits": 8}}))


@pytest.mark.parametrize("found", [[1], "gptq", 4])
def test_a_quantization_that_is_no_object_is_refused(saying, found):
    with pytest.raises(InputError, match="JSON object"):
        quantization_of(saying(text_config={"quantization_config": found}))


def test_early_files_of_autogptq_name_no_method(saying, tmp_path):
    assert quant_method(saying(quantization_config={"bits": 4})) == "gptq"
    saying()
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert quant_method(tmp_path) == "gptq"


def test_a_dense_directory_names_none(saying, tmp_path):
    assert quant_method(saying(quantization_config=None)) is None
    assert not is_hf_directory(tmp_path / "config.json") and quant_method(tmp_path / "nowhere") is None


def test_what_says_so_is_taken_out_at_any_depth():
    config = {"a": 1, "quantization_config": {}, "b": {"compression_config": {}, "c": 2}}
    assert unquantized(config) == {"a": 1, "b": {"c": 2}}
    assert harmless({"_attn_implementation": "x/y", "b": {"trust_remote_code": True, "c": 2}}) == {"b": {"c": 2}}
