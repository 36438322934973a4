"""WordPiece to GGUF and back, judged by the `tokenizers` library; llama.cpp's own tokens stand in tests/conformance."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from compress.formats.errors import CompressError, InputError, RefusedError
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata
from compress.formats.gguf.tokens.from_tokenizer import vocab_of
from compress.formats.gguf.tokens.keys import read_vocab, write_vocab
from compress.formats.gguf.tokens.splitting import PROBE
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files
from compress.formats.gguf.tokens.vocab import TokenType, Vocab
from compress.formats.gguf.tokens.wordpiece import unlike

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = sorted(set(PROBE + PROBE.lower() + "agilmnrstvwxyz") - set(" \r\n\t\u200d\u0301"))
WORDS = ["the", "quick", "walk", "##ing", "##ed", "foot", "##ball", "naïve", "naive", "##ck", "##", "def"]
PROBES = [PROBE, "Walking the football [SEP] walked[MASK]naïvely", "", " ", "<tool>a <TOOL>", "unwalkable ##ing"]


def bert(lowercase: bool = True, strip_accents: bool | None = None, **options: Any) -> Tokenizer:
    """A WordPiece tokenizer as BERT's makers publish it."""
    tokens = list(dict.fromkeys([*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]))
    vocab = {token: at for at, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", **options))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def files_of(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps({**names, "mask_token": "[MASK]", **settings}).encode(),
    }


def in_gguf(tokenizer: Tokenizer, size: int | None = None) -> Vocab:
    return vocab_of(files_of(tokenizer), {}, size or tokenizer.get_vocab_size())


@pytest.mark.parametrize(("lowercase", "strip"), [*product((True, False), (True, False, None))])
def test_it_comes_back_with_the_same_ids(lowercase: bool, strip: bool | None) -> None:
    original = bert(lowercase, strip)
    vocab = in_gguf(original, size := original.get_vocab_size() + 3)
    assert (vocab.kind, vocab.lowercase) == ("bert", lowercase)
    assert vocab.strip_accents is (lowercase if strip is None else strip)
    assert read_vocab(Metadata(write_vocab(vocab))) == vocab
    again = Tokenizer.from_str(tokenizer_files(vocab, context=8)["tokenizer.json"].decode())
    for text in PROBES:
        ids = original.encode(text).ids
        assert again.encode(text).ids == ids, text
        assert again.decode(ids) == original.decode(ids)
    assert [again.id_to_token(at) for at in range(size - 3)] == [original.id_to_token(at) for at in range(size - 3)]
    assert vocab_of(tokenizer_files(vocab, context=8), {}, size) == vocab


def test_gguf_marks_where_words_begin() -> None:
    original = bert()
    vocab = in_gguf(original)
    at = original.token_to_id
    assert (vocab.tokens[at("walk")], vocab.tokens[at("##ing")]) == ("▁walk", "ing")
    assert (vocab.tokens[at("[CLS]")], vocab.types[at("[CLS]")]) == ("[CLS]", TokenType.CONTROL)
    assert (vocab.tokens[at("<tool>")], vocab.types[at("<tool>")]) == ("<tool>", TokenType.USER_DEFINED)
    roles = {"bos": 2, "seperator": 3, "unknown": 1, "padding": 0, "mask": 4}
    assert vocab.roles == roles
    # gguf-py: what an engine takes for granted is written, and so are these two.
    written = write_vocab(vocab)
    assert written["tokenizer.ggml.normalizer.lowercase"] == Value(ValueType.BOOL, True)
    assert written["tokenizer.ggml.normalizer.strip_accents"] == Value(ValueType.BOOL, True)


