"""llama.cpp cuts text into the same tokens as Hugging Face's `tokenizers`, for every tokenizer that we write.

The one reads our metadata, the other the tokenizer.json that we read back out of it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from compress.formats import open_checkpoint
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.tokens.pretokenizers import BY_NAME
from compress.formats.gguf.tokens.to_tokenizer import tokenizer_files
from compress.formats.gguf.tokens.vocab import TokenType, Vocab

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.engine

Serve = Callable[[Path], Any]
PROBES = [
    "The quick brown fox's 42 foxes don't jump; they'Ll walk 1234567 miles.\n\n  Then, rest...",
    "def f(x):\n\treturn  x**2 # naïve café, 日本語 한국어 العربية\r\n",
    "🦙🚀 (emoji) $100+ <tag> ABCdefGHI ٣٤٥ x² ﬁ  ",
    "a<|end|>  b<|end|>\n",
    "a<tool>b <tool> c",
    "3 33 333 3333 33333 3.3 3..3 3...3  \t\t ------=======",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "I've been 'told he's there, 'RE you sure? We'Ve a'lL ''''''```````\"\"\"\"......!!!!!!?????? ",
]
PROBES = [unicodedata.normalize("NFC", text) for text in PROBES]  # llama.cpp does not normalize


def loose_vocab(size: int) -> Vocab:
    """A byte-level BPE trained without cuts: its tokens cross words, so that every cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text in PROBES if "|end|" not in text] * 2, trainer)
    value = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(value["vocab"], key=value["vocab"].__getitem__)
    assert len(tokens) == size - 2
    return Vocab(
        kind="gpt2",
        pre="gpt-2",
        tokens=(*tokens, "<|end|>", "<tool>"),
        types=(TokenType.NORMAL,) * len(tokens) + (TokenType.CONTROL, TokenType.USER_DEFINED),
        merges=tuple((left, right) for left, right in value["merges"]),
        scores=(0.0,) * size,
        roles={"bos": size - 2, "eos": size - 2},
        add_bos=True,
        add_eos=False,
        space_prefix=False,
        chat_templates={},
    )


