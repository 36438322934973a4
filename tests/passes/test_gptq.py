"""GPTQ as a pass: better than rounding on every tensor of a fixed layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.kernels.qtensor import quantize
from compress.passes.core.linear import LinearPass
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.pauses import Pause
from compress.passes.forward.statistics import Hessian
from compress.passes.forward.walk import Stream, Walk
from compress.passes.gptq import GPTQ
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense
from compress.passes.nf4 import NF4
from compress.passes.rtn import RTN


@pytest.fixture
def layer(
    tmp_path: Path, family: str, make_model: Callable[..., Path]
) -> list[tuple[dict[str, torch.Tensor], LinearStats]]:
    """The first layer's weights and statistics, group by group."""
    checkpoint, skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path / family, family)), torch.device("cpu"))
    torch.manual_seed(0)
    rows = Sequences(torch.randint(1, 320, (16, 32)))
    read = dense(checkpoint)
    walk = Walk(skeleton, rows, [Stream(read, HiddenStates(tmp_path / "hidden", 32, skeleton.width, 16))])
    gathered: list[LinearStats] = []
    anatomy = skeleton.anatomy.layers[0]
    plans = [
        Pause(
            anatomy.modules[group[0]],
            checkpoint.spec.tensors[f"{group[0]}.weight"].shape[1],
            frozenset({Hessian}),
            gathered.append,
        )
        for group in anatomy.siblings
    ]
    with torch.no_grad():
        walk.start()
        walk.layer(0, [skeleton.layer(0, read)], plans, hold=True)
    weights = [{name: read(f"{name}.weight") for name in group} for group in anatomy.siblings]
    return list(zip(weights, gathered))


@pytest.mark.parametrize(
    "options", [{}, {"symmetric": False}, {"bits": 3}, {"bits": 2}, {"group_size": -1}, {"bits": 8}]
)
def test_beats_rounding_on_every_tensor(
    layer: list[tuple[dict[str, torch.Tensor], LinearStats]], options: dict[str, Any]
) -> None:
    options = {"group_size": 32, **options}
    assert_ordered(layer, GPTQ(**options), RTN(**options))


@pytest.mark.parametrize(
    ("table", "double_quant"), [("nf4", False), ("nf4", True), ("fp4", False), ("lloyd_max", True)]
)
def test_beats_rounding_onto_tables_too(
    layer: list[tuple[dict[str, torch.Tensor], LinearStats]], table: str, double_quant: bool
) -> None:
    options = {"block_size": 32, "double_quant": double_quant}
    assert_ordered(
        layer, GPTQ.model_validate({"format": table, **options}), NF4.model_validate({"table": table, **options})
    )


def assert_ordered(
    layer: list[tuple[dict[str, torch.Tensor], LinearStats]], better: LinearPass, worse: LinearPass
) -> None:
    """On every tensor of the layer, `better` has the smaller squared error of the output, in the same format."""
    for weights, stats in layer:
        hessian = stats[Hessian].matrix.double()
        solved, rounded = (step.siblings(weights, stats) for step in (better, worse))
        for name, weight in weights.items():
            errors = []
            for result in (solved[name].weight, rounded[name].weight):
                assert result.format == solved[name].weight.format
                difference = weight.double() - result.dequantize().double()
                errors.append(float((difference @ hessian * difference).sum()))
            assert errors[0] < errors[1], name


def test_of_a_hessian_shrunk_to_its_diagonal_no_error_is_passed_on(
    layer: list[tuple[dict[str, torch.Tensor], LinearStats]],
) -> None:
    for weights, stats in layer:
        alone, fed = (GPTQ(group_size=32, shrinkage=share).siblings(weights, stats) for share in (1.0, 0.0))
        for name, weight in weights.items():
            solved = alone[name].weight
            assert torch.equal(solved.codes, quantize(weight, solved.format, solved.params).codes)
            assert not torch.equal(solved.codes, fed[name].weight.codes)


def test_rows_that_do_not_stand_apart_are_not_solved_in_parts(tiny_llama: Path) -> None:
    checkpoint, skeleton = Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))
    options = {"format": "nf4", "double_quant": True, "end_loss": True}
    together, apart = (GPTQ.model_validate({**options, "end_loss_parts": parts}) for parts in (1, 2))
    assert together.plan(checkpoint.spec, skeleton.anatomy) != checkpoint.spec
    with pytest.raises(RefusedError, match=r"gptq: .* many rows at once, and rows are to be solved in 2 parts"):
        apart.plan(checkpoint.spec, skeleton.anatomy)
