"""config.json out of a GGUF file: both generations of transformers read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig

from compress.formats import open_checkpoint
from compress.formats.gguf.config import dims_of
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
