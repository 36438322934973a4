"""A tokenizer as GGUF holds it, checked: `Vocab`; keys.py has what metadata say of it.

Three kinds: `gpt2` is byte-level BPE with merges; `llama` is SentencePiece BPE, where a piece's score says how
early it is merged and characters that are no piece fall back to bytes `<0xHH>`; `bert` is WordPiece (wordpiece.py).
An engine trusts these lists (CVE-2025-49847, CVE-2025-52566): what is not checked here never leaves here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from compress.formats.errors import InputError

Kind = Literal["gpt2", "llama", "bert"]
Merge = tuple[str, str]

MAX_VOCAB = 1 << 22
_MAX_TOKEN = 1 << 16
SPACE = "▁"  # a space, or that a word begins
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
KEYS = "tokenizer.ggml."
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
_NEEDED = ("bos", "seperator", "unknown")


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
    `chat_templates` by name (see chat_templates.py). `lowercase` and `strip_accents` (bert): what is done to a text.
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
    lowercase: bool = False
    strip_accents: bool = False

    def __post_init__(self) -> None:
        self._check_tokens()
        self._check_merges()
        for role, token in self.roles.items():
            if not 0 <= token < len(self.tokens):
                raise damaged(f"{role}_token_id", f"is {token}; there are {len(self.tokens)} tokens")
        for role, added in (("bos", self.add_bos), ("eos", self.add_eos)):
            if added and role not in self.roles:
                raise damaged(f"add_{role}_token", f"is true, but {role}_token_id is not there")
        for role in _NEEDED if self.kind == "bert" else ():
            if role not in self.roles:
                raise damaged(f"{role}_token_id", "is not there, and WordPiece needs it")

    def _check_tokens(self) -> None:
        count = len(self.tokens)
        if not 1 <= count <= MAX_VOCAB:
            raise damaged("tokens", f"has {count} entries, not 1 to {MAX_VOCAB}")
        for key, items in (("token_type", self.types), ("scores", self.scores)):
            if len(items) != count:
                raise damaged(key, f"has {len(items)} entries for {count} tokens")
        if len(set(self.tokens)) != count:
            raise damaged("tokens", "holds a token twice")
        try:
            longest = max(len(token.encode()) for token in self.tokens)
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise damaged("tokens", "holds a token that is not Unicode text") from error
        if longest > _MAX_TOKEN:
            raise damaged("tokens", f"holds a token of more than {_MAX_TOKEN} bytes")
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind is TokenType.BYTE and not _BYTE.fullmatch(token):
                raise damaged("token_type", f"calls {token[:80]!r} a byte; bytes are written <0xHH>")

    def _check_merges(self) -> None:
        known = frozenset(self.tokens)
        for left, right in self.merges:
            joined = left + right
            if left not in known or right not in known or joined not in known or " " in joined:
                raise damaged("merges", f"joins {left[:80]!r} and {right[:80]!r}: not all three are tokens")


def damaged(key: str, what: str) -> InputError:
    """What to raise for the value of a key."""
    return InputError(f"tokenizer: {KEYS}{key} {what}", "the tokenizer is damaged: get another copy")


def is_byte(token: str) -> bool:
    """Whether `token` is spelled as a byte, `<0xHH>`."""
    return _BYTE.fullmatch(token) is not None