def test_other_parts_that_do_the_same_are_the_same() -> None:
    """Found by behaviour: no BertNormalizer's name, and BERT's own post-processor."""
    tokenizer = bert(lowercase=False)
    value = json.loads(tokenizer.to_str())
    value["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    steps = [{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}]
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    again = Tokenizer.from_str(json.dumps(value))
    assert in_gguf(again) == in_gguf(tokenizer)


def normalizer(**options: Any) -> dict[str, Any]:
    plain = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    return {"type": "BertNormalizer", **plain, **options}


DEEP: Any = normalizer()
for _ in range(200):
    DEEP = {"type": "Sequence", "normalizers": [DEEP]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalizer": normalizer(handle_chinese_chars=False)}, "'日本語とカタカナ' is '日' '本' '語' "),
        ({"normalizer": normalizer(clean_text=False)}, "👩\\u200d💻' is '🦙🚀👩💻' there"),
        ({"normalizer": None}, "'🦙🚀👩💻' there"),
        ({"normalizer": {"type": "Lowercase"}}, "is '日' '本' '語' 'とカタカナ' there"),
        ({"normalizer": {"type": "NFKC"}}, "'fi'"),
        ({"normalizer": {"type": "Nmt"}}, "no normalizer 'Nmt'"),
        ({"normalizer": {"type": []}}, "no normalizer '[]'"),
        ({"normalizer": 3}, "no normalizer '3'"),
        ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "no normalizer 'Sequence'"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "'...'"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "fox's"),
        ({"pre_tokenizer": {"type": "Punctuation", "behavior": "Removed"}}, "no pre-tokenizer 'Punctuation'"),
        ({"pre_tokenizer": {"type": "UnicodeScripts"}}, "no pre-tokenizer 'UnicodeScripts'"),
        ({"pre_tokenizer": None}, "makes other words"),
        ({"decoder": None}, "this decoder"),
        ({"decoder": {"type": "ByteLevel"}}, "this decoder"),
        ({"decoder": {"type": "WordPiece", "prefix": "@@", "cleanup": True}}, "this decoder"),
        ({"post_processor": None}, "puts [] before a text and [] after it"),
        ({"post_processor": {"type": "BertProcessing"}}, "no post-processor"),
        ({"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[no]", 2]}}, "puts ['[no]']"),
        ({"model__continuing_subword_prefix": "@@"}, "another prefix"),
        ({"model__max_input_chars_per_word": 20}, "over 20 letters"),
        ({"model__max_input_chars_per_word": []}, "over [] letters"),
        ({"model__vocab__": 900}, "the token ''"),
        ({"model__vocab__##▁x": 900}, "the token '##▁x'"),
        ({"model__vocab__##[CLS]": 900}, "'[CLS]' and '##[CLS]' apart"),
        ({"added_tokens__5__normalized": True}, "'<tool>' is found in any case"),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_otherwise_is_refused_with_what_differs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as error:
        vocab_of(edited(bert(), changes), {}, 1000)
    assert said in f"{error.value} {error.value.hint}"


def edited(tokenizer: Tokenizer, changes: dict[str, Any]) -> dict[str, bytes]:
    value = json.loads(tokenizer.to_str())
    for path, change in changes.items():
        *parents, last = path.split("__")
        place = value
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        place[last] = change
    return {**files_of(tokenizer), "tokenizer.json": json.dumps(value).encode()}


