"""A tokenizer in GGUF's metadata, read and written.

Keys: gguf-py, `gguf/constants.py`, class Keys.Tokenizer; what they mean: llama.cpp, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata, array, flag, string, uint
from compress.formats.gguf.tokens.chat_templates import read_templates, write_templates
from compress.formats.gguf.tokens.pretokenizers import pre_tokenizer
from compress.formats.gguf.tokens.vocab import KEYS, OWN_ROLES, ROLES, Kind, Merge, TokenType, Vocab, damaged

_KINDS = get_args(Kind)
_LOWERCASE, _STRIP = "normalizer.lowercase", "normalizer.strip_accents"
# What llama.cpp assumes of a tokenizer that does not say, as far as tokens depend on it.
_USUAL: Mapping[Kind, Mapping[str, int]] = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "seperator": 102, "unknown": 100},
}


def read_vocab(metadata: Metadata) -> Vocab:
    """The tokenizer that a file's metadata describe. Raises InputError."""
    said = metadata.text(f"{KEYS}model")
    if said not in _KINDS:
        raise damaged("model", f"is {said!r}; known: {', '.join(_KINDS)}")
    kind = cast(Kind, said)
    pre = (metadata.text(f"{KEYS}pre") or "default") if kind == "gpt2" else "default"
    tokens = [token or f"[EMPTY_{at}]" for at, token in enumerate(metadata.strings(f"{KEYS}tokens") or [])]
    # llama.cpp: a name of this group adds a beginning unless told otherwise, and so does SentencePiece.
    usually = pre_tokenizer(pre).ignore_merges if kind == "gpt2" else True
    add_bos, add_eos = _flag(metadata, "add_bos_token", usually), _flag(metadata, "add_eos_token", False)
    return Vocab(
        kind=kind,
        pre=pre,
        tokens=tuple(tokens),
        types=_types(metadata, len(tokens)),
        merges=tuple(map(_merge, metadata.strings(f"{KEYS}merges") or [])) if kind == "gpt2" else (),
        scores=tuple(_scores(metadata, len(tokens), required=kind == "llama")),
        roles=_roles(metadata, _USUAL[kind]),
        # WordPiece always has its two tokens around a text, whatever these keys say.
        add_bos=add_bos or kind == "bert",
        add_eos=add_eos and kind != "bert",
        space_prefix=_flag(metadata, "add_space_prefix", kind == "llama"),
        chat_templates=read_templates(metadata),
        **(_normalizing(metadata) if kind == "bert" else {}),
    )


def _normalizing(metadata: Metadata) -> dict[str, bool]:
    lowercase = _flag(metadata, _LOWERCASE, True)
    return {"lowercase": lowercase, "strip_accents": _flag(metadata, _STRIP, lowercase)}


def _types(metadata: Metadata, count: int) -> tuple[TokenType, ...]:
    numbers = metadata.integers(f"{KEYS}token_type")
    if numbers is None:
        return (TokenType.NORMAL,) * count
    if unknown := set(numbers) - set(TokenType):
        raise damaged("token_type", f"holds {max(unknown)}; types are 1 to 6")
    types = {int(kind): kind for kind in TokenType}
    return tuple(types[number] for number in numbers)


def _scores(metadata: Metadata, count: int, required: bool) -> list[float]:
    """The scores that a `llama` tokenizer needs; byte-level tokenizers ignore theirs."""
    if not required:
        return [0.0] * count
    scores = metadata.numbers(f"{KEYS}scores")
    if scores is None:
        raise damaged("scores", "is not there, and a llama tokenizer merges by score")
    return scores


def _merge(text: str) -> Merge:
    left, space, right = text.partition(" ")
    if not (left and space and right) or " " in right:
        raise damaged("merges", f"holds {text[:80]!r}, not two tokens with a space between them")
    return left, right


def _roles(metadata: Metadata, usual: Mapping[str, int]) -> dict[str, int]:
    roles = dict(usual)
    for role in (*ROLES.values(), *OWN_ROLES):
        token = metadata.integer(f"{KEYS}{role}_token_id", 0, (1 << 32) - 1)
        if token is not None:
            roles[role] = token
    return roles


def _flag(metadata: Metadata, key: str, usual: bool) -> bool:
    value = metadata.flag(f"{KEYS}{key}")
    return usual if value is None else value


def write_vocab(vocab: Vocab) -> dict[str, Value]:
    """The metadata of a tokenizer, complete: nothing is left to an engine's defaults."""
    byte_level, wordpiece = vocab.kind == "gpt2", vocab.kind == "bert"
    pairs = {
        "model": string(vocab.kind),
        "pre": string(vocab.pre),
        "tokens": array(ValueType.STRING, vocab.tokens),
        "token_type": array(ValueType.INT32, map(int, vocab.types)),
        "merges": array(ValueType.STRING, map(" ".join, vocab.merges)) if byte_level else None,
        "scores": array(ValueType.FLOAT32, vocab.scores) if vocab.kind == "llama" else None,
        **{f"{role}_token_id": uint(token) for role, token in vocab.roles.items()},
        "add_bos_token": flag(vocab.add_bos),
        "add_eos_token": flag(vocab.add_eos),
        "add_sep_token": flag(True) if wordpiece else None,
        "add_space_prefix": flag(vocab.space_prefix),
        _LOWERCASE: flag(vocab.lowercase) if wordpiece else None,
        _STRIP: flag(vocab.strip_accents) if wordpiece else None,
    }
    metadata = {KEYS + key: value for key, value in pairs.items() if value is not None}
    return metadata | write_templates(vocab.chat_templates)
