"""What a path, a name, an image becomes in the files of `compress deploy`, whatever characters it has."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

import yaml

from compress.formats.errors import RefusedError, UsageError

_BREAKING = {"Cc", "Cs", "Zl", "Zp"}
"""Kinds of characters (Unicode's) that end a line, or that no UTF-8 file can hold."""
_IMAGE = r"[a-zA-Z0-9][\w./:@-]*"
_HOST = r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"


def refuse_odd(image: str | None, host: str) -> None:
    """Raise UsageError for names that would mean something else in the files."""
    if image is not None and not re.fullmatch(_IMAGE, image, re.ASCII):
        raise UsageError(f"--image {image!r} is no image's name", "as vllm/vllm-openai:v0.33.0")
    if not re.fullmatch(_HOST, host):
        raise UsageError(f"--host {host!r} is no name of a host", "small letters, digits and dashes: a.example.com")


def in_one_line(path: Path) -> str:
    """The path as text. Raises RefusedError for one that no line of a file can hold."""
    if odd := next((char for char in str(path) if unicodedata.category(char) in _BREAKING), None):
        raise RefusedError(f"{str(path)!r} holds {odd!r}, which no file here can say", "rename it, then deploy it")
    return str(path)


def escaped(text: str) -> str:
    """Where `$` begins a variable: in Compose files, and in what Kubernetes starts."""
    return text.replace("$", "$$")


def mounted(where: str) -> str:
    """What Compose mounts: `$MODEL_DIR` or `where`, a brace in which would end what stands for it."""
    return escaped(where) if set(where) & set("{}") else f"${{MODEL_DIR:-{escaped(where)}}}"


def image_parts(image: str) -> tuple[str, str]:
    """Repository and tag: a colon before the last slash is that of a registry's port."""
    repository, colon, tag = image.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (image, "latest")


def label(name: str) -> str:
    """`name` as Kubernetes takes it (RFC 1123): small letters, digits and dashes, a letter first; no word of YAML's."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    alone = plain[:1].isalpha() and len(plain) > 1 and isinstance(yaml.safe_load(plain), str)
    return (plain if alone else f"model-{plain}")[:50].strip("-")


def as_yaml(value: str | list[str]) -> str:
    """Text, or a list of texts, in double quotes: whatever it holds, in one line."""
    return yaml.safe_dump(value, default_style='"', default_flow_style=True, width=sys.maxsize).strip()
