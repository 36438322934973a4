"""Units of a layer's inside: where they lie, and what is left of tensors and headers without some of them."""

from __future__ import annotations

import torch

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.narrow.inner import Inner, ascending, size_of_unit

HEADS = Inner(("q", "k"), "o", 3)
MODEL = ModelSpec(
    {},
    {
        name: TensorSpec(shape, "float32")
        for name, shape in {"q.weight": (12, 5), "q.bias": (12,), "k.weight": (6, 5), "o.weight": (5, 12)}.items()
    },
)


def test_every_unit_is_as_long_as_its_share_of_an_axis() -> None:
    assert HEADS.places(torch.tensor([0, 2]), 12).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert HEADS.places(torch.tensor([1]), 6).tolist() == [2, 3]
    assert HEADS.axes(MODEL) == {"q.weight": 0, "q.bias": 0, "k.weight": 0, "o.weight": 1}
    shapes = {name: spec.shape for name, spec in HEADS.resized(MODEL, 2).items()}
    assert shapes == {"q.weight": (8, 5), "q.bias": (8,), "k.weight": (4, 5), "o.weight": (5, 8)}
    assert size_of_unit(MODEL, [HEADS]) == 4 * 5 + 4 + 2 * 5 + 5 * 4


def test_tensors_are_cut_along_their_axis() -> None:
    tensors = {"up.weight": torch.arange(12.0).reshape(4, 3), "down.weight": torch.arange(8.0).reshape(2, 4)}
    kept = ascending(torch.tensor([3, 1]), 4)
    assert kept.tolist() == [0, 2]
    found = Inner(("up",), "down", 4).cut(tensors, {"up.weight": 0, "down.weight": 1}, kept)
    assert torch.equal(found["up.weight"], tensors["up.weight"][[0, 2]])
    assert torch.equal(found["down.weight"], tensors["down.weight"][:, [0, 2]])
    cut = HEADS.cut({"k.weight": torch.arange(6.0)[:, None]}, {"k.weight": 0}, torch.tensor([0, 2]))
    assert cut["k.weight"][:, 0].tolist() == [0, 1, 4, 5]
