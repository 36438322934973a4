"""YAML text → plain data, strictly, with the line of every value kept.

A recipe is data from strangers, so this is a subset of YAML 1.2: no tags, anchors, aliases or second
documents, no key twice, at most 256 KiB and 32 levels. Scalars follow the core schema of YAML 1.2.2 §10.3.2
(`1e-3` is a number; `no` and `on` are words), not PyYAML's YAML 1.1. PyYAML's pure-Python parser supplies
the events; its C parser overflows the stack on deep input, and its constructors would run on tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from compress.formats.errors import UsageError

Path: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NUMBER = 64

_WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """Plain data, and where each of its values stands: `places[("passes", 1)]` is `recipe.yaml:7`."""

    source: str
    data: Any
    places: Mapping[Path, str]

    def where(self, path: Path) -> str:
        """The place of `path`, or of its nearest ancestor that the text holds."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, self.source)


def parse(text: str | bytes, source: str) -> Document:
    """Parse one YAML document; `source` is the name to use in messages.

    Raises UsageError with `source:line:` for anything outside the subset that the module describes.
    """
    builder = _Builder(source)
    try:
        data = builder.document(yaml.parse(_decode(text, source), Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    return Document(source, data, builder.places)


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) scalar by the core schema of YAML 1.2.2 §10.3.2."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


def _decode(text: str | bytes, source: str) -> str:
    """UTF-8 bytes as text, within the size limit."""
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{source}: {len(raw):,} bytes; a recipe has at most {MAX_BYTES:,}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{source}:{line}: not UTF-8 text") from None


class _Builder:
    """Turns parser events into data; nesting is bounded, so plain recursion is safe."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Path, str] = {}

    def document(self, events: Iterator[yaml.Event]) -> Any:
        """The only document of the stream; None if the stream is empty."""
        next(events)  # stream start
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        data = self.node(next(events), events, ())
        next(events)  # document end
        following = next(events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise self.error(following, "a second document; a recipe is one")
        return data

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], path: Path) -> Any:
        if getattr(event, "anchor", None) is not None:  # an alias has one too
            raise self.error(event, "anchors (&) and aliases (*) are not allowed; write the value out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise self.error(event, f"the tag {tag} is not allowed")
        if len(path) > MAX_DEPTH:
            raise self.error(event, f"nested deeper than {MAX_DEPTH} levels")
        self.places.setdefault(path, self.place(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(events, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(events, path)
        assert isinstance(event, yaml.ScalarEvent)  # there is no other event where a node begins
        return self.scalar(event)

    def mapping(self, events: Iterator[yaml.Event], path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self.key(event)
            child = (*path, key)
            if key in data:
                raise self.error(event, f"{key!r} stands here and at {self.places[child]}")
            self.places[child] = self.place(event)
            data[key] = self.node(next(events), events, child)
        return data

    def sequence(self, events: Iterator[yaml.Event], path: Path) -> list[Any]:
        data: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            data.append(self.node(event, events, (*path, len(data))))
        return data

    def key(self, event: yaml.Event) -> str:
        """A mapping's key, always as text: every key of a recipe is a word."""
        if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
            raise self.error(event, "a key must be a plain word")
        return str(event.value)

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        if event.style is not None:  # quoted or block text
            return str(event.value)
        if len(event.value) > MAX_NUMBER:  # int() is quadratic in the digits, and refuses 4,301 of them
            return str(event.value)
        return scalar(event.value)

    def place(self, event: yaml.Event) -> str:
        assert event.start_mark is not None  # PyYAML's parser marks every event
        return f"{self.source}:{event.start_mark.line + 1}"

    def error(self, event: yaml.Event, message: str) -> UsageError:
        return UsageError(f"{self.place(event)}: {message}")
