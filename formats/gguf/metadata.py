"""Typed and range-checked reading of GGUF metadata, and the values to write. Nothing here trusts the file."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import TypeVar

from compress.formats.errors import InputError
from compress.formats.gguf.header import Scalar, Value, ValueType

T = TypeVar("T")
MAX_FLOAT = 3.4e38  # float32 ends a little above
_FLOATS = (ValueType.FLOAT32, ValueType.FLOAT64)
_OTHERS = (ValueType.STRING, ValueType.BOOL, ValueType.ARRAY)
_WHOLE = tuple(kind for kind in ValueType if kind not in (*_FLOATS, *_OTHERS))


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
