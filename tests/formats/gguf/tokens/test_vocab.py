"""Tokenizers to GGUF and back; the judge of what is read back is the `tokenizers` library.

That llama.cpp makes the same tokens of the same metadata is shown in tests/conformance/test_llama_cpp.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata
from compress.formats.gguf.tokens.from_tokenizer import vocab_of
from compress.formats.gguf.tokens.keys import read_vocab, write_vocab
from compress.formats.gguf.tokens.pretokenizers import BY_NAME
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files
from compress.formats.gguf.tokens.vocab import TokenType, Vocab

TEXT = [
    "The quick brown fox's 42 foxes don't jump; they'Ll walk 1234567 miles.\n\n  Then, rest...",
    "def f(x):\n\treturn  x**2 # naïve café, Ünïcödé, 日本語 한국어 العربية\r\n",
    "🦙🚀 (emoji) $100+ <tag> ABCdefGHI ٣٤٥ x² ﬁ  ",
]
PROBES = [*TEXT, "", " ", "\n \n", "hello<|end|>  world<|end|>", "a<tool>b <tool> c", "3 33 333 3333"]
SIZE = 400
SPECIAL = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(*steps: Any, use_regex: bool = False, nfc: bool = False, **model: Any) -> Tokenizer:
    """A trained byte-level BPE with a control token and a token of the user's, as model makers publish it."""
    tokenizer = Tokenizer(models.BPE(**model))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 20, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def split(regex: str) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(regex), "isolated")


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt-2": lambda: byte_level(use_regex=True),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "olmo": lambda: byte_level(use_regex=True, nfc=True),
    "llama-bpe": lambda: byte_level(split(LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(split(LLAMA3)),
    "qwen2": lambda: byte_level(split(QWEN2), nfc=True),
}


def sentencepiece() -> Tokenizer:
    """A byte-fallback BPE whose merges are all the ways to make its pieces: Llama 2's kind."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁the", "▁th", "▁t", "the", "th", "he", "▁a", "▁fox", "fo", "ox", "fox", "▁f", "▁▁", "an", "▁an"]
    letters = sorted(set("▁" + "".join("".join(TEXT[:2]).split())) | set("▁thefoxan"))
    ranked = [
        "▁t",
        "he",
        "▁a",
        "th",
        "▁th",
        "▁the",
        "the",
        "▁f",
        "fo",
        "ox",
        "fox",
        "▁fox",
        "▁▁",
        "an",
        "▁an",
    ]
    assert sorted(words) == sorted(ranked)
    vocab = {piece: at for at, piece in enumerate([*pieces, *ranked, *letters])}
    merges = [
        (piece[:at], piece[at:])
        for piece in ranked
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def files_of(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def through_gguf(vocab: Vocab) -> Vocab:
    return read_vocab(Metadata(write_vocab(vocab)))


@pytest.mark.parametrize("name", MAKERS)
def test_byte_level_tokenizers_are_recognized_and_come_back_with_the_same_ids(name: str) -> None:
    original = MAKERS[name]()
    vocab = vocab_of(files_of(original, eos_token="<|end|>", chat_template="{{ x }}"), {}, SIZE)
    assert (vocab.kind, vocab.pre) == ("gpt2", name)
    assert vocab.types[original.token_to_id("<|end|>")] is TokenType.CONTROL
    assert vocab.types[original.token_to_id("<tool>")] is TokenType.USER_DEFINED
    assert vocab.tokens[-1] == f"[PAD{SIZE - 1}]" and vocab.types[-1] is TokenType.UNUSED
    assert through_gguf(vocab) == vocab
    files = tokenizer_files(vocab, context=128)
    again = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in PROBES:
        assert again.encode(text).ids == original.encode(text).ids
        assert again.decode(original.encode(text).ids) == original.decode(original.encode(text).ids)
    assert files["chat_template.jinja"] == b"{{ x }}"
    assert vocab_of(files, {}, SIZE) == vocab


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back_with_the_same_ids(prefix: bool) -> None:
    original = sentencepiece()
    if not prefix:
        original.normalizer = normalizers.Replace(" ", "▁")
    vocab = vocab_of(files_of(original, **SPECIAL), {}, original.get_vocab_size())
    assert (vocab.kind, vocab.add_bos, vocab.space_prefix) == ("llama", True, prefix)
    assert vocab.roles == {"bos": 1, "eos": 2, "unknown": 0}
    assert vocab.types[0] is TokenType.UNKNOWN and vocab.types[3] is TokenType.BYTE
    assert through_gguf(vocab) == vocab
    files = tokenizer_files(vocab, context=128)
    again = Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in [*PROBES, "the fox  then an ax", "<s>the fox</s>and 😀"]:
        assert again.encode(text).ids == original.encode(text).ids
        assert again.encode(text, text).ids == original.encode(text, text).ids
    assert vocab_of(files, {}, original.get_vocab_size()) == vocab


def test_metaspace_says_the_same_as_prepend_and_replace() -> None:
    tokenizer = sentencepiece()
    plain = vocab_of(files_of(tokenizer, **SPECIAL), {}, tokenizer.get_vocab_size())
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    assert vocab_of(files_of(tokenizer, **SPECIAL), {}, tokenizer.get_vocab_size()) == plain


def test_the_tokenizers_own_files_decide_before_config_json() -> None:
    files = files_of(MAKERS["gpt-2"](), eos_token="<tool>", add_bos_token=True)
    vocab = vocab_of(files, {"eos_token_id": 5, "bos_token_id": [7, 8], "pad_token_id": None}, SIZE)
    assert vocab.roles == {"eos": vocab.tokens.index("<tool>"), "bos": 7}
    assert vocab.add_bos and not vocab.add_eos


def test_what_only_gguf_says_survives_the_way_through_hugging_face() -> None:
    metadata = write_vocab(vocab_of(files_of(MAKERS["smollm"]()), {}, SIZE))
    metadata["tokenizer.ggml.pre"] = Value(ValueType.STRING, "starcoder")
    metadata["tokenizer.ggml.fim_pre_token_id"] = Value(ValueType.UINT32, 9)
    vocab = read_vocab(Metadata(metadata))
    again = vocab_of(tokenizer_files(vocab, context=8), {}, SIZE)
    assert (again.pre, again.roles["fim_pre"]) == ("starcoder", 9)


def test_every_pre_tokenizer_builds_in_the_library_that_reads_it() -> None:
    vocab = vocab_of(files_of(MAKERS["gpt-2"]()), {}, SIZE)
    for name in BY_NAME:
        named = replace(vocab, pre=name)
        tokenizer = Tokenizer.from_str(tokenizer_files(named, context=8)["tokenizer.json"].decode())
        assert tokenizer.decode(tokenizer.encode(TEXT[0]).ids) == TEXT[0]
        assert vocab_of(tokenizer_files(named, context=8), {}, SIZE) == named


def test_equal_scores_merge_in_the_order_of_ids() -> None:
    """Converters without the SentencePiece file write −1000 for every piece; ids still tell the order."""
    original = sentencepiece()
    vocab = vocab_of(files_of(original, **SPECIAL), {}, original.get_vocab_size())
    flat = replace(vocab, scores=(-1000.0,) * len(vocab.tokens))
    again = Tokenizer.from_str(tokenizer_files(flat, context=8)["tokenizer.json"].decode())
    assert (
        again.encode("the fox than", add_special_tokens=False).ids
        == original.encode("the fox than", add_special_tokens=False).ids
    )


def as_file(value: object) -> dict[str, bytes]:
    return {"tokenizer.json": json.dumps(value).encode()}


def edited(tokenizer: Tokenizer, **changes: Any) -> dict[str, bytes]:
    value = json.loads(tokenizer.to_str())
    for path, change in changes.items():
        *parents, last = path.split("__")
        place = value
        for parent in parents:
            place = place[parent]
        place[last] = change
    return as_file(value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "only BPE and WordPiece tokenizers"),
        ({"normalizer": {"type": "Lowercase"}}, "normalize"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not byte-level BPE"),
        ({"pre_tokenizer": None}, "not byte-level BPE"),
        ({"pre_tokenizer__add_prefix_space": True}, "space before"),
        ({"pre_tokenizer__use_regex": False}, "known are those of"),
        ({"post_processor": {"type": "BertProcessing"}}, "no post-processor"),
        ({"post_processor": {"type": "Sequence", "processors": [{"type": "Sequence"}]}}, "no post-processor"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"model__ignore_merges": True}, "with ignore_merges"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as error:
        vocab_of(edited(MAKERS["gpt-2"](), **changes), {}, SIZE)
    assert said in f"{error.value} {error.value.hint}"


def test_a_token_that_strips_its_neighbours_is_refused() -> None:
    from tokenizers import AddedToken

    tokenizer = MAKERS["gpt-2"]()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(RefusedError, match="<mask>"):
        vocab_of(files_of(tokenizer), {}, SIZE)


def test_merges_that_scores_cannot_say_are_refused() -> None:
    value = json.loads(sentencepiece().to_str())
    size, merges = len(value["model"]["vocab"]), value["model"]["merges"]
    # A piece with two ways to make it, and another piece's merge between them, has no one score.
    for wrong, said in ((merges[:-1], "would join"), ([*merges, merges[0]], "order")):
        value["model"]["merges"] = wrong
        with pytest.raises(RefusedError, match=said):
            vocab_of({**files_of(sentencepiece(), **SPECIAL), **as_file(value)}, {}, size)


def test_more_tokens_than_the_embedding_has_rows_are_refused() -> None:
    with pytest.raises(RefusedError, match="embedding has 300 rows"):
        vocab_of(files_of(MAKERS["gpt-2"]()), {}, 300)


def test_no_fast_tokenizer_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"tokenizer\.json"):
        vocab_of({}, {}, SIZE)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"model": {"type": "BPE", "vocab": {"a": -1}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": true}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 1e99}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}',
        b'{"model": {"type": "BPE"}, "added_tokens": [1]}',
        b'{"model": {"type": "BPE", "vocab": {"\\ud800": 0}}, "pre_tokenizer": {"type": "ByteLevel"}}',
        b'{"model": {"type": "BPE"}, "added_tokens": [{"id": [], "content": "a"}]}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}, "pre_tokenizer": {"type": "ByteLevel"}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}, "pre_tokenizer": {"type": "ByteLevel"}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]},'
        b' "pre_tokenizer": {"type": "ByteLevel"}}',
    ],
)
def test_a_malformed_tokenizer_json_is_an_input_error(data: bytes) -> None:
    with pytest.raises(InputError):
        vocab_of({"tokenizer.json": data}, {}, SIZE)
