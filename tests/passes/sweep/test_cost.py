"""What a stage takes: what its passes say of themselves, once for all siblings that are solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.measure.hessian import hessian_effort
from compress.kernels.numbers.int import IntFormat
from compress.kernels.solve.gptq import solve_effort
from compress.passes.awq import AWQ
from compress.passes.core.base import LayerPass
from compress.passes.core.run import Run
from compress.passes.forward.cost.logits import back_cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.statistics import Drift
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy
from compress.passes.rtn import RTN
from compress.passes.sweep.cost import gather_effort, rewrite_effort, sweep_cost

Begin = Callable[..., Run]
EXTENT, PLENTY = (4, 16), 1 << 40


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path, begin: Begin) -> tuple[ModelSpec, Anatomy]:
    """Two layers: q, k, v [128, 64] together, o [64, 64], gate and up [256, 64], down [64, 128]."""
    run = begin(tiny_llama, tmp_path / "work")
    return run.model.spec, run.skeleton.anatomy


def test_only_what_wants_data_costs_forwards(model: tuple[ModelSpec, Anatomy]) -> None:
    plain, solved, corrected = (
        sweep_cost([step], *model, EXTENT, PLENTY) for step in (RTN(), GPTQ(), GPTQ(correct=True))
    )
    assert (plain.forwards, solved.forwards) == (0, 1)
    assert plain.effort.flops == 0 < solved.effort.flops < corrected.effort.flops
    walk = Passage(*model, EXTENT, statistics=True).cost(PLENTY).effort
    assert solved.effort == walk + gather_effort([GPTQ()], *model, EXTENT) + rewrite_effort([GPTQ()], *model)


def test_a_hessian_is_gathered_once_for_each_input(model: tuple[ModelSpec, Anatomy]) -> None:
    layer = hessian_effort(4 * 16, 64) * 3 + hessian_effort(4 * 16, 128)
    assert gather_effort([GPTQ()], *model, EXTENT) == layer * 2
    assert gather_effort([GPTQ(), GPTQ(bits=8)], *model, EXTENT) == layer * 2
    assert gather_effort([GPTQ(skip=("down_proj",))], *model, EXTENT) == hessian_effort(4 * 16, 64) * 6


def visits(step: LayerPass, spec: ModelSpec, anatomy: Anatomy) -> float:
    """The calls of `step` itself: those of committing are there without any, too."""
    return rewrite_effort([step], spec, anatomy).calls - rewrite_effort([RTN(group_size=32)], spec, anatomy).calls


def test_siblings_are_solved_as_one_unless_their_options_differ(model: tuple[ModelSpec, Anatomy]) -> None:
    """Rows of q, k and v are stacked, so their 64 columns are visited once."""
    shapes = [(64 + 32 + 32, 64), (64, 64), (256, 64), (64, 128)]
    together = sum(solve_effort(shape).calls for shape in shapes) * 2
    assert visits(GPTQ(group_size=32), *model) == pytest.approx(together)
    apart = GPTQ.model_validate({"group_size": 32, "bits": {"k_proj": 8, "default": 4}})
    more = sum(solve_effort(shape).calls for shape in [(32, 64), (96, 64)]) - solve_effort((128, 64)).calls
    assert visits(apart, *model) == pytest.approx(together + 2 * more) and more > 0


@pytest.mark.parametrize(
    ("cheap", "dear"),
    [
        (RTN(), RTN(search="weights")),
        (GPTQ(search=False), GPTQ()),
        (GPTQ(), GPTQ(correct=True)),
        (GPTQ(), GPTQ(tune=True)),
        (AWQ(group_size=32, clip=False, search=False), AWQ(group_size=32, search=False)),
        (AWQ(group_size=32, search=False), AWQ(group_size=32)),
    ],
)
def test_every_option_that_takes_time_is_counted(
    cheap: LayerPass, dear: LayerPass, model: tuple[ModelSpec, Anatomy]
) -> None:
    less, more = (rewrite_effort([step], *model) for step in (cheap, dear))
    assert (more.flops, more.elements, more.calls) > (less.flops, less.elements, less.calls)
    assert all(getattr(more, sort) >= getattr(less, sort) for sort in ("flops", "elements", "calls"))


def test_with_the_end_loss_there_are_statistics_of_every_linears_parts(model: tuple[ModelSpec, Anatomy]) -> None:
    """And errors are still measured by the Hessian that siblings share; the head has no parts."""
    shared = hessian_effort(4 * 16, 64) * 3 + hessian_effort(4 * 16, 128)
    own = hessian_effort(4 * 16, 64) * 6 + hessian_effort(4 * 16, 128)
    for parts in (1, 3):
        step = GPTQ(group_size=32, end_loss=True, end_loss_parts=parts)
        found = gather_effort([step], *model, EXTENT)
        assert found.flops == pytest.approx(2 * (shared.flops + parts * own.flops))
        shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
        calls = sum(solve_effort((rows // parts, columns)).calls * parts for rows, columns in shapes)
        assert visits(step, *model) == pytest.approx(2 * calls)
    guided, plain = (sweep_cost([GPTQ(end_loss=end)], *model, EXTENT, PLENTY) for end in (True, False))
    back = back_cost(*model, EXTENT)
    assert guided.effort.flops > plain.effort.flops + back.effort.flops
    assert guided.memory >= max(plain.memory, back.memory)
    head = GPTQ(include=("lm_head",), end_loss=True)
    assert gather_effort([head], *model, EXTENT) == gather_effort([GPTQ(include=("lm_head",))], *model, EXTENT)


def test_ends_are_counted_where_they_are_rewritten(model: tuple[ModelSpec, Anatomy]) -> None:
    without, all_ends = (rewrite_effort([RTN(group_size=32, include=include)], *model) for include in (None, ("*",)))
    vocabulary = IntFormat(4, 32).effort((320, 64), searched=False)
    assert all_ends.elements == without.elements + vocabulary.elements
    assert all_ends.calls > without.calls > 0


def test_what_a_pass_says_of_itself_is_believed(model: tuple[ModelSpec, Anatomy]) -> None:
    class Slow(RTN):
        def linear_effort(self, shape: tuple[int, ...], number_format: object) -> Effort:
            return Effort(calls=shape[0])

    rows = 128 + 64 + 256 + 64
    assert visits(Slow(), *model) == pytest.approx(2 * rows)
    spec, anatomy = model
    one = replace(anatomy, layers=anatomy.layers[:1])
    assert visits(Slow(), spec, one) == pytest.approx(rows)


def test_statistics_of_wide_inputs_may_be_rounded(model: tuple[ModelSpec, Anatomy]) -> None:
    spec, anatomy = model
    widened = {name: replace(tensor, shape=(tensor.shape[0], 256)) for name, tensor in spec.tensors.items()
               if name.endswith("down_proj.weight")}  # fmt: skip
    wide = replace(spec, tensors={**spec.tensors, **widened})
    plain, corrected = (gather_effort([step], wide, anatomy, EXTENT) for step in (GPTQ(), GPTQ(correct=True)))
    hessian, drift = hessian_effort(4 * 16, 256).flops, Drift.effort(4 * 16, 256, 64).flops
    assert (plain.rounded, corrected.rounded) == (2 * hessian, 2 * (hessian + drift))
    assert plain.flops == 2 * 3 * hessian_effort(4 * 16, 64).flops
