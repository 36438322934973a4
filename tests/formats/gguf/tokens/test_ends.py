"""What goes around a text, against the `tokenizers` library itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, processors

from compress.formats.errors import RefusedError
from compress.formats.gguf.tokens.ends import ends

VOCAB = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}


@pytest.mark.parametrize(
    "processor",
    [
        None,
        processors.BertProcessing(("</s>", 1), ("<s>", 0)),
        processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
        processors.ByteLevel(),
        processors.TemplateProcessing(single="<s> <s> $A b", special_tokens=[("<s>", 0), ("b", 3)]),
        # One name for two tokens.
        processors.TemplateProcessing(
            single="both $A", special_tokens=[{"id": "both", "ids": [0, 3], "tokens": ["<s>", "b"]}]
        ),
        processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])]
        ),
    ],
)
def test_the_ends_are_those_of_tokenizers(processor: Any) -> None:
    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="a"))
    if processor is not None:
        tokenizer.post_processor = processor
    before, after = ends(json.loads(tokenizer.to_str())["post_processor"], {}, "<s>", "</s>")
    assert [*before, "a", *after] == tokenizer.encode("a").tokens


def test_the_flags_of_tokenizer_config_decide_as_for_transformers() -> None:
    post = {"type": "BertProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]}
    assert ends(post, {"add_bos_token": True}, "<s>", "</s>") == (["<s>"], [])
    assert ends(post, {"add_bos_token": False, "add_eos_token": True}, "<s>", "</s>") == ([], ["</s>"])
    assert ends(post, {"add_bos_token": True}, None, None) == ([], [])
    assert ends(post, {"add_bos_token": None}, None, None) == (["<s>"], ["</s>"])


@pytest.mark.parametrize(
    "post",
    [3, [], {"type": []}, {"type": "BertProcessing", "sep": [], "cls": ["<s>", 0]},
     {"type": "TemplateProcessing", "single": None}, {"type": "Sequence", "processors": 3},
     {"type": "Sequence", "processors": [{"type": "Sequence", "processors": []}]}],
)  # fmt: skip
def test_what_is_not_known_is_refused(post: Any) -> None:
    with pytest.raises(RefusedError, match="no post-processor"):
        ends(post, {}, None, None)
