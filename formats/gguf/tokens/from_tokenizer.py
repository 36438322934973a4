"""Hugging Face's tokenizer files as a GGUF tokenizer, or the reason why llama.cpp has no such tokenizer.

Everything is recognized by what tokenizer.json says it does, never by a model's name or a hash of its output.
The files are as hostile as any input: only JSON is read here, the `tokenizers` library is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import parse_json
from compress.formats.gguf.tokens.bpe import byte_level, sentencepiece
from compress.formats.gguf.tokens.chat_templates import templates_in
from compress.formats.gguf.tokens.ends import Ends, ends
from compress.formats.gguf.tokens.vocab import MAX_VOCAB, OWN_ROLES, ROLES, TokenType, Vocab, is_byte
from compress.formats.gguf.tokens.wordpiece import wordpiece

Json = Mapping[str, Any]

_FILE = "tokenizer.json"
_MAKE_ONE = "give a model directory with a tokenizer.json (AutoTokenizer.save_pretrained writes one)"


def vocab_of(files: Mapping[str, bytes], config: Json, size: int) -> Vocab:
    """The tokenizer in `files`, filled up to `size` tokens; `config` is the model's config.json.

    Raises InputError for files that are malformed, RefusedError for a tokenizer that GGUF cannot describe.
    """
    if _FILE not in files:
        raise RefusedError(f"GGUF holds the tokenizer, and there is no {_FILE}", _MAKE_ONE)
    tokenizer, settings, names = (
        _object(files, name) for name in (_FILE, "tokenizer_config.json", "special_tokens_map.json")
    )
    model = _child(tokenizer, "model")
    if model.get("type") not in ("BPE", "WordPiece"):
        kind = str(model.get("type"))[:40]
        raise RefusedError(f"{_FILE}: only BPE and WordPiece tokenizers are written to GGUF, not {kind!r}")
    tokens, types = _tokens(model, tokenizer, size)
    roles = _roles(tokens, {**names, **settings}, config)
    own = _child(settings, "gguf")
    named = {role: tokens[at] for role, at in roles.items()}
    around = ends(tokenizer.get("post_processor"), settings, named.get("bos"), named.get("eos"))
    if model["type"] == "WordPiece":
        parts = wordpiece(tokenizer, tokens, types, around)
    else:
        add_bos, add_eos = _added_ends(around, tokens, roles)
        parts = (sentencepiece if model.get("byte_fallback") else byte_level)(tokenizer, tokens, types, own)
        parts |= {"tokens": tuple(tokens), "add_bos": add_bos, "add_eos": add_eos}
    roles |= {role: own[role] for role in OWN_ROLES if type(own.get(role)) is int}
    return Vocab(**{**parts, "roles": roles | parts.get("roles", {})}, chat_templates=templates_in(files, settings))


def _object(files: Mapping[str, bytes], name: str) -> Json:
    value = parse_json(files[name], name) if name in files else {}
    if not isinstance(value, dict):
        raise InputError(f"{name} is not a JSON object")
    return value


def _child(parent: Json, key: str) -> Json:
    """An object inside `parent`; an empty one where there is none."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _tokens(model: Json, tokenizer: Json, size: int) -> tuple[list[str], list[TokenType]]:
    """Every token and its type by id. Ids without a token become unused ones, as in llama.cpp's converter."""
    tokens = [f"[PAD{at}]" for at in range(size)]
    types = [TokenType.UNUSED] * size
    for token, at in _child(model, "vocab").items():
        _place(tokens, token, at)
        types[at] = TokenType.UNUSED if token == f"[PAD{at}]" else TokenType.NORMAL
        if model.get("byte_fallback") and is_byte(token):
            types[at] = TokenType.BYTE
    for added in _added(tokenizer):
        _place(tokens, added["content"], added["id"])
        types[added["id"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    if model.get("byte_fallback") and model.get("unk_token") in tokens:
        types[tokens.index(model["unk_token"])] = TokenType.UNKNOWN
    return tokens, types


def _place(tokens: list[str], token: object, at: object) -> None:
    if not isinstance(token, str) or type(at) is not int or not 0 <= at < MAX_VOCAB:
        raise InputError(f"{_FILE}: {str(token)[:80]!r} has the id {str(at)[:80]}")
    if at >= len(tokens):
        raise RefusedError(
            f"{_FILE}: token {token[:80]!r} has the id {at}, and the embedding has {len(tokens)} rows",
            "resize the embedding to the tokenizer",
        )
    if tokens[at] not in (f"[PAD{at}]", token):
        raise InputError(f"{_FILE}: {tokens[at][:80]!r} and {token[:80]!r} have the same id {at}")
    tokens[at] = token


def _added(tokenizer: Json) -> Iterator[Json]:
    """The added tokens. Raises RefusedError for one that takes the text around it along."""
    entries = tokenizer.get("added_tokens")
    for added in entries if isinstance(entries, list) else []:
        if not isinstance(added, dict) or not {"id", "content"} <= set(added):
            raise InputError(f"{_FILE}: an added token has no id or no content")
        if any(added.get(option) for option in ("lstrip", "rstrip", "single_word")):
            raise RefusedError(f"{_FILE}: added token {added['content']!r} strips the text beside it; llama.cpp cannot")
        yield added


def _roles(tokens: list[str], settings: Json, config: Json) -> dict[str, int]:
    """Special tokens by GGUF's role: by name as the tokenizer's files say, else by id as config.json says."""
    ids = {token: at for at, token in enumerate(tokens)}
    roles: dict[str, int] = {}
    for name, role in ROLES.items():
        named = settings.get(name)
        token = named.get("content") if isinstance(named, dict) else named
        given = config.get(f"{name}_id")
        first = given[0] if isinstance(given, list) and given else given
        if isinstance(token, str) and token in ids:
            roles[role] = ids[token]
        elif type(first) is int and 0 <= first < len(tokens):
            roles[role] = first
    return roles


def _added_ends(around: Ends, tokens: list[str], roles: Mapping[str, int]) -> tuple[bool, bool]:
    """Whether a text gets the beginning and the end. Raises RefusedError for other tokens `around` it."""
    before, after = around
    known = [[tokens[roles[role]]] if role in roles else [] for role in ("bos", "eos")]
    if before not in ([], known[0]) or after not in ([], known[1]):
        raise RefusedError(
            f"{_FILE}: the post-processor puts {before + after} around a text",
            "llama.cpp can put the beginning-of-text token before and the end-of-text token after",
        )
    return bool(before), bool(after)