@pytest.mark.parametrize(
    "changes",
    [{"model__unk_token": None}, {"model__unk_token": "[no]"}, {"model__unk_token": []}, {"model__vocab": {}},
     {"model__vocab__\ud800": 900}],
)  # fmt: skip
def test_a_vocabulary_that_is_none_is_an_input_error(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        vocab_of(edited(bert(), changes), {}, 1000)
    assert not isinstance(error.value, RefusedError)


def test_sequences_in_sequences_are_as_their_steps() -> None:
    assert vocab_of(edited(bert(), {"normalizer": DEEP}), {}, 1000) == vocab_of(files_of(bert()), {}, 1000)


def test_a_cased_tokenizer_finds_added_tokens_as_they_are() -> None:
    tokenizer = bert(lowercase=False)
    tokenizer.add_tokens(["<Tool>"])
    assert in_gguf(tokenizer).tokens[-1] == "<Tool>"


def strings(*items: str) -> Value:
    return Value(ValueType.ARRAY, list(items), ValueType.STRING)


def types(*items: int) -> Value:
    return Value(ValueType.ARRAY, list(items), ValueType.INT32)


TINY = {
    "tokenizer.ggml.model": Value(ValueType.STRING, "bert"),
    "tokenizer.ggml.tokens": strings("[UNK]", "[CLS]", "[SEP]", "▁a", "b"),
    "tokenizer.ggml.token_type": types(3, 3, 3, 1, 1),
    "tokenizer.ggml.unknown_token_id": Value(ValueType.UINT32, 0),
    "tokenizer.ggml.bos_token_id": Value(ValueType.UINT32, 1),
    "tokenizer.ggml.seperator_token_id": Value(ValueType.UINT32, 2),
}


def test_what_a_file_does_not_say_is_what_llama_cpp_takes_for_granted() -> None:
    vocab = read_vocab(Metadata(TINY))
    assert (vocab.lowercase, vocab.strip_accents, vocab.add_bos, vocab.add_eos) == (True, True, True, False)
    cased = {**TINY, "tokenizer.ggml.normalizer.lowercase": Value(ValueType.BOOL, False)}
    vocab = read_vocab(Metadata(cased))
    assert (vocab.lowercase, vocab.strip_accents) == (False, False)
    said = {**cased, "tokenizer.ggml.normalizer.strip_accents": Value(ValueType.BOOL, True)}
    assert read_vocab(Metadata(said)).strip_accents
    again = Tokenizer.from_str(tokenizer_files(vocab, context=8)["tokenizer.json"].decode())
    assert again.encode("ab a b").ids == [1, 3, 4, 3, 0, 2]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("unknown_token_id", None, "unknown_token_id is 100; there are 5 tokens"),
        ("bos_token_id", None, "bos_token_id is 101; there are 5 tokens"),
        ("seperator_token_id", None, "seperator_token_id is 102; there are 5 tokens"),
        ("seperator_token_id", Value(ValueType.UINT32, 5), "seperator_token_id is 5"),
        ("tokens", strings("[UNK]", "[CLS]", "[SEP]", "▁a", "▁a"), "twice"),
        ("tokens", strings("[UNK]", "[CLS]", "[SEP]", "##b", "b"), None),
        ("tokens", strings("##b", "[CLS]", "[SEP]", "▁a", "b"), "two of the tokens are one"),
        ("tokens", strings("[UNK]", "[CLS]", "[SEP]", "▁", "b"), "holds '▁'"),
        ("tokens", strings("[UNK]", "[CLS]", "[SEP]", "▁##a", "b"), "holds '▁##a'"),
        ("normalizer.lowercase", Value(ValueType.UINT32, 1), "not a bool"),
    ],
)
def test_a_hostile_file_is_an_input_error_that_says_where(key: str, value: Value | None, said: str | None) -> None:
    metadata = {name: entry for name, entry in {**TINY, f"tokenizer.ggml.{key}": value}.items() if entry is not None}
    if said is None:
        tokenizer_files(read_vocab(Metadata(metadata)), context=8)
        return
    with pytest.raises(InputError) as error:
        tokenizer_files(read_vocab(Metadata(metadata)), context=8)
    assert said in str(error.value)


def test_an_empty_token_is_one_that_no_text_has() -> None:
    metadata = {**TINY, "tokenizer.ggml.tokens": strings("[UNK]", "[CLS]", "[SEP]", "▁a", "")}
    vocab = read_vocab(Metadata(metadata))
    assert vocab.tokens[4] == "[EMPTY_4]"
    again = Tokenizer.from_str(tokenizer_files(vocab, context=8)["tokenizer.json"].decode())
    assert again.encode("a [EMPTY_4] aa").ids == [1, 3, *[0] * 5, 0, 2]


def test_wordpiece_without_its_tokens_is_not_made() -> None:
    vocab = in_gguf(bert())
    with pytest.raises(InputError, match="seperator_token_id is not there"):
        replace(vocab, roles={"bos": 2, "unknown": 1})


@pytest.mark.parametrize("letter", ["ᄒ", "##ᅡ", "##ि", "##⃝"])
def test_it_is_said_that_llama_cpp_strips_more_than_accents(letter: str) -> None:
    """Only where accents are stripped, and the vocabulary has tokens for what is lost (see tests/conformance)."""
    for strip, extra, said in ((True, True, True), (False, True, False), (True, False, False)):
        value = json.loads(bert(strip_accents=strip).to_str())
        vocab = {token: at for token, at in value["model"]["vocab"].items() if not set(token) & {"\u093f", "\u0940"}}
        value["model"]["vocab"] = vocab | ({letter: 900} if extra else {})
        written = write_vocab(vocab_of({**files_of(bert()), "tokenizer.json": json.dumps(value).encode()}, {}, 1000))
        assert bool(unlike(written)) is said


@pytest.mark.parametrize("vocab", [None, ["[UNK]"], {"a": 0}])
def test_a_vocabulary_without_its_unknown_token_is_an_input_error(vocab: object) -> None:
    value = json.loads(bert().to_str())
    value["model"] = {key: entry for key, entry in value["model"].items() if key != "vocab"}
    value["model"] |= {} if vocab is None else {"vocab": vocab}
    for added in ([], {"content": 1}, None):
        files = {"tokenizer.json": json.dumps({**value, "added_tokens": added}).encode()}
        with pytest.raises(CompressError):
            vocab_of({**files_of(bert()), **files}, {}, 1000)
