"""The tokens that transformers puts before and after a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.formats.errors import RefusedError

Json = Mapping[str, Any]
Ends = tuple[list[str], list[str]]


def ends(post_processor: object, settings: Json, bos: str | None, eos: str | None) -> Ends:
    """What goes before and after: tokenizer_config.json (`settings`) decides if it says, as it does for
    transformers, else the post-processor of tokenizer.json. Raises RefusedError for one that is not known here.
    """
    flags = [settings.get(key) for key in ("add_bos_token", "add_eos_token")]
    if any(isinstance(value, bool) for value in flags):
        before, after = ([token] if flag and token else [] for flag, token in zip(flags, (bos, eos), strict=True))
        return before, after
    steps = [post_processor]
    if isinstance(post_processor, dict) and post_processor.get("type") == "Sequence":
        inner = post_processor.get("processors")
        steps = inner if isinstance(inner, list) else steps
    both = [_ends_of(step) for step in steps]
    return [token for before, _ in both for token in before], [token for _, after in both for token in after]


def _ends_of(step: object) -> Ends:
    fields: Json = step if isinstance(step, dict) else {"type": step}
    kind = fields.get("type")
    if kind in (None, "ByteLevel"):
        return [], []
    if kind == "TemplateProcessing" and isinstance(fields.get("single"), list):
        return _template(fields["single"], fields.get("special_tokens"))
    if kind in ("BertProcessing", "RobertaProcessing"):
        before, after = (_token(fields.get(key)) for key in ("cls", "sep"))
        if before and after:
            return before, after
    raise RefusedError(f"tokenizer.json: llama.cpp has no post-processor of the kind {str(kind)[:40]!r}")


def _token(said: object) -> list[str]:
    """The token of a pair of a token and its id; none of what is no such pair."""
    return said[:1] if isinstance(said, list) and len(said) == 2 and isinstance(said[0], str) else []


def _template(single: list[Any], known: object) -> Ends:
    """The ends in a template for one text, whose special tokens `known` spells out."""
    special = known if isinstance(known, dict) else {}
    parts = [part if isinstance(part, dict) else {} for part in single]
    names = [_name(part) for part in parts]
    text = names.index("") if "" in names else len(names)
    before, after = ([token for name in half for token in _spelled(name, special)]
                     for half in (names[:text], names[text + 1 :]))  # fmt: skip
    return before, after


def _name(part: Json) -> str:
    """The name of a special token; empty for the text."""
    token = part.get("SpecialToken")
    return str(token.get("id", "")) if isinstance(token, dict) else ""


def _spelled(name: str, special: Json) -> list[str]:
    entry = special.get(name)
    tokens = entry.get("tokens") if isinstance(entry, dict) else None
    return list(map(str, tokens)) if isinstance(tokens, list) else [name]
