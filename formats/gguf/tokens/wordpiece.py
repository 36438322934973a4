"""WordPiece, which llama.cpp calls `bert`: its spelling in GGUF, and what llama.cpp does to a text before it.

Hugging Face marks a piece that continues a word, `##ing`; GGUF marks one that begins a word, `▁walk`. Special tokens
are spelled alike in both. llama.cpp always does what BertNormalizer and BertPreTokenizer do; whether it lower-cases
and strips accents are two keys. It puts the same two tokens around every text, and knows no longest word (there, 100
letters make a word unknown). Source: llama.cpp, `src/llama-vocab.cpp`, `llm_tokenizer_wpm_session`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import product
from typing import Any

import regex

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.header import Value
from compress.formats.gguf.tokens.ends import Ends
from compress.formats.gguf.tokens.normalizing import words
from compress.formats.gguf.tokens.splitting import PROBE, told
from compress.formats.gguf.tokens.vocab import KEYS, SPACE, TokenType, Vocab

Json = Mapping[str, Any]

PREFIX = "##"
_LONGEST_WORD = 100
# Taken for accents, or lost: where a letter is made of several, llama.cpp keeps the first.
_STRIPPED = regex.compile(r"[\p{Mc}\p{Me}\u1100-\u11ff]")
_FILE = "tokenizer.json"
_PRE = {"type": "BertPreTokenizer"}
_AS_THEY_ARE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def wordpiece(tokenizer: Json, tokens: list[str], types: list[TokenType], around: Ends) -> dict[str, Any]:
    """What only WordPiece has: how words are made, and the roles of the tokens that go around every text.

    `tokenizer` is tokenizer.json; `tokens` and `types` go by id. Raises RefusedError for what llama.cpp does not do.
    """
    said = _options(tokenizer)
    if list(map(len, around)) != [1, 1] or not {*around[0], *around[1]} <= set(tokens):
        raise RefusedError(
            f"{_FILE}: the post-processor puts {around[0]} before a text and {around[1]} after it",
            "with WordPiece, llama.cpp puts one token before every text and one after it, as BERT does",
        )
    entries = tokenizer.get("added_tokens")
    loose = [added["content"] for added in entries if added.get("normalized")] if isinstance(entries, list) else []
    if loose and any(said.values()):
        raise RefusedError(
            f"{_FILE}: added token {loose[0]!r} is found in any case or with accents; llama.cpp goes by its letters",
            "add it with normalized=False",
        )
    ids = {token: at for at, token in enumerate(tokens)}
    unknown, vocab = (tokenizer["model"].get(key) for key in ("unk_token", "vocab"))
    if not isinstance(unknown, str) or not isinstance(vocab, dict) or unknown not in vocab:
        raise InputError(f"{_FILE}: the vocabulary has no token for unknown words, and WordPiece needs it")
    return {
        "kind": "bert",
        "pre": "default",
        "tokens": _spelled(tokens, types),
        "types": tuple(types),
        "merges": (),
        "scores": (0.0,) * len(tokens),
        "space_prefix": False,
        "add_bos": True,
        "add_eos": False,
        "roles": {"bos": ids[around[0][0]], "seperator": ids[around[1][0]], "unknown": ids[unknown]},
        **said,
    }


def _spelled(tokens: Sequence[str], types: Sequence[TokenType]) -> tuple[str, ...]:
    """Hugging Face's tokens as GGUF spells them. Raises RefusedError for what would be another token there."""
    spelled = tuple(map(_in_gguf, tokens, types))
    first: dict[str, str] = {}
    for token, there in zip(tokens, spelled, strict=True):
        if first.setdefault(there, token) != token:
            raise RefusedError(f"{_FILE}: GGUF cannot tell the tokens {first[there][:80]!r} and {token[:80]!r} apart")
    return spelled


def unlike(metadata: Mapping[str, Value]) -> str | None:
    """What llama.cpp does otherwise than BERT with this vocabulary, as a line of a plan; None: nothing known."""
    strips, tokens = (metadata.get(f"{KEYS}{key}") for key in ("normalizer.strip_accents", "tokens"))
    if strips is None or not strips.value or tokens is None or not isinstance(tokens.value, list):
        return None
    if not _STRIPPED.search("\0".join(map(str, tokens.value))):
        return None
    return (
        "with accents, llama.cpp strips vowel signs (as in Hindi) and all of a Hangul syllable but its first letter: "
        "text in such scripts, for which this vocabulary has tokens, becomes other tokens than in transformers"
    )


