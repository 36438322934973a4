"""Tensors of a model whose layers are alike: one line for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

T = TypeVar("T")


def alike(tensors: Iterable[T], name: Callable[[T], str], key: Callable[[T], Hashable]) -> dict[str, list[T]]:
    """Those of one `key` together, by their name with `*` for the layer's number; one that stands alone by its own."""
    groups: dict[tuple[str, Hashable], list[T]] = {}
    for tensor in tensors:
        groups.setdefault((re.sub(r"\.\d+\.", ".*.", name(tensor)), key(tensor)), []).append(tensor)
    lines: dict[str, list[T]] = {}
    for (pattern, _), members in groups.items():
        lines[pattern if len(members) > 1 and pattern not in lines else name(members[0])] = members
    return lines
