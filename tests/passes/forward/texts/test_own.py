"""How text begins that the model is to write: as the other texts of its blend do, chats up to the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.passes.forward.texts.cut import Cut
from compress.passes.forward.texts.own import begun
from compress.passes.model.tokenizer import load_tokenizer

TEXT = Cut(torch.arange(1, 81).reshape(4, 20))


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(open_checkpoint(tiny_llama))


def test_alone_it_begins_with_what_the_tokenizer_puts_in_front(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = begun(tokenizer, 3, 10)
    assert found.begun is not None and found.begun.tolist() == [0, 0, 0] and found.mask is None
    monkeypatch.setattr("compress.passes.forward.texts.own.bos", lambda _: [5])
    found = begun(tokenizer, 3, 10, padded=True)
    assert found.begun is not None and found.begun.tolist() == [1, 1, 1] and found.ids.shape == (3, 10)
    assert found.ids[:, 0].tolist() == [5, 5, 5] and found.mask is not None and bool(found.mask.all())


def test_in_a_blend_it_begins_as_the_other_texts_do(tokenizer: PreTrainedTokenizerBase) -> None:
    found = begun(tokenizer, 2, 20, [TEXT])
    assert found.begun is not None and found.begun.tolist() == [8, 8] and found.answers is None
    assert found.ids[:, :8].equal(TEXT.ids[[0, 2], :8]) and not bool(found.ids[:, 8:].any())
    assert begun(tokenizer, 8, 20, [TEXT]).ids[:, 0].tolist() == [1, 1, 21, 21, 41, 41, 61, 61]


def test_of_chats_it_begins_with_all_before_the_first_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    answers, mask = torch.zeros(2, 4, 20, dtype=torch.bool)
    for row, (start, length) in enumerate([(13, 18), (0, 20), (19, 20), (2, 4)]):
        answers[row, start:length], mask[row, :length] = True, True
    found = begun(tokenizer, 4, 20, [Cut(TEXT.ids, mask, answers)], padded=True)
    assert found.begun is not None and found.answers is not None
    assert found.begun.tolist() == [13, 8, 19, 4]  # one that begins with an answer; one that is short
    assert found.answers.long().argmax(1).tolist() == found.begun.tolist() and bool(found.answers[:, -1].all())
