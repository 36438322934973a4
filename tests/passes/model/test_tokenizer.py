"""The boundary to tokenizers: what a stranger's files may not do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec
from compress.formats.errors import InputError
from compress.passes.model.tokenizer import load_tokenizer

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 300}
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
