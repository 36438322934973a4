"""Typed and range-checked reading of GGUF metadata, and the values to write. Nothing here trusts the file.

What a file says that nothing here has words for is kept in a file beside config.json, and written again:

    gguf.json    {"general.license": {"type": "STRING", "value": "mit"}, …}; arrays have an "element" besides
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from compress.formats.errors import InputError
from compress.formats.files.storage import encode_json, parse_json
from compress.formats.gguf.header import Scalar, Value, ValueType, key_problem

T = TypeVar("T")
MAX_FLOAT = 3.4e38  # float32 ends a little above
_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)
_OTHERS = (ValueType.STRING, ValueType.BOOL, ValueType.ARRAY)
_WHOLE = tuple(kind for kind in ValueType if kind not in (*_FLOATS, *_OTHERS))

SPLIT = "split."
FILE = "gguf.json"
# What a file says of its own bytes, and what every file written here says anew.
_OWN = (SPLIT, "general.alignment", "general.file_type", "general.quantization_version", "general.architecture",
        "quantize.", "tokenizer.chat_template", "tokenizer.ggml.scores", "tokenizer.ggml.merges",
        "tokenizer.ggml.add_sep_token")  # fmt: skip


class Metadata:
    """The key-value pairs of one file. Every getter returns None for a key that is not there.

    All raise InputError naming the key for a value of another type or out of range. `asked` are the keys so far.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def text(self, key: str) -> str | None:
        """A string."""
        value = self._scalar(key, "a string", (ValueType.STRING,))
        return None if value is None else str(value)

    def flag(self, key: str) -> bool | None:
        """A bool."""
        value = self._scalar(key, "a bool", (ValueType.BOOL,))
        return None if value is None else bool(value)

    def integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, of any width."""
        value = self._scalar(key, "a whole number", _WHOLE)
        if value is not None and not low <= int(value) <= high:
            raise InputError(f"GGUF metadata {key} is {value}, not a number from {low} to {high}")
        return None if value is None else int(value)

    def number(self, key: str) -> float | None:
        """A positive number that float32 holds, as `shortest` writes it: 1e-05, not 9.99999974e-06."""
        value = self._scalar(key, "a float", _FLOATS)
        if value is not None and not 0 < float(value) <= MAX_FLOAT:
            raise InputError(f"GGUF metadata {key} is {value}, not a positive number")
        return None if value is None else shortest(float(value))

    def strings(self, key: str) -> list[str] | None:
        """An array of strings."""
        items = self._array(key, "strings", (ValueType.STRING,))
        return None if items is None else [str(item) for item in items]

    def integers(self, key: str) -> list[int] | None:
        """An array of whole numbers."""
        items = self._array(key, "whole numbers", _WHOLE)
        return None if items is None else [int(item) for item in items]

    def numbers(self, key: str) -> list[float] | None:
        """An array of finite floats."""
        items = self._array(key, "floats", _FLOATS)
        floats = None if items is None else [float(item) for item in items]
        if floats is not None and not all(map(math.isfinite, floats)):
            raise InputError(f"GGUF metadata {key} holds NaN or Inf")
        return floats

    def _scalar(self, key: str, what: str, types: Iterable[ValueType]) -> Scalar | None:
        self.asked.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        if value.type not in types or isinstance(value.value, list):
            raise InputError(f"GGUF metadata {key} is of type {value.type.name}, not {what}")
        return value.value

    def _array(self, key: str, what: str, types: Iterable[ValueType]) -> list[Scalar] | None:
        self.asked.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value.value, list) or value.element is None or value.element not in types:
            raise InputError(f"GGUF metadata {key} is not an array of {what}")
        return value.value


def required(value: T | None, key: str) -> T:
    """`value`, which stands under `key`; InputError if it is None."""
    if value is None:
        raise InputError(f"GGUF metadata lack {key}", "the file is damaged: get another copy")
    return value


def shortest(value: float) -> float:
    """The decimal of fewest digits that float32 rounds to the same number as `value`."""
    shorter = (float(f"{value:.{digits}g}") for digits in range(1, 9))
    return next((short for short in shorter if _same(short, value)), value)


def _same(left: float, right: float) -> bool:
    return struct.pack("<f", left) == struct.pack("<f", right)


def string(text: str) -> Value:
    """STRING."""
    return Value(ValueType.STRING, text)


def flag(value: bool) -> Value:
    """BOOL."""
    return Value(ValueType.BOOL, value)


def uint(value: int) -> Value:
    """UINT32: what llama.cpp expects of every count and id."""
    return Value(ValueType.UINT32, value)


def real(value: float) -> Value:
    """FLOAT32."""
    return Value(ValueType.FLOAT32, value)


def array(element: ValueType, items: Iterable[Scalar]) -> Value:
    """ARRAY of `element`s."""
    return Value(ValueType.ARRAY, list(items), element)


def keep(metadata: Mapping[str, Value], understood: Collection[str]) -> dict[str, bytes]:
    """The file of all that `metadata` say but for what is `understood`; none, if that is all."""
    kept = {key: value for key, value in metadata.items() if key not in understood and not key.startswith(_OWN)}
    said = {key: _as_json(value) for key, value in kept.items() if _is_finite(value)}
    return {FILE: encode_json(said)} if said else {}


def kept_in(files: Mapping[str, bytes]) -> dict[str, Value]:
    """What `keep` kept. Raises InputError for a file that holds something else."""
    value = parse_json(files[FILE], FILE) if FILE in files else {}
    if not isinstance(value, dict):
        raise InputError(f"{FILE} is not a JSON object")
    for key in value:
        if problem := key_problem(key):
            raise InputError(f"{FILE}: the key {key[:80]!r} {problem}", "leave the file out, or mend it")
    return {key: _from_json(key, said) for key, said in value.items() if not key.startswith(_OWN)}


def _is_finite(value: Value) -> bool:
    items = value.value if isinstance(value.value, list) else [value.value]
    return all(math.isfinite(item) for item in items if isinstance(item, float))


def _as_json(value: Value) -> dict[str, Any]:
    element = {} if value.element is None else {"element": value.element.name}
    return {"type": value.type.name, **element, "value": value.value}


def _from_json(key: str, said: object) -> Value:
    known = ValueType.__members__
    if not isinstance(said, dict) or said.get("type") not in known or "value" not in said:
        raise InputError(f"{FILE}: {key[:80]} is no value of GGUF's metadata", "leave the file out, or mend it")
    kind, value = ValueType[said["type"]], said["value"]
    if kind is not ValueType.ARRAY:
        return Value(kind, _scalar(key, kind, value))
    if not isinstance(value, list) or said.get("element") not in known or said["element"] == "ARRAY":
        raise InputError(f"{FILE}: {key[:80]} is no array of GGUF's metadata", "leave the file out, or mend it")
    element = ValueType[said["element"]]
    return Value(kind, [_scalar(key, element, item) for item in value], element)


def _scalar(key: str, kind: ValueType, value: object) -> int | float | bool | str:
    wanted = {ValueType.STRING: str, ValueType.BOOL: bool, ValueType.FLOAT32: float, ValueType.FLOAT64: float}
    if type(value) is not wanted.get(kind, int):
        raise InputError(f"{FILE}: {key[:80]} is not of the type {kind.name}", "leave the file out, or mend it")
    assert isinstance(value, int | float | bool | str)
    return value
