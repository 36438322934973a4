"""Chat templates by name, as Hugging Face's files and GGUF's metadata hold them; `default` is the one that is meant.

Files: `chat_template.jinja`, `additional_chat_templates/<name>.jinja`; older ones stand in tokenizer_config.json, as
text or as a list of named ones. Keys: gguf-py, `gguf/constants.py`, class Keys.Tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compress.formats.errors import InputError, RefusedError
from compress.formats.files.carried import TEMPLATE_PATTERN, TEMPLATES
from compress.formats.gguf.header import Value, ValueType
from compress.formats.gguf.metadata import Metadata, array, string

DEFAULT = "default"
_FILE = "chat_template.jinja"
_KEY = "tokenizer.chat_template"
_NAMES = "tokenizer.chat_templates"
_NAME = re.compile(r"\w[\w-]*", re.ASCII)


def templates_in(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a tokenizer's files, verbatim, under the names that GGUF has for them.

    `settings` is tokenizer_config.json; files of their own take its place, as in transformers.
    Raises InputError for one that is not UTF-8, RefusedError for two names that GGUF cannot tell apart.
    """
    said = settings.get("chat_template")
    entries = said if isinstance(said, list) else [{"name": DEFAULT, "template": said}]
    found = {entry.get("name"): entry.get("template") for entry in entries if isinstance(entry, dict)}
    found |= {_name_of(file): _text(file, data) for file, data in files.items() if _is_template(file)}
    texts = {name: text for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}
    # gguf-py writes no other characters.
    named = {re.sub(r"[^0-9A-Za-z]", "_", name): text for name, text in texts.items()}
    if len(named) < len(texts):
        told = ", ".join(sorted(texts))
        raise RefusedError(f"GGUF cannot tell the chat templates {told} apart", "rename one of them")
    return named


def _is_template(file: str) -> bool:
    return file == _FILE or (file.startswith(f"{TEMPLATES}/") and file.endswith(".jinja"))


def _name_of(file: str) -> str:
    return DEFAULT if file == _FILE else file.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja")


def _text(file: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8") from error


def template_files(templates: Mapping[str, str]) -> dict[str, bytes]:
    """The files of these templates."""
    return {
        _FILE if name == DEFAULT else TEMPLATE_PATTERN.replace("*", name): text.encode()
        for name, text in templates.items()
    }


def read_templates(metadata: Metadata) -> dict[str, str]:
    """The templates in a GGUF file. Raises InputError for a name that is none, or that has no template."""
    default = metadata.text(_KEY)
    templates = {} if default is None else {DEFAULT: default}
    for name in metadata.strings(_NAMES) or []:
        text = metadata.text(f"{_KEY}.{name}") if _NAME.fullmatch(name) else None
        if text is None or name in templates:
            raise InputError(f"GGUF metadata {_NAMES} names {name[:80]!r}, and there is no such template")
        templates[name] = text
    return templates


def write_templates(templates: Mapping[str, str]) -> dict[str, Value]:
    """The metadata of these templates."""
    others = sorted(templates.keys() - {DEFAULT})
    pairs = {f"{_KEY}.{name}": string(templates[name]) for name in others}
    if others:
        pairs[_NAMES] = array(ValueType.STRING, others)
    if DEFAULT in templates:
        pairs[_KEY] = string(templates[DEFAULT])
    return pairs
