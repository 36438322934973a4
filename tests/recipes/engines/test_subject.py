"""An artifact as facts see it."""

from __future__ import annotations

from collections.abc import Callable

from compress.kernels.numbers.activations import ActivationFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.subject import Subject, listed, module_of

INT4 = IntFormat(4, 32)


def test_grids_are_of_weights_whose_inputs_stay_as_they_are(subject: Callable[..., Subject]) -> None:
    shapes = {"self_attn.q_proj": (64, 64), "mlp.up_proj": (64, 64), "mlp.down_proj": (64, 64)}
    inputs = {"mlp.up_proj": ActivationFormat("int8", True)}
    found = subject(INT4, shapes=shapes, activations=inputs, down_proj=None)
    up, q = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    assert set(found.quantized) == {q, up}
    assert found.grids == {q: INT4}


def test_words() -> None:
    assert (module_of("a.b.weight"), listed([4, 8])) == ("a.b", "4, 8")