def _in_gguf(token: str, kind: TokenType) -> str:
    if kind in _AS_THEY_ARE:
        return token
    if token in ("", PREFIX + SPACE) or token.startswith(PREFIX + SPACE):
        raise RefusedError(f"{_FILE}: llama.cpp would find the token {token[:80]!r} where words begin")
    # Alone, the prefix continues nothing: no word is it.
    return token.removeprefix(PREFIX) if token.startswith(PREFIX) and token != PREFIX else SPACE + token


def in_hugging_face(vocab: Vocab) -> tuple[str, ...]:
    """The tokens as Hugging Face spells them. Raises InputError for what has no spelling there."""
    spelled = tuple(map(_in_hugging_face, vocab.tokens, vocab.types))
    if len(set(spelled)) != len(spelled):
        raise InputError(f"tokenizer.ggml.tokens: with {PREFIX} for {SPACE}, two of the tokens are one")
    return spelled


def _in_hugging_face(token: str, kind: TokenType) -> str:
    if kind in _AS_THEY_ARE:
        return token
    if not token.startswith(SPACE):
        return PREFIX + token
    plain = token.removeprefix(SPACE)
    if not plain or (plain.startswith(PREFIX) and plain != PREFIX):
        raise InputError(f"tokenizer.ggml.tokens holds {token[:80]!r}, which no WordPiece tokenizer has")
    return plain


def _options(tokenizer: Json) -> dict[str, bool]:
    """Whether llama.cpp must lower-case and strip accents to make the words that a tokenizer.json makes.

    Raises RefusedError, with what differs, if it makes other words, or pieces of words, whatever it is told.
    """
    _check_model(tokenizer["model"])
    decoder = tokenizer.get("decoder")
    if not isinstance(decoder, dict) or (decoder.get("type"), decoder.get("prefix")) != ("WordPiece", PREFIX):
        raise RefusedError(f"{_FILE}: llama.cpp joins the pieces of a word, and this decoder does something else")
    mine = words(tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"), PROBE)
    ways = [{"lowercase": lower, "strip_accents": strip} for lower, strip in product((True, False), repeat=2)]
    differences = [(way, _differing(mine, _words(**way))) for way in ways]
    nearest, differing = min(differences, key=lambda found: len(found[1]))
    if differing:
        raise RefusedError(
            f"{_FILE}: llama.cpp makes other words of a text before WordPiece than this one does: {told(differing)}",
            "it can lower-case or not, and strip accents or not; the rest is BertNormalizer's and BertPreTokenizer's",
        )
    return nearest


def _check_model(model: Json) -> None:
    if model.get("continuing_subword_prefix", PREFIX) != PREFIX:
        raise RefusedError(f"{_FILE}: a word goes on with another prefix than {PREFIX}, for which GGUF has no key")
    longest = model.get("max_input_chars_per_word", _LONGEST_WORD)
    if type(longest) is not int or longest < _LONGEST_WORD:
        raise RefusedError(f"{_FILE}: words of over {longest} letters are unknown here; llama.cpp takes any length")


@cache
def _words(lowercase: bool, strip_accents: bool) -> list[str]:
    return words(_normalizer(lowercase, strip_accents), _PRE, PROBE)


def _normalizer(lowercase: bool, strip_accents: bool) -> dict[str, Any]:
    rest = {"clean_text": True, "handle_chinese_chars": True}
    return {"type": "BertNormalizer", **rest, "strip_accents": strip_accents, "lowercase": lowercase}


def _differing(mine: list[str], theirs: list[str]) -> list[tuple[list[str], list[str]]]:
    changes = SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes()
    return [(mine[a:b], theirs[c:d]) for change, a, b, c, d in changes if change != "equal"]


def parts(vocab: Vocab) -> dict[str, Any]:
    """What tokenizer.json has for WordPiece alone; `vocab` is spelled as Hugging Face does."""
    return {
        "normalizer": _normalizer(vocab.lowercase, vocab.strip_accents),
        "pre_tokenizer": _PRE,
        "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocab.tokens[vocab.roles["unknown"]],
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": _LONGEST_WORD,
            "vocab": {token: at for at, token in enumerate(vocab.tokens)},
        },
    }
