"""A Hugging Face directory as a checkpoint, and its config.json as an export changes it."""

import json
from dataclasses import replace

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.formats.files.hf_files import HFCheckpoint, dtype_change, edit_config, pickle_error


def test_a_model_has_the_name_that_the_hub_gives_it(tiny_llama, tmp_path):
    assert open_checkpoint(tiny_llama).spec.name == ""
    snapshot = tmp_path / "models--org--Tiny-1B--it" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    tiny_llama.rename(snapshot)
    assert HFCheckpoint(snapshot, "dense").spec.name == "Tiny-1B--it"


def test_changes_keep_the_order_and_the_bytes_of_the_rest(tiny_llama):
    model = open_checkpoint(tiny_llama)
    before = model.files()["config.json"]
    assert edit_config(model, {})["config.json"] == before
    after = json.loads(edit_config(model, {"vocab_size": 1, "new": {"a": 2}})["config.json"])
    assert list(after) == [*json.loads(before), "new"] and after["vocab_size"] == 1


def test_a_model_without_the_file_gets_one_from_its_spec(tiny_llama):
    model = open_checkpoint(tiny_llama)
    model.files = lambda: {}
    model.spec = replace(model.spec, config={"model_type": "llama", "_attn_implementation": "x/y"})
    assert json.loads(edit_config(model, {"a": 1})["config.json"]) == {"model_type": "llama", "a": 1}


BOTH = ["torch_dtype", "dtype"]


@pytest.mark.parametrize(
    ("config", "keys"), [({}, ["torch_dtype"]), ({"dtype": "x"}, ["dtype"]), (dict.fromkeys(BOTH, "x"), BOTH)]
)
def test_the_dtype_is_said_under_the_keys_of_the_source(config, keys):
    assert dtype_change(config, "float16") == dict.fromkeys(keys, "float16")


def test_a_directory_of_pickles_is_refused(tiny_llama):
    (tiny_llama / "model.safetensors").rename(tiny_llama / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a Python pickle"):
        open_checkpoint(tiny_llama)
    assert "save_pretrained" in pickle_error(tiny_llama).hint
