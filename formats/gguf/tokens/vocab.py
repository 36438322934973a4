"""A tokenizer as GGUF holds it, checked: `Vocab`, from metadata and to metadata.

Two kinds: `gpt2` is byte-level BPE with merges, `llama` is SentencePiece BPE, where a piece's score says how
early it is merged and characters that are no piece fall back to bytes `<0xHH>`.
Keys: gguf-py, `gguf/constants.py`, class Keys.Tokenizer; what they mean: llama.cpp, `src/llama-vocab.cpp`.

An engine trusts these lists (CVE-2025-49847, CVE-2025-52566): what is not checked here never leaves here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, cast

from compress.formats.errors import InputError
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata, array, flag, string, uint
from compress.formats.gguf.tokens.chat_templates import read_templates, write_templates
from compress.formats.gguf.tokens.pretokenizers import pre_tokenizer

Kind = Literal["gpt2", "llama"]
Merge = tuple[str, str]

MAX_VOCAB = 1 << 22
_MAX_TOKEN = 1 << 16
_KINDS = ("gpt2", "llama")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PREFIX = "tokenizer.ggml."
# Roles that Hugging Face names too, by its name; then those that only GGUF has.
ROLES: Mapping[str, str] = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
OWN_ROLES = ("eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")
# What llama.cpp assumes of a `llama` tokenizer that does not say.
_LLAMA_ROLES = {"bos": 1, "eos": 2, "unknown": 0}


class TokenType(IntEnum):
    """What a token is to llama.cpp: CONTROL is parsed only where special tokens are, USER_DEFINED always."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocab:
    """A tokenizer. `merges` (gpt2) from first to last; `scores` (llama) one a token, higher is earlier.

    `roles`: GGUF's name of a role → token id. `space_prefix` (llama): a space goes before every text.
    `chat_templates` by name (see chat_templates.py).
    Raises InputError, naming the key, for what does not hold together.
    """

    kind: Kind
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[Merge, ...]
    scores: tuple[float, ...]
    roles: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    chat_templates: Mapping[str, str]

    def __post_init__(self) -> None:
        self._check_tokens()
        self._check_merges()
        for role, token in self.roles.items():
            if not 0 <= token < len(self.tokens):
                raise _error(f"{role}_token_id", f"is {token}; there are {len(self.tokens)} tokens")
        for role, added in (("bos", self.add_bos), ("eos", self.add_eos)):
            if added and role not in self.roles:
                raise _error(f"add_{role}_token", f"is true, but {role}_token_id is not there")

    def _check_tokens(self) -> None:
        count = len(self.tokens)
        if not 1 <= count <= MAX_VOCAB:
            raise _error("tokens", f"has {count} entries, not 1 to {MAX_VOCAB}")
        for key, items in (("token_type", self.types), ("scores", self.scores)):
            if len(items) != count:
                raise _error(key, f"has {len(items)} entries for {count} tokens")
        if len(set(self.tokens)) != count:
            raise _error("tokens", "holds a token twice")
        try:
            longest = max(len(token.encode()) for token in self.tokens)
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise _error("tokens", "holds a token that is not Unicode text") from error
        if longest > _MAX_TOKEN:
            raise _error("tokens", f"holds a token of more than {_MAX_TOKEN} bytes")
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind is TokenType.BYTE and not _BYTE.fullmatch(token):
                raise _error("token_type", f"calls {token[:80]!r} a byte; bytes are written <0xHH>")

    def _check_merges(self) -> None:
        known = frozenset(self.tokens)
        for left, right in self.merges:
            joined = left + right
            if left not in known or right not in known or joined not in known or " " in joined:
                raise _error("merges", f"joins {left[:80]!r} and {right[:80]!r}: not all three are tokens")


def _error(key: str, what: str) -> InputError:
    return InputError(f"tokenizer: {_PREFIX}{key} {what}", "the tokenizer is damaged: get another copy")


def is_byte(token: str) -> bool:
    """Whether `token` is spelled as a byte, `<0xHH>`."""
    return _BYTE.fullmatch(token) is not None


