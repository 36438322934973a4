"""Hugging Face's tokenizer files as a GGUF tokenizer, or the reason why llama.cpp has no such tokenizer.

Everything is recognized by what tokenizer.json says it does, never by a model's name or a hash of its output.
The files are as hostile as any input: only JSON is read here, the `tokenizers` library is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.storage import parse_json
from compress.formats.gguf.tokens.chat_templates import templates_in
from compress.formats.gguf.tokens.pretokenizers import BY_NAME, recognize
from compress.formats.gguf.tokens.to_tokenizer import SPACE, halves
from compress.formats.gguf.tokens.vocab import MAX_VOCAB, OWN_ROLES, ROLES, Merge, TokenType, Vocab, is_byte

Json = Mapping[str, Any]

_FILE = "tokenizer.json"
_NFC = ({"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]})
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
# Gemma's: by then every space is a ▁.
_CUT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
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
    if model.get("type") != "BPE":
        raise RefusedError(f"{_FILE}: only BPE tokenizers are written to GGUF, not {str(model.get('type'))[:40]!r}")
    tokens, types = _tokens(model, tokenizer, size)
    roles = _roles(tokens, {**names, **settings}, config)
    own = _child(settings, "gguf")
    add_bos, add_eos = _added_ends(tokenizer, settings, tokens, roles)
    parts = (_sentencepiece if model.get("byte_fallback") else _byte_level)(tokenizer, tokens, types, own)
    return Vocab(
        **parts,
        tokens=tuple(tokens),
        roles={**roles, **{role: own[role] for role in OWN_ROLES if type(own.get(role)) is int}},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_templates=templates_in(files, settings),
    )


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


def _added_ends(tokenizer: Json, settings: Json, tokens: list[str], roles: Json) -> tuple[bool, bool]:
    """Whether a text gets the beginning and the end: tokenizer_config.json decides if it says, as it does
    for transformers, else the post-processor."""
    flags = [settings.get(key) for key in ("add_bos_token", "add_eos_token")]
    if any(isinstance(value, bool) for value in flags):
        return bool(flags[0]), bool(flags[1])
    before, after = _template(tokenizer.get("post_processor"))
    ends = [[tokens[roles[role]]] if role in roles else [] for role in ("bos", "eos")]
    if before not in ([], ends[0]) or after not in ([], ends[1]):
        raise RefusedError(
            f"{_FILE}: the post-processor puts {before + after} around a text",
            "llama.cpp can put the beginning-of-text token before and the end-of-text token after",
        )
    return bool(before), bool(after)


def _template(post: object) -> tuple[list[str], list[str]]:
    """The tokens that a `post_processor` puts before and after a single text."""
    steps = post.get("processors") if isinstance(post, dict) and post.get("type") == "Sequence" else [post]
    before: list[str] = []
    after: list[str] = []
    for step in steps if isinstance(steps, list) else [post]:
        fields: Json = step if isinstance(step, dict) else {"type": step}
        kind, single = fields.get("type"), fields.get("single")
        if kind in (None, "ByteLevel"):
            continue
        if kind != "TemplateProcessing" or not isinstance(single, list):
            raise RefusedError(f"{_FILE}: llama.cpp has no post-processor of the kind {str(kind)[:40]!r}")
        parts = [part for part in single if isinstance(part, dict)]
        names = [str(_child(part, "SpecialToken").get("id", "")) for part in parts]
        text = names.index("") if "" in names else len(names)
        before, after = before + names[:text], after + names[text + 1 :]
    return before, after


def _byte_level(tokenizer: Json, tokens: list[str], types: list[TokenType], own: Json) -> dict[str, Any]:
    """What only byte-level BPE has. `own` is what a GGUF file that these tokens came from said."""
    model = _child(tokenizer, "model")
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


def _sentencepiece(tokenizer: Json, tokens: list[str], types: list[TokenType], own: Json) -> dict[str, Any]:
    """What only SentencePiece has: scores, from the order of the merges."""
    missing = 256 - types.count(TokenType.BYTE)
    if missing:
        raise RefusedError(f"{_FILE}: {missing} of the 256 bytes that byte fallback needs are no tokens")
    return {
        "kind": "llama",
        "pre": "default",
        "types": tuple(types),
        "merges": (),
        "scores": _scores(tokens, types, list(_merges(_child(tokenizer, "model")))),
        "space_prefix": _space_prefix(tokenizer),
    }


def _space_prefix(tokenizer: Json) -> bool:
    """Whether a space goes before every text; spaces must become ▁ and nothing else may happen."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    steps = _child(tokenizer, "normalizer").get("normalizers", [normalizer])
    if pre in (None, _CUT_AT_SPACES) and steps in ([_REPLACE], [_PREPEND, _REPLACE]):
        return _PREPEND in steps
    metaspace = _child(tokenizer, "pre_tokenizer")
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
