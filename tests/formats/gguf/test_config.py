"""config.json out of a GGUF file: both generations of transformers read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.gguf.config import dims_of, write_config
from compress.formats.gguf.rope import rope_of

Write = Callable[..., Path]


def test_config_json_comes_back_in_both_generations(
    write: Write, kind: str, make: Callable[[str], Path], tmp_path: Path
) -> None:
    original = make(kind)
    files = open_checkpoint(write(open_checkpoint(original), tmp_path / "out", type="f32")).files()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "config.json").write_bytes(files["config.json"])
    before, after = (AutoConfig.from_pretrained(path).to_dict() for path in (original, tmp_path / "again"))
    for key in (
        "_name_or_path",
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "rotary_pct",
        "rotary_emb_base",
    ):
        after.pop(key, None)
    before.pop("_name_or_path", None)
    assert {key: after.get(key) for key in before} == before
    # What transformers 4 reads instead of rope_parameters and dtype.
    old = json.loads(files["config.json"])
    rope = before["rope_parameters"]
    assert old["rope_theta"] == rope["rope_theta"] and old["torch_dtype"] == "float32"
    assert (old["rope_scaling"] is None) == (rope["rope_type"] == "default")
    if kind == "gpt_neox":
        assert old["rotary_pct"] == rope["partial_rotary_factor"]
        assert old["rotary_emb_base"] == rope["rope_theta"]


def test_both_generations_of_config_json_are_read(make: Callable[[str], Path]) -> None:
    new = open_checkpoint(make("llama3")).spec.config
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype")}
    scaling = {key: value for key, value in new["rope_parameters"].items() if key != "rope_theta"}
    old |= {"rope_theta": new["rope_parameters"]["rope_theta"], "rope_scaling": scaling}
    assert rope_of(old) == rope_of(new)
    assert rope_of({"rope_scaling": {"type": "linear", "factor": 2.0}}).kind == "linear"
    neox = {"rotary_pct": 0.5, "rotary_emb_base": 20000}
    assert (rope_of(neox, 0.25).partial, rope_of(neox, 0.25).theta) == (0.5, 20000.0)


def test_sizes_are_found_under_every_familys_words() -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 12, "n_head": 2, "n_layer": 3, "n_positions": 64}
    dims = dims_of(gpt2)
    assert (dims.hidden, dims.inner, dims.heads, dims.kv_heads, dims.layers, dims.context) == (12, 48, 2, 2, 3, 64)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e39, 0, -1.0, True, "1"])
def test_a_setting_that_float32_does_not_hold_is_an_input_error(value: object, make: Callable[[str], Path]) -> None:
    config = {**open_checkpoint(make("llama")).spec.config, "model_type": "granite"}
    assert write_config({**config, "embedding_multiplier": 2.0})
    config["embedding_multiplier"] = value
    with pytest.raises(InputError, match="embedding_multiplier"):
        write_config(config)


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [("gpt2", "n_embd", "hidden_size"), ("falcon", "hidden_size", "hidden_size"),
     ("llama4_text", "interleave_moe_layer_step", "interleave_moe_layer_step")],
)  # fmt: skip
@pytest.mark.parametrize("value", ["x", [2], -1, 1.5])
def test_what_other_sizes_are_made_of_is_a_number_or_an_input_error(
    kind: str, key: str, said: str, value: object
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 8, "n_embd": 64,
             "n_head": 2, "n_layer": 2, "n_positions": 64, "intermediate_size": 64, "max_position_embeddings": 64,
             "num_local_experts": 2, "new_decoder_architecture": False}  # fmt: skip
    with pytest.raises(InputError, match=said):
        write_config({"model_type": kind, **sizes, key: value})