def read_vocab(metadata: Metadata) -> Vocab:
    """The tokenizer that a file's metadata describe. Raises InputError."""
    kind = metadata.text(f"{_PREFIX}model")
    if kind not in _KINDS:
        raise _error("model", f"is {kind!r}; known: {', '.join(_KINDS)}")
    byte_level = kind == "gpt2"
    pre = (metadata.text(f"{_PREFIX}pre") or "default") if byte_level else "default"
    tokens = [token or f"[EMPTY_{at}]" for at, token in enumerate(metadata.strings(f"{_PREFIX}tokens") or [])]
    # llama.cpp: a name of this group adds a beginning unless told otherwise, and so does SentencePiece.
    usually = pre_tokenizer(pre).ignore_merges if byte_level else True
    return Vocab(
        kind=cast(Kind, kind),
        pre=pre,
        tokens=tuple(tokens),
        types=_types(metadata, len(tokens)),
        merges=tuple(map(_merge, metadata.strings(f"{_PREFIX}merges") or [])) if byte_level else (),
        scores=tuple(_scores(metadata, len(tokens), required=not byte_level)),
        roles=_roles(metadata, {} if byte_level else _LLAMA_ROLES),
        add_bos=_flag(metadata, "add_bos_token", usually),
        add_eos=_flag(metadata, "add_eos_token", False),
        space_prefix=_flag(metadata, "add_space_prefix", not byte_level),
        chat_templates=read_templates(metadata),
    )


def _types(metadata: Metadata, count: int) -> tuple[TokenType, ...]:
    numbers = metadata.integers(f"{_PREFIX}token_type")
    if numbers is None:
        return (TokenType.NORMAL,) * count
    if unknown := set(numbers) - set(TokenType):
        raise _error("token_type", f"holds {max(unknown)}; types are 1 to 6")
    types = {int(kind): kind for kind in TokenType}
    return tuple(types[number] for number in numbers)


def _scores(metadata: Metadata, count: int, required: bool) -> list[float]:
    """The scores that a `llama` tokenizer needs; byte-level tokenizers ignore theirs."""
    if not required:
        return [0.0] * count
    scores = metadata.numbers(f"{_PREFIX}scores")
    if scores is None:
        raise _error("scores", "is not there, and a llama tokenizer merges by score")
    return scores


def _merge(text: str) -> Merge:
    left, space, right = text.partition(" ")
    if not (left and space and right) or " " in right:
        raise _error("merges", f"holds {text[:80]!r}, not two tokens with a space between them")
    return left, right


def _roles(metadata: Metadata, usual: Mapping[str, int]) -> dict[str, int]:
    roles = dict(usual)
    for role in (*ROLES.values(), *OWN_ROLES):
        token = metadata.integer(f"{_PREFIX}{role}_token_id", 0, (1 << 32) - 1)
        if token is not None:
            roles[role] = token
    return roles


def _flag(metadata: Metadata, key: str, usual: bool) -> bool:
    value = metadata.flag(f"{_PREFIX}{key}")
    return usual if value is None else value


def write_vocab(vocab: Vocab) -> dict[str, Value]:
    """The metadata of a tokenizer, complete: nothing is left to an engine's defaults."""
    byte_level = vocab.kind == "gpt2"
    pairs = {
        "model": string(vocab.kind),
        "pre": string(vocab.pre),
        "tokens": array(ValueType.STRING, vocab.tokens),
        "token_type": array(ValueType.INT32, map(int, vocab.types)),
        "merges": array(ValueType.STRING, map(" ".join, vocab.merges)) if byte_level else None,
        "scores": None if byte_level else array(ValueType.FLOAT32, vocab.scores),
        **{f"{role}_token_id": uint(token) for role, token in vocab.roles.items()},
        "add_bos_token": flag(vocab.add_bos),
        "add_eos_token": flag(vocab.add_eos),
        "add_space_prefix": flag(vocab.space_prefix),
    }
    metadata = {_PREFIX + key: value for key, value in pairs.items() if value is not None}
    return metadata | write_templates(vocab.chat_templates)
