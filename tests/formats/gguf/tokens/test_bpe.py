"""What a tokenizer.json's BPE is in GGUF; the tokens that come out are judged in test_vocab.py."""

from __future__ import annotations

from typing import Any

import pytest

from compress.formats.errors import RefusedError
from compress.formats.gguf.tokens.bpe import sentencepiece
from compress.formats.gguf.tokens.vocab import TokenType

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
METASPACE = {"type": "Metaspace", "replacement": "▁", "split": False}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def of(tokens: list[str], **parts: Any) -> dict[str, Any]:
    types = [TokenType.BYTE if token in BYTES else TokenType.NORMAL for token in tokens]
    return sentencepiece({"model": {"merges": []}, **parts}, tokens, types, {})


@pytest.mark.parametrize(
    ("parts", "space"),
    [
        ({"pre_tokenizer": METASPACE}, True),
        ({"pre_tokenizer": {**METASPACE, "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {**METASPACE, "prepend_scheme": "never"}}, False),
        ({"normalizer": REPLACE}, False),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]}}, True),
    ],
)
def test_whether_a_space_goes_before_every_text(parts: dict[str, Any], space: bool) -> None:
    assert of([*BYTES, "▁"], **parts)["space_prefix"] is space


@pytest.mark.parametrize(
    "parts",
    [{}, {"normalizer": 3}, {"normalizer": {"type": "Sequence", "normalizers": 3}}, {"pre_tokenizer": 3},
     {"pre_tokenizer": {**METASPACE, "split": True}}, {"normalizer": REPLACE, "pre_tokenizer": METASPACE}],
)  # fmt: skip
def test_other_ways_with_spaces_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="neither byte-level BPE nor SentencePiece"):
        of([*BYTES, "▁"], **parts)


def test_byte_fallback_needs_every_byte() -> None:
    with pytest.raises(RefusedError, match="2 of the 256 bytes"):
        of(BYTES[2:], pre_tokenizer=METASPACE)