def sentencepiece_vocab(size: int, space_prefix: bool) -> Vocab:
    """Llama 2's kind: bytes, letters, and pieces with scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    pieces = ["▁t", "he", "▁a", "in", "▁the", "re", "er", "ou", "▁▁", "33", "▁there", "st"]
    letters = sorted(set("▁.,'()=-abcdefghijklmnopqrstuvwxyz0123456789"))
    tokens += [*pieces, *letters, "<tool>"]
    tokens += [f"[PAD{at}]" for at in range(len(tokens), size)]
    types += [TokenType.NORMAL] * (len(pieces) + len(letters)) + [TokenType.USER_DEFINED]
    types += [TokenType.UNUSED] * (size - len(types))
    return Vocab(
        kind="llama",
        pre="default",
        tokens=tuple(tokens),
        types=tuple(types),
        merges=(),
        scores=tuple(float(-at) for at in range(size)),
        roles={"bos": 1, "eos": 2, "unknown": 0},
        add_bos=True,
        add_eos=True,
        space_prefix=space_prefix,
        chat_templates={},
    )


def save_model(family: str, vocab: int, directory: Path) -> None:
    """A tiny model of random weights."""
    if family == "gpt2":
        config: Any = GPT2Config(vocab_size=vocab, n_embd=64, n_layer=1, n_head=2, n_positions=256)
    else:
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=256,
        )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)


def check_tokens(vocab: Vocab, directory: Path, llama_cpp: Serve) -> None:
    """Both libraries cut the probes alike: llama.cpp by the metadata, `tokenizers` by the tokenizer.json."""
    source, out = directory / "source", directory / "out"
    save_model("llama", len(vocab.tokens), source)
    for name, data in tokenizer_files(vocab, context=256).items():
        (source / name).write_bytes(data)
    out.mkdir()
    GGUF().write(open_checkpoint(source), out, lambda name: None)
    tokenizer = Tokenizer.from_str(GGUF.open(out).files()["tokenizer.json"].decode())
    with llama_cpp(out) as engine:
        for text in PROBES:
            for special in (False, True):
                assert engine.tokenize(text, special) == tokenizer.encode(text, None, False, special).ids, text


@pytest.mark.parametrize("name", sorted({entry.names[0] for entry in BY_NAME.values()}))
def test_every_pre_tokenizer_cuts_alike(name: str, tmp_path: Path, llama_cpp: Serve) -> None:
    check_tokens(replace(loose_vocab(540), pre=name), tmp_path, llama_cpp)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_cuts_alike(space_prefix: bool, tmp_path: Path, llama_cpp: Serve) -> None:
    check_tokens(sentencepiece_vocab(320, space_prefix), tmp_path, llama_cpp)


def wordpiece(lowercase: bool, strip_accents: bool, *others: str) -> PreTrainedTokenizerFast:
    """BERT's kind: the letters of the probes, in both cases, and some words and their ends."""
    letters = sorted({letter for text in PROBES for letter in text + text.lower() if not letter.isspace()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["the", "The", "fox", "##es", "quick", "##ck", "don", "naive", "naïve", "cafe", "café", "##ll", "123", "33"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *words, *others]
    tokenizer = Tokenizer(models.WordPiece({token: at for at, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=strip_accents, lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [("[CLS]", tokens.index("[CLS]")), ("[SEP]", tokens.index("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wordpiece_cuts_alike(
    family: str, lowercase: bool, strip_accents: bool, tmp_path: Path, llama_cpp: Serve
) -> None:
    """As transformers cuts with the files that the model came with, and with those that come back."""
    tokenizer = wordpiece(lowercase, strip_accents)
    save_model(family, len(tokenizer), tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    (tmp_path / "out").mkdir()
    GGUF().write(open_checkpoint(tmp_path / "source"), tmp_path / "out", lambda name: None)
    (tmp_path / "back").mkdir()
    for name, data in GGUF.open(tmp_path / "out").files().items():
        (tmp_path / "back" / name).write_bytes(data)
    again = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert (again.cls_token, again.sep_token, again.unk_token, again.pad_token) == ("[CLS]", "[SEP]", "[UNK]", "[PAD]")
    seen = set()
    with llama_cpp(tmp_path / "out") as engine:
        for text in [*PROBES, "Naïve CAFÉ e\u0301 [SEP] The foxes the the", "\u00ad\u200bx\ufffd 漢字kana"]:
            for special in (False, True):
                ids = tokenizer(text, add_special_tokens=special)["input_ids"]
                assert engine.tokenize(text, special) == ids, text
                assert again(text, add_special_tokens=special)["input_ids"] == ids, text
                seen |= set(ids)
    assert len(seen) > 100


def test_what_llama_cpp_strips_besides_accents(tmp_path: Path, llama_cpp: Serve) -> None:
    """That the plan's line on Hangul and vowel signs is true, and is said of a vocabulary that has them."""
    tokenizer = wordpiece(True, True, "\u1112", "##\u1161", "##\u11ab", "ह", "##ि")
    save_model("llama", len(tokenizer), tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    source = open_checkpoint(tmp_path / "source")
    assert "vowel signs" in "".join(GGUF().layout(source.spec).substitutes)
    (tmp_path / "out").mkdir()
    GGUF().write(source, tmp_path / "out", lambda name: None)
    first = tokenizer.convert_tokens_to_ids("\u1112"), tokenizer.convert_tokens_to_ids("ह")
    with llama_cpp(tmp_path / "out") as engine:
        assert engine.tokenize("한 हि") == list(first)
    assert len(tokenizer("한 हि", add_special_tokens=False)["input_ids"]) == 5


def test_the_cuts_are_not_all_the_same() -> None:
    """Else the test above would show nothing."""
    vocab = loose_vocab(540)
    cuts = set()
    for name in BY_NAME:
        files = tokenizer_files(replace(vocab, pre=name), context=256)
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        cuts.add(tuple(tuple(tokenizer.encode(text).ids) for text in PROBES))
    assert len(cuts) >= 7


@pytest.mark.model
def test_smollm2_is_cut_alike(smollm2: Path, llama_cpp: Serve) -> None:
    tokenizer = Tokenizer.from_str(GGUF.open(smollm2).files()["tokenizer.json"].decode())
    chat = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
    own = Path(__file__).read_text()
    texts = [*PROBES, *own.split("\n\n"), own, chat, "", "\0\x7f", "\u00a0\u2003\u3000", "cafe\u0301 \U0001d518"]
    alphabets = (0x20, 0xA0, 0x370, 0x900, 0x3040, 0x1F600)
    texts += ["".join(map(chr, range(start, start + 64))) for start in alphabets]
    with llama_cpp(smollm2) as engine:
        for text in texts:
            assert engine.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
