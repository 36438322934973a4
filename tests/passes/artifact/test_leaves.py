"""Where two JSON values differ."""

from __future__ import annotations

from compress.passes.artifact.leaves import differing, short


def test_every_leaf_that_differs_is_named() -> None:
    one = {"config.json": {"same": 1, "rope": {"theta": 1.0}, "layers": ["a"], "gone": True}}
    other = {"config.json": {"same": 1, "rope": {"theta": 2.0}, "layers": ["b"], "new": None}}
    assert list(differing("", one, other)) == [
        ("config.json: gone", True, None),
        ("config.json: layers", ["a"], ["b"]),
        ("config.json: rope.theta", 1.0, 2.0),
    ]


def test_a_number_of_another_type_is_another_and_steps_of_a_recipe_are_gone_into() -> None:
    passes = [[{"gptq": {"bits": bits}}, {"export": {}}] for bits in (4, 4.0, True)]
    assert list(differing("recipe", passes[0], passes[1])) == [("recipe: 0.gptq.bits", 4, 4.0)]
    assert list(differing("recipe", passes[0], passes[0][:1])) == [("recipe: 1", {"export": {}}, None)]
    assert not list(differing("recipe", passes[0], passes[0]))


def test_a_leaf_is_said_in_a_line() -> None:
    assert short(None) == "not there"
    assert short(list(range(100))).endswith("…") and len(short(list(range(100)))) < 61
