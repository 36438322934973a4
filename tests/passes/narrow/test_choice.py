"""Which units go by which score, and what is made of the rest, on tensors made for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.measure.hessian import shrunk
from compress.kernels.solve.repair import repair
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian
from compress.passes.narrow.choice import Choice, Score
from compress.passes.narrow.inner import Inner
from compress.passes.narrow.walk import Narrower

HEADS = Inner(("q", "k", "v"), "o", 4)
SHAPES = {"q.weight": (16, 10), "k.weight": (8, 10), "v.weight": (8, 10), "o.weight": (10, 16)}
MODEL = ModelSpec({}, {name: TensorSpec(shape, "float32") for name, shape in SHAPES.items()})


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def narrower(
    weights: dict[str, Tensor], score: Score, scale: Tensor, repaired: bool = False
) -> tuple[Narrower, Tensor]:
    """Two groups of four, and the Hessian of inputs with these magnitudes."""
    inputs = torch.randn(400, 16, generator=torch.Generator().manual_seed(1)) * scale
    stats = LinearStats(frozenset({Hessian}), 16, torch.device("cpu"))
    stats.add(inputs, None)
    stats.finish()
    part = Choice(score, repaired, 0.5, False).part(MODEL, HEADS, 2)
    assert (part.at, set(part.tensors), part.residual) == ("o", set(SHAPES), False)
    return part.rewrite(weights, stats), stats[Hessian].matrix


@pytest.mark.parametrize("score", ["l1", "activation", "hessian"])
def test_groups_of_small_weights_or_inputs_go(weights: dict[str, Tensor], score: Score) -> None:
    scale = torch.ones(16)
    for name in ("q.weight", "k.weight", "v.weight") if score == "l1" else ():
        weights[name].unflatten(0, (4, -1))[[0, 2]] *= 0.01
    weights["o.weight"].unflatten(1, (4, -1))[:, 0] *= 0.01
    if score == "l1":
        weights["o.weight"].unflatten(1, (4, -1))[:, 2] *= 0.01
    else:
        scale[8:12] = 0.01
    found, _ = narrower(weights, score, scale)
    for name, axis in HEADS.axes(MODEL).items():
        kept = HEADS.places(torch.tensor([1, 3]), SHAPES[name][axis])
        assert torch.equal(found.tensors[name], weights[name].index_select(axis, kept))
    wide = found.widened(found.tensors)
    assert set(wide) == {"o.weight"}
    assert torch.equal(wide["o.weight"][:, 4:8], weights["o.weight"][:, 4:8]) and not wide["o.weight"][:, :4].any()


def test_what_reads_the_groups_is_repaired_with_shrunk_statistics(weights: dict[str, Tensor]) -> None:
    scale = torch.ones(16).index_fill(0, torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), 0.3)
    found, hessian = narrower(weights, "activation", scale, repaired=True)
    kept = torch.tensor([*range(4, 8), *range(12, 16)])
    assert torch.equal(found.tensors["o.weight"], repair(weights["o.weight"], shrunk(hessian, 0.5), kept))


def test_every_option_that_takes_time_is_counted() -> None:
    def flops(score: Score = "l1", repaired: bool = False, correct: bool = False) -> float:
        return Choice(score, repaired, 0.5, correct).effort((10, 16), HEADS, 2).flops

    assert 0 == flops() < flops(repaired=True) < flops(repaired=True, correct=True)
    assert flops("hessian") > 0
    assert Choice("l1", True, 0.5, False).memory((10, 16), HEADS, 2) > 4 * 16**2
