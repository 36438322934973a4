"""One pruned weight: what becomes zero, how well what stays makes up for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gathered import stats_of
from hessians import problem
from torch import Tensor

from compress.kernels.measure.error import output_energy
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian
from compress.passes.narrow.pruning import Pruning

USUAL = Pruning("alps", None, swap=False, solve=True, correct=False, damp=0.01, shrinkage=0.0)
ALONE = {"solve": False}
METHODS = ["magnitude", "wanda", "sparsegpt", "obd", "alps"]


def pruned(weight: Tensor, hessian: Tensor, share: float = 0.5, **options: Any) -> tuple[Tensor, Tensor]:
    how = replace(USUAL, **options)
    change = how.change(weight, stats_of(hessian, *how.kinds()), share)
    assert change.mask is not None
    return change.values, change.mask


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"share": 0.7}, {"pattern": (2, 4)}, {"pattern": (4, 8)}])
@pytest.mark.parametrize("more", [ALONE, {}, {"swap": True, "solve": False}, {"swap": True}])
def test_as_many_weights_stay_as_are_asked_for(method: str, options: dict[str, Any], more: dict[str, Any]) -> None:
    weight, hessian = problem(10, 64)
    values, mask = pruned(weight, hessian, method=method, **options, **more)
    assert bool((values[~mask] == 0).all())
    if pattern := options.get("pattern"):
        kept, group = pattern
        assert bool((mask.view(10, -1, group).sum(2) == kept).all())
    else:
        assert int(mask.sum()) == 640 - round(640 * 0.7) or method == "wanda"
        assert method != "wanda" or bool((mask.sum(1) == 64 - round(64 * 0.7)).all())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "obd"])
@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_swaps_and_least_squares_each_lower_the_error(method: str, pattern: tuple[int, int] | None) -> None:
    weight, hessian = problem(24, 96)
    errors = []
    for more in (ALONE, {"swap": True, "solve": False}, {"swap": True}):
        values, _ = pruned(weight, hessian, method=method, pattern=pattern, **more)
        errors.append(output_energy(weight - values, hessian))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("pattern", [None, (2, 4), (4, 8)])
def test_what_is_searched_for_errs_less_than_every_other_method(pattern: tuple[int, int] | None) -> None:
    weight, hessian = problem(24, 96)
    errors = {
        name: output_energy(weight - pruned(weight, hessian, method=name, pattern=pattern)[0], hessian)
        for name in METHODS
    }
    assert errors.pop("alps") < min(errors.values())


@pytest.mark.parametrize("method", ["magnitude", "wanda", "obd"])
def test_what_stays_has_the_highest_scores_and_its_old_value(method: str) -> None:
    weight, hessian = problem(10, 64)
    values, mask = pruned(weight, hessian, method=method, **ALONE)
    assert torch.equal(values, weight * mask)
    energy = hessian.diagonal().double()
    score = {
        "magnitude": weight.double().abs(),
        "wanda": weight.double().abs() * energy.sqrt(),
        "obd": weight.double() ** 2 * energy / 2,
    }[method]
    parts = zip(score, mask) if method == "wanda" else [(score, mask)]
    assert all(part[keep].min() >= part[~keep].max() for part, keep in parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("more", [ALONE, {}, {"swap": True}, {"correct": True}])
def test_what_was_pruned_before_loses_more_and_gets_nothing_back(method: str, more: dict[str, Any]) -> None:
    weight, hessian = problem(10, 64)
    values, before = pruned(weight, hessian, method=method, share=0.3, **more)
    how = replace(USUAL, method=method, **more)
    found = how.change(values, stats_of(hessian, *how.kinds()), 0.6, before)
    assert found.mask is not None
    assert not bool((found.mask & ~before).any()) and not bool(found.values[~found.mask].any())
    share = 10 * (64 - round(64 * 0.6)) if method == "wanda" else 640 - round(640 * 0.6)
    assert int(found.mask.sum()) == share


def test_without_inputs_it_goes_by_magnitude_and_says_so() -> None:
    weight, _ = problem(10, 64)
    for stats, unreached in ((LinearStats(frozenset({Hessian}), 64, torch.device("cpu")), True),
                             (LinearStats(frozenset(), 64, torch.device("cpu")), False)):  # fmt: skip
        change = USUAL.change(weight, stats, 0.5)
        assert (change.notes["fallback"], change.unreached) == ("magnitude", unreached)
        assert torch.equal(change.values, pruned(weight, torch.eye(64), method="magnitude", **ALONE)[0])
