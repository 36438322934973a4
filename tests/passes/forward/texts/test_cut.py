"""Texts into sequences, with what is to be learned of them: judged token by token on the texts themselves."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.passes.forward.texts.cut import Cut, Cutter, joined
from compress.passes.forward.texts.rows import Document
from compress.passes.model.tokenizer import load_tokenizer

BOS = 0


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(open_checkpoint(tiny_llama))


@pytest.fixture
def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """As a tokenizer that puts a token in front of every text by itself."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|endoftext|> $A", None, [("<|endoftext|>", BOS)])
    assert tokenizer("a").input_ids[0] == BOS
    return tokenizer


class Notes(list[str]):
    """Keeps what the user is told."""

    def cutter(self, tokenizer: PreTrainedTokenizerBase, count: int, length: int, spread: bool = True) -> Cutter:
        return Cutter(tokenizer, count, length, spread, "texts", self.append)


def chat(text: str) -> Document:
    """A chat whose answers are its As; each of its letters is a token."""
    return Document(text, "chats:7", [(at, at + 1) for at, letter in enumerate(text) if letter == "A"])


def text(letters: str) -> Document:
    """No chat."""
    return Document(letters, "texts")


def rows(tokenizer: PreTrainedTokenizerBase, cut: Cut) -> list[str]:
    """The letters of each sequence, `.` for BOS and `_` for padding; what is to be learned must be its As and Ts."""
    mask = torch.ones_like(cut.ids, dtype=torch.bool) if cut.mask is None else cut.mask
    found = []
    for ids, real in zip(cut.ids, mask):
        letters = [tokenizer.decode(token).replace("<|endoftext|>", ".") for token in ids]
        found.append("".join(letter if each else "_" for letter, each in zip(letters, real)))
    if cut.answers is not None:
        assert cut.answers.tolist() == [[letter in "AT" for letter in row] for row in found]
    return found


def test_texts_run_together_and_what_is_learned_goes_with_them(tokenizer: PreTrainedTokenizerBase) -> None:
    notes = Notes()
    cut = notes.cutter(tokenizer, 9, 4).packed([chat("QQAAQA"), text("TTTTT"), chat("QAQQQQQQA")])
    assert rows(tokenizer, cut) == ["QQAA", "QATT", "TTTQ", "QQQA"] and cut.mask is None
    assert notes == ["texts: 1 of 5 sequences hold no answer and are left out"]  # AQQQ: its first token is not learned


def test_a_chat_that_fits_into_a_sequence_is_in_one_with_its_question(tokenizer: PreTrainedTokenizerBase) -> None:
    """What is left of the sequence before is filled with its beginning, of which nothing is learned."""
    cutter = Notes().cutter(tokenizer, 9, 4)
    cut = cutter.packed([chat("QAQ"), chat("QQA"), text("T"), chat("QQQQA"), text("TTT")])
    assert rows(tokenizer, cut) == ["QAQQ", "QQAT", "ATTT"]  # one that fits into none goes on, as texts do


def test_with_a_bos_in_front_the_first_token_is_learned(with_bos: PreTrainedTokenizerBase) -> None:
    notes = Notes()
    cut = notes.cutter(with_bos, 9, 4).packed([chat("QQAAQQQQQ")])
    assert rows(with_bos, cut) == [".QQA", ".AQQ"]
    assert rows(with_bos, notes.cutter(with_bos, 1, 4, spread=False).packed([chat("QAQQQQAQA")])) == [".QAQ"]


def test_sequences_are_spread_over_those_that_hold_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [chat("QA" + "QQ" + "QA" + "QQ" + "QA" * 4)]
    assert rows(tokenizer, Notes().cutter(tokenizer, 3, 2).packed(texts)) == ["QA"] * 3
    first = Notes().cutter(tokenizer, 2, 2, spread=False).packed([text("TQTATTTT")])
    assert rows(tokenizer, first) == ["TQ", "TA"]


def test_padded_texts_are_learned_up_to_their_end(with_bos: PreTrainedTokenizerBase) -> None:
    notes = Notes()
    cut = notes.cutter(with_bos, 9, 6).padded([chat("QA"), text(""), text("TTT"), chat("QQAAQA")])
    assert rows(with_bos, cut) == [".QA___", ".TTT__", ".QQAAQ"]
    assert notes == ["texts: 1 of 3 texts are cut off after 6 tokens"]
    again = notes.cutter(with_bos, 2, 6).padded([text("<|endoftext|>TT"), text("TTTT"), text("T")])
    assert rows(with_bos, again) == [".TT___", ".TTTT_"] and again.answers is None  # no second BOS


def test_texts_that_are_no_chats_are_learned_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    cutter = Notes().cutter(tokenizer, 9, 4)
    assert cutter.packed([text("TTTTT")]).answers is None and cutter.padded([text("TTT")]).answers is None


def test_a_chat_whose_answers_are_all_cut_off_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    cutter = Notes().cutter(tokenizer, 9, 5)
    for lost in ("QQQQQA", "AQQQQ"):  # nothing comes before the first token, so it is not learned
        with pytest.raises(InputError, match=f"chats:7: no answer to learn within 5 of its {len(lost)}") as caught:
            cutter.padded([chat("QA"), chat(lost)])
        assert "seq_len" in caught.value.hint and "pack: true" in caught.value.hint
    with pytest.raises(InputError, match="texts: no sequence holds an answer") as caught:
        cutter.packed([chat("QQQQQQA")])
    assert "pack: false" in caught.value.hint


def test_less_than_a_sequence_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="texts has 3 tokens, and one sequence takes 9"):
        Notes().cutter(tokenizer, 1, 9).packed([text("TTT")])
    assert Notes().cutter(tokenizer, 1, 9).packed([]).ids.shape == (0, 9)


def test_texts_are_joined_with_what_each_lacks(tokenizer: PreTrainedTokenizerBase) -> None:
    cutter = Notes().cutter(tokenizer, 9, 4)
    whole, padded = cutter.packed([text("TTTT")]), cutter.padded([text("TT")])
    chats, both = cutter.packed([chat("QAQA")]), cutter.padded([chat("QA")])
    assert rows(tokenizer, joined([whole, padded, chats, both])) == ["TTTT", "TT__", "QAQA", "QA__"]
    plain = joined([whole, whole])
    assert plain.mask is None and plain.answers is None and plain.ids.shape == (2, 4)
    assert joined([whole, padded]).answers is None


def test_a_text_that_never_ends_is_read_as_far_as_it_is_wanted(tokenizer: PreTrainedTokenizerBase) -> None:
    endless = (text("TTTT") for _ in count())
    assert len(Notes().cutter(tokenizer, 3, 2, spread=False).packed(endless).ids) == 3
    assert len(Notes().cutter(tokenizer, 3, 2).padded(endless).ids) == 3
    chats = (chat("QQQA") if number % 5 == 0 else chat("QQQQ") for number in count())
    assert rows(tokenizer, Notes().cutter(tokenizer, 3, 4, spread=False).packed(chats)) == ["QQQA"] * 3
