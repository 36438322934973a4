"""Matrices rounded by what their inputs are: those that are known, and no others."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.formats import open_checkpoint
from compress.formats.views.rounded import Rounded
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor

UP, DOWN = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))


def test_only_what_is_known_is_rounded_and_by_it(tiny_llama: Path) -> None:
    source, q4_0 = open_checkpoint(tiny_llama), IntFormat(4, 32, "middle")
    importance = torch.linspace(0, 1, 64) ** 6
    model = Rounded(source, {UP: q4_0, DOWN: q4_0}, {UP: importance, "lm_head.weight": importance})
    assert {name for name, spec in model.spec.tensors.items() if spec.format} == {UP}
    rounded, dense = model.read(UP), source.read(UP)
    assert (
        isinstance(rounded, QTensor) and isinstance(dense, torch.Tensor) and not isinstance(model.read(DOWN), QTensor)
    )
    plain = q4_0.search(dense, torch.ones(64)).dequantize()
    errors = [float(((each - dense).square() * importance).sum()) for each in (rounded.dequantize(), plain)]
    assert errors[0] < 0.9 * errors[1]
