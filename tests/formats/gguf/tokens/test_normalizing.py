"""Words of a text, against the `tokenizers` library itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from compress.formats.gguf.tokens.normalizing import words
from compress.formats.gguf.tokens.splitting import PROBE

BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
PRE = {"type": "BertPreTokenizer"}
TEXT = PROBE + "\0\x07\u00ad\ufffd\u3000\u00a0 ộ Ǆ 𠀀𪜀 한국어 e\u0301\u0323 ½٣"


@pytest.mark.parametrize(
    ("normalizer", "pre"),
    [
        *[({**BERT, "lowercase": lower, "strip_accents": strip}, PRE)
          for lower in (True, False) for strip in (True, False, None)],
        ({**BERT, "clean_text": False, "lowercase": True, "strip_accents": None}, PRE),
        ({**BERT, "handle_chinese_chars": False, "lowercase": True, "strip_accents": None}, PRE),
        (None, PRE),
        *[({"type": form}, PRE) for form in ("NFC", "NFD", "NFKC", "NFKD")],
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]}, PRE),
        (None, {"type": "Whitespace"}),
        (None, {"type": "WhitespaceSplit"}),
        (None, {"type": "Punctuation", "behavior": "Isolated"}),
        (None, {"type": "Sequence", "pretokenizers": [PRE, {"type": "Digits", "individual_digits": True}]}),
        (None, {"type": "Sequence", "pretokenizers": [PRE, {"type": "Digits", "individual_digits": False}]}),
    ],
)  # fmt: skip
def test_words_are_those_of_tokenizers(normalizer: Any, pre: Any) -> None:
    value = json.loads(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    theirs = Tokenizer.from_str(json.dumps({**value, "normalizer": normalizer, "pre_tokenizer": pre}))
    text = theirs.normalizer.normalize_str(TEXT) if normalizer else TEXT
    assert words(normalizer, pre, TEXT) == [word for word, _ in theirs.pre_tokenizer.pre_tokenize_str(text)]
