"""The words that a tokenizer.json's normalizer and pre-tokenizer make of a text, for those that BERT's kin use.

Source: the `tokenizers` library, its BertNormalizer and BertPreTokenizer among others; Unicode's tables are Python's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from compress.formats.errors import RefusedError
from compress.formats.gguf.tokens.splitting import cut

Json = Mapping[str, Any]

_FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
_PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"
_SPACE = r"\s"
# The ideographs that stand alone, as BERT has them; the third of the last four begins late there, too.
_CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)


def words(normalizer: object, pre_tokenizer: object, text: str) -> list[str]:
    """The words of `text`. Raises RefusedError for a part that is not known here."""
    for step in _steps(normalizer, "normalizers"):
        text = _normalize(step, text)
    pieces = [text]
    for step in _steps(pre_tokenizer, "pretokenizers"):
        for regex, removed in _cuts(step):
            pieces = [part for piece in pieces for part in cut([regex], piece, removed)]
    return pieces


def _steps(part: object, children: str) -> Iterator[Json]:
    """The steps of `part`, sequences inside sequences unrolled."""
    left = [part]
    while left:
        step = left.pop()
        if step is None:
            continue
        fields: Json = step if isinstance(step, dict) else {"type": step}
        inner = fields.get(children)
        if fields.get("type") == "Sequence" and isinstance(inner, list):
            left += reversed(inner)
        else:
            yield fields


def _normalize(step: Json, text: str) -> str:
    kind = str(step.get("type"))
    if kind == "BertNormalizer":
        return _bert(step, text)
    for form in _FORMS:
        if kind == form:
            return unicodedata.normalize(form, text)
    if kind not in ("Lowercase", "StripAccents"):
        raise _refused("normalizer", kind)
    return text.lower() if kind == "Lowercase" else _without(text, "M")


def _bert(step: Json, text: str) -> str:
    """BertNormalizer; `strip_accents` goes with `lowercase` where it is null."""
    lowercase, strip = bool(step.get("lowercase", True)), step.get("strip_accents")
    if step.get("clean_text", True):
        text = "".join(" " if char.isspace() else char for char in text if not _is_control(char))
    if step.get("handle_chinese_chars", True):
        text = _CHINESE.sub(r" \g<0> ", text)
    if strip or (strip is None and lowercase):
        text = _without(unicodedata.normalize("NFD", text), "Mn")
    return text.lower() if lowercase else text


def _is_control(char: str) -> bool:
    return char in "\0\ufffd" or (char not in "\t\n\r" and unicodedata.category(char).startswith("C"))


def _without(text: str, category: str) -> str:
    return "".join(char for char in text if not unicodedata.category(char).startswith(category))


def _cuts(step: Json) -> list[tuple[str, bool]]:
    """The regular expressions of a pre-tokenizer, and whether their matches are removed, not kept as words."""
    kind, isolated = str(step.get("type")), step.get("behavior", "Isolated") == "Isolated"
    known: dict[str, list[tuple[str, bool]]] = {
        "BertPreTokenizer": [(_SPACE, True), (_PUNCTUATION, False)],
        "WhitespaceSplit": [(_SPACE, True)],
        "Whitespace": [(_SPACE, True), (r"\w+", False)],
        "Digits": [(r"\p{N}" if step.get("individual_digits") else r"\p{N}+", False)],
        **({"Punctuation": [(_PUNCTUATION, False)]} if isolated else {}),
    }
    if kind not in known:
        raise _refused("pre-tokenizer", kind)
    return known[kind]


def _refused(what: str, kind: str) -> RefusedError:
    return RefusedError(f"tokenizer.json: no {what} {kind[:40]!r} is known here for WordPiece")
