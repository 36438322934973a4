"""Stacked and transposed weights cut into matrices, and put together again to the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.formats.base import Checkpoint, ModelSpec, Origin, TensorSpec
from compress.formats.views.fit import Decoded, decoded_spec
from compress.formats.views.matrices import Matrices, Restored
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize

GRID = IntFormat(8, 32)


class Held(Checkpoint):
    """Tensors in memory."""

    dialect, path = "held", Path("held")

    def __init__(self, tensors: Mapping[str, Tensor | QTensor], origins: Mapping[str, Origin | None]) -> None:
        self.tensors, self.reads = tensors, 0
        specs = {
            name: TensorSpec(tuple(t.shape), "float32", t.format if isinstance(t, QTensor) else None, origins.get(name))
            for name, t in tensors.items()
        }
        self.spec = ModelSpec({}, specs)

    def read(self, name: str) -> Tensor | QTensor:
        self.reads += 1
        return self.tensors[name]

    def files(self) -> Mapping[str, bytes]:
        return {}

    def nbytes(self) -> int:
        return 0


@pytest.fixture
def stored() -> Held:
    generator = torch.Generator().manual_seed(0)
    shapes = {"square": (32, 32), "moe.up": (3, 64, 32), "moe.down": (3, 32, 64), "moe.up_bias": (3, 64), "norm": (8,)}
    return Held({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, {})


@pytest.fixture
def origins() -> dict[str, Origin]:
    experts = {f"moe.{i}.up.weight": Origin("moe.up", i) for i in range(3)}
    experts |= {f"moe.{i}.down.weight": Origin("moe.down", i, transposed=True) for i in range(3)}
    experts |= {f"moe.{i}.up.bias": Origin("moe.up_bias", i) for i in range(3)}
    return {"square": Origin("square", transposed=True), **experts}


def matrix(model: Checkpoint, name: str) -> Tensor:
    tensor = model.read(name)
    assert isinstance(tensor, Tensor) and tuple(tensor.shape) == model.spec.tensors[name].shape
    return tensor


def test_each_weight_is_a_matrix_of_its_own(stored: Held, origins: dict[str, Origin]) -> None:
    view = Matrices(stored, origins)
    assert set(view.spec.tensors) == {*origins, "norm"}
    assert torch.equal(matrix(view, "square"), stored.tensors["square"].T)
    for i in range(3):
        assert torch.equal(matrix(view, f"moe.{i}.up.weight"), stored.tensors["moe.up"][i])
        assert torch.equal(matrix(view, f"moe.{i}.down.weight"), stored.tensors["moe.down"][i].T)
        assert torch.equal(matrix(view, f"moe.{i}.up.bias"), stored.tensors["moe.up_bias"][i])
    assert stored.reads == 4  # every stack once


def test_there_and_back_is_the_same(stored: Held, origins: dict[str, Origin]) -> None:
    back = Restored(Matrices(stored, origins))
    assert back.spec == stored.spec
    assert all(torch.equal(matrix(back, name), stored.tensors[name]) for name in stored.tensors)


def test_what_is_quantized_stays_apart_with_its_biases(stored: Held, origins: dict[str, Origin]) -> None:
    view = Matrices(stored, origins)
    tensors = {name: matrix(view, name) for name in view.spec.tensors}
    for name in ("square", "moe.1.up.weight"):
        tensors[name] = quantize(tensors[name], GRID, GRID.fit(tensors[name]))
    written = Restored(Held(tensors, {name: spec.origin for name, spec in view.spec.tensors.items()}))
    assert set(written.spec.tensors) == set(view.spec.tensors)
    # Read again from such files: quantized and dense experts under their own names, each [out, in].
    again = Matrices(Held({name: written.read(name) for name in written.spec.tensors}, {}), origins)
    assert {name: spec.shape for name, spec in again.spec.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    assert torch.equal(matrix(again, "moe.1.down.weight"), tensors["moe.1.down.weight"])
    # Decoded, all goes back into the form of the model's own files.
    decoded = Restored(Decoded(again, decoded_spec(again.spec)))
    assert set(decoded.spec.tensors) == set(stored.spec.tensors)
    torch.testing.assert_close(matrix(decoded, "square"), stored.tensors["square"], rtol=0, atol=0.05)
    torch.testing.assert_close(matrix(decoded, "moe.up"), stored.tensors["moe.up"], rtol=0, atol=0.05)
