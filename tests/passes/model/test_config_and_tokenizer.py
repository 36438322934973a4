"""The boundary to transformers and tokenizers: what a stranger's JSON may not do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.passes.model.config import load_config
from compress.passes.model.tokenizer import load_tokenizer

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "hello": 1, "world": 2}, "unk_token": "<unk>"},
}  # fmt: skip


class Files(Checkpoint):
    """A checkpoint that has no weights."""

    def __init__(self, config: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        self.path, self.dialect, self.spec = Path("here"), "dense", ModelSpec(config, {})
        self._files = files

    def read(self, name: str) -> Tensor:
        raise KeyError(name)

    def files(self) -> Mapping[str, bytes]:
        return self._files

    def nbytes(self) -> int:
        return 0


def tokenizer_files(**changes: Any) -> dict[str, bytes]:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    return {
        "tokenizer.json": json.dumps({**TOKENIZER, **changes}).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def test_a_config_becomes_transformers_own() -> None:
    config = load_config(Files(LLAMA, {}))
    assert (config.model_type, config.hidden_size, config.num_key_value_heads) == ("llama", 64, 2)
    assert config.tie_word_embeddings is True
    assert config.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize("hostile", [
    {"auto_map": {"AutoConfig": "evil.Config"}}, {"trust_remote_code": True},
    {"_attn_implementation_internal": "evil/kernel"}, {"attn_implementation": "evil/kernel"},
    {"quantization_config": {"quant_method": "gptq"}},
])  # fmt: skip
def test_what_names_code_is_dropped(hostile: dict[str, Any]) -> None:
    (key,) = hostile
    config = load_config(Files({**LLAMA, **hostile}, {}))
    assert "evil" not in str(vars(config))
    assert key == "_attn_implementation_internal" or not getattr(config, key, None)


@pytest.mark.parametrize("change", [
    {"num_hidden_layers": 10**8}, {"num_hidden_layers": 0}, {"num_hidden_layers": "2"},
    {"num_hidden_layers": True},
    {"vocab_size": 2**40}, {"hidden_size": -1}, {"hidden_size": 1.5}, {"model_type": "none such"},
    {"model_type": None}, {"model_type": ["llama"]}, {"rope_scaling": "x"}, {"num_attention_heads": 0},
])  # fmt: skip
def test_values_that_no_model_has(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        load_config(Files({**LLAMA, **change}, {}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
keys = st.sampled_from([*LLAMA, "rope_scaling", "rope_parameters", "layer_types", "pad_token_id", "id2label", "dtype"])


@settings(max_examples=300, deadline=None)
@given(key=keys, value=json_values)
@pytest.mark.filterwarnings("ignore")
def test_any_value_is_a_config_or_an_input_error(key: str, value: Any) -> None:
    try:
        load_config(Files({**LLAMA, key: value}, {}))
    except InputError as error:
        assert "\n" not in str(error)


def test_a_tokenizer() -> None:
    tokenizer = load_tokenizer(Files(LLAMA, tokenizer_files()))
    assert tokenizer("hello world hello").input_ids == [1, 2, 1]


def test_a_chat_template_file_comes_along() -> None:
    template = b"{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(Files(LLAMA, {**tokenizer_files(), "chat_template.jinja": template}))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert text == "[user] hello"


@pytest.mark.parametrize("broken", [
    {}, {"tokenizer.json": b"{"}, {"tokenizer.json": b"[]"}, {"tokenizer.json": b"\xff"},
    tokenizer_files(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    tokenizer_files(model={"type": "Unigram", "vocab": [], "unk_id": 7}),
    tokenizer_files(pre_tokenizer={"type": "Metaspace", "replacement": "", "add_prefix_space": True}),
    tokenizer_files(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    tokenizer_files(
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 9}
    ),
], ids=str)  # fmt: skip
def test_broken_tokenizers(broken: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(Files(LLAMA, broken))


def test_python_files_are_not_even_written() -> None:
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    files = {
        **tokenizer_files(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "evil.py": b"raise SystemExit",
    }
    try:
        tokenizer = load_tokenizer(Files(LLAMA, files))
    except InputError:
        return
    assert type(tokenizer).__module__.startswith("transformers.")
