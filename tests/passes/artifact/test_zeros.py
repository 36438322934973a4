"""What is said of zeros: how many layers, by which pattern, and what that saves."""

from __future__ import annotations

from compress.formats.base import ModelSpec, Zeros
from compress.passes.artifact.zeros import zeros_told


def test_a_model_that_was_not_pruned_has_nothing_to_say() -> None:
    assert not zeros_told(ModelSpec({}, {}))


def test_layers_patterns_and_what_they_save() -> None:
    said = zeros_told(ModelSpec({}, {}, pruned={"a": Zeros(0.5), "b": Zeros(0.5)}))
    assert said.startswith("2 linear layers are pruned (50 %): zeros take as many bytes here as other values")
    assert "sparse cores" not in said
    assert "sparse cores" in zeros_told(ModelSpec({}, {}, pruned={"a": Zeros(0.5, "2:4")}))
