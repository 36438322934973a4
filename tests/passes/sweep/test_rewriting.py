"""Linears that share an input, through the passes of a stage: each goes on from what the one before left."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from compress.formats.errors import CompressError
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.model.anatomy import Anatomy
from compress.passes.rtn import RTN
from compress.passes.sweep.rewriting import Leavings, Rewriting
from compress.passes.sweep.tensor_report import UNREACHED

NO_STATS = LinearStats(frozenset(), 0, torch.device("cpu"))
WEIGHT = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


class Halving(LayerPass):
    """Leaves dense weights of half the size, and says `note`."""

    note: str = ""

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        raise NotImplementedError

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        return {name: Change(weight / 2, notes={self.note: 1.0}) for name, weight in weights.items()}


class Measuring(Halving):
    """Measures what it has a scale of."""

    scales_of: Mapping[str, float] = {}

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        return {
            name: Change(weight, tensors={"input_scale": torch.tensor([self.scales_of[name]])})
            if name in self.scales_of
            else Change(weight, unreached=True, unmeasured=("input_scale",))
            for name, weight in weights.items()
        }


class Filling(Halving):
    """Adds 1 to every weight."""

    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        return {name: Change(weight + 1) for name, weight in weights.items()}


def taken(left: Leavings, names: list[str], *steps: tuple[LayerPass, set[str]]) -> dict[str, Tensor]:
    """What the forward goes on with."""
    rewriting = Rewriting(dict.fromkeys(names, WEIGHT), NO_STATS, left)
    for step, targets in steps:
        rewriting.take(step, frozenset(targets))
    return rewriting.finish()


def test_a_dense_change_is_handed_on_and_authors_are_joined() -> None:
    left = Leavings()
    place = taken(left, ["a"], (Halving(note="first"), {"a"}), (Halving(note="second"), {"a"}))
    assert torch.equal(place["a"], WEIGHT / 4)
    name = Halving().name
    assert left.authors == {"a.weight": f"{name} + {name}"}
    assert left.reports["a"].notes == {"first": 1.0, "second": 1.0}
    assert left.reports["a"].format == "float32"


def test_a_pass_touches_its_targets_only() -> None:
    left = Leavings()
    rewriting = Rewriting({"a": WEIGHT, "b": WEIGHT}, NO_STATS, left)
    rewriting.take(Halving(note="x"), frozenset({"a", "elsewhere"}))
    assert set(left.tensors) == {"a.weight"} and set(left.reports) == {"a"}


def test_the_report_compares_with_the_weight_before_any_pass() -> None:
    left = Leavings()
    taken(left, ["a"], (Halving(note="x"), {"a"}), (RTN(bits=8, group_size=32), {"a"}))
    assert left.reports["a"].relative_error == pytest.approx(0.25, rel=0.01)  # half of it is gone


def test_what_was_not_measured_is_the_largest_of_its_sort() -> None:
    left, names = Leavings(), [f"experts.{number}.{kind}" for number in range(3) for kind in ("up", "down")]
    scales = {"experts.0.up": 0.5, "experts.1.up": 2.0}
    taken(left, names, (Measuring(scales_of=scales), set(names)))
    left.lend()
    assert float(left.tensors["experts.2.up.input_scale"]) == 2.0  # type: ignore[arg-type]
    assert float(left.tensors["experts.0.up.input_scale"]) == 0.5  # type: ignore[arg-type]
    assert all(float(left.tensors[f"experts.{number}.down.input_scale"]) == 1.0 for number in range(3))  # type: ignore[arg-type]
    assert left.reports["experts.2.up"].flat() | {"reason": UNREACHED} == left.reports["experts.2.up"].flat()
    assert left.reports["experts.2.up"].notes["input_scale"] == "largest of its sort"
    assert left.authors["experts.2.up.input_scale"] == Measuring().name


def test_zeros_that_were_pruned_stay_zeros_whoever_comes_next() -> None:
    kept = {"a": WEIGHT > 0}
    weights = {"a": WEIGHT.where(kept["a"], 0.0)}
    rewriting = Rewriting(weights, NO_STATS, Leavings(), kept=kept)
    rewriting.take(RTN(group_size=32), frozenset({"a"}))
    with pytest.raises(CompressError, match="gave pruned weights of a other values than 0"):
        rewriting.take(Filling(), frozenset({"a"}))
