"""The two kinds of BPE that llama.cpp has, as a tokenizer.json says them: byte-level, and SentencePiece's.

`tokenizer` is tokenizer.json; `tokens` and `types` go by id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.tokens.pretokenizers import BY_NAME, recognize
from compress.formats.gguf.tokens.to_tokenizer import halves
from compress.formats.gguf.tokens.vocab import SPACE, Merge, TokenType

Json = Mapping[str, Any]

_FILE = "tokenizer.json"
_NFC = ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]})
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
# Gemma's: by then every space is a ▁.
_CUT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def byte_level(tokenizer: Json, tokens: list[str], types: list[TokenType], own: Json) -> dict[str, Any]:
    """What only byte-level BPE has. `own` is what a GGUF file that these tokens came from said."""
    model = tokenizer["model"]
    normalizer = tokenizer.get("normalizer")
    if normalizer not in (None, *_NFC):
        raise RefusedError(f"{_FILE}: llama.cpp cannot normalize text before byte-level BPE as asked here")
    pre = recognize(tokenizer.get("pre_tokenizer"), bool(model.get("ignore_merges")), normalizer in _NFC)
    original = str(own.get("pre"))
    if original in BY_NAME and BY_NAME[original].cuts == BY_NAME[pre].cuts:
        pre = original
    return {
        "kind": "gpt2",
        "pre": pre,
        "types": tuple(types),
        "merges": tuple(_merges(model)),
        "scores": (0.0,) * len(tokens),
        "space_prefix": False,
    }


def _merges(model: Json) -> Iterator[Merge]:
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise RefusedError(f"{_FILE}: llama.cpp's BPE has no {option}")
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise InputError(f"{_FILE}: {str(merge)[:80]!r} is not a merge of two tokens")
        yield pair[0], pair[1]


def sentencepiece(tokenizer: Json, tokens: list[str], types: list[TokenType], own: Json) -> dict[str, Any]:
    """What only SentencePiece has: scores, from the order of the merges."""
    missing = 256 - types.count(TokenType.BYTE)
    if missing:
        raise RefusedError(f"{_FILE}: {missing} of the 256 bytes that byte fallback needs are no tokens")
    return {
        "kind": "llama",
        "pre": "default",
        "types": tuple(types),
        "merges": (),
        "scores": _scores(tokens, types, list(_merges(tokenizer["model"]))),
        "space_prefix": _space_prefix(tokenizer),
    }


def _space_prefix(tokenizer: Json) -> bool:
    """Whether a space goes before every text; spaces must become ▁ and nothing else may happen."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else [normalizer]
    if pre in (None, _CUT_AT_SPACES) and steps in ([_REPLACE], [_PREPEND, _REPLACE]):
        return _PREPEND in steps
    metaspace = pre if isinstance(pre, dict) else {}
    whole = metaspace.get("replacement") == SPACE and metaspace.get("split") is False
    if normalizer is None and metaspace.get("type") == "Metaspace" and whole:
        return bool(metaspace.get("prepend_scheme", "always") != "never")
    raise RefusedError(f"{_FILE}: this is neither byte-level BPE nor SentencePiece as llama.cpp does it")


def _scores(tokens: list[str], types: list[TokenType], merges: list[Merge]) -> tuple[float, ...]:
    """A piece's score is minus the rank of its first merge.

    llama.cpp merges whatever makes a piece, best score first. The same tokens come out if the merges hold
    every way to make every piece, one piece after the other. Raises RefusedError if they do not.
    """
    order = list(dict.fromkeys(left + right for left, right in merges))
    rank = {piece: at for at, piece in enumerate(order)}
    normal = {token: at for at, token in enumerate(tokens) if types[at] is TokenType.NORMAL}
    possible = {merge for piece in normal for merge in halves(piece, normal)}
    if missing := possible - set(merges):
        example = " and ".join(map(repr, min(missing)))
        raise RefusedError(f"{_FILE}: llama.cpp would join {example}, and the merges do not")
    ranks = [rank[left + right] for left, right in merges]
    if ranks != sorted(ranks):
        raise RefusedError(f"{_FILE}: the merges are not in the order of any scores")
    return tuple(float(-rank.get(token, len(rank) + at)) for at, token in enumerate(tokens))
