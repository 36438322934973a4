"""Tensors of layers that are alike share a line, and nothing else does."""

from __future__ import annotations

from compress.cli.views.layers import alike

Named = tuple[str, int]


def test_what_is_alike_but_for_the_layer_stands_together() -> None:
    tensors: list[Named] = [("a.0.up", 4), ("a.1.up", 4), ("a.2.up", 8), ("a.0.down", 4), ("head", 4)]
    found = alike(tensors, lambda each: each[0], lambda each: each[1])
    assert {line: [name for name, _ in members] for line, members in found.items()} == {
        "a.*.up": ["a.0.up", "a.1.up"], "a.2.up": ["a.2.up"], "a.0.down": ["a.0.down"], "head": ["head"],
    }  # fmt: skip


def test_two_kinds_of_one_name_keep_a_name_each() -> None:
    tensors: list[Named] = [("a.0.up", 4), ("a.1.up", 8), ("a.2.up", 4), ("a.3.up", 8)]
    found = alike(tensors, lambda each: each[0], lambda each: each[1])
    assert list(found) == ["a.*.up", "a.1.up"] and all(len(members) == 2 for members in found.values())
