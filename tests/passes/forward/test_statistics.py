"""Statistics: sums over tokens that come in any pieces, none at all among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.passes.forward.input_ranges import Extremes, Histogram, Moments
from compress.passes.forward.linear_stats import Guide, LinearStats
from compress.passes.forward.statistics import Drift, Energy, Hessian, MeanAbs, Statistic

CPU = torch.device("cpu")
ALL: frozenset[type[Statistic]] = frozenset({Hessian, Drift, MeanAbs, Energy, Extremes, Moments, Histogram})


def data(seed: int = 0) -> Tensor:
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))


def gathered(pieces: list[int], kinds: frozenset[type[Statistic]] = ALL) -> LinearStats:
    """Statistics of the first tokens, in pieces of so many."""
    stats = LinearStats(kinds, 6, CPU)
    for x, teacher in zip(data()[: sum(pieces)].split(pieces), data(1)[: sum(pieces)].split(pieces)):
        stats.add(x, teacher, gap=(teacher - x)[:, :4])
    stats.finish()
    return stats


def test_each_is_what_its_docstring_says() -> None:
    stats, x, teacher = gathered([40]), data(), data(1)
    torch.testing.assert_close(stats[Hessian].matrix, x.T @ x)
    torch.testing.assert_close(stats[Drift].matrix, (teacher - x).T @ x)
    torch.testing.assert_close(stats[Drift].gap, (teacher - x)[:, :4].T @ x)
    torch.testing.assert_close(stats[MeanAbs].mean, x.abs().mean(0))
    assert stats.tokens == 40 and stats.gathered


@pytest.mark.parametrize("pieces", [[10, 30], [0, 40], [15, 0, 25, 0]])
def test_the_pieces_do_not_matter_and_empty_ones_change_nothing(pieces: list[int]) -> None:
    one, several = gathered([40]), gathered(pieces)
    assert several.tokens == 40
    for kind, part in ((Hessian, "matrix"), (Drift, "matrix"), (MeanAbs, "total"), (Extremes, "columns"),
                       (Energy, "total"), (Moments, "energy"), (Histogram, "counts")):  # fmt: skip
        torch.testing.assert_close(getattr(several[kind], part), getattr(one[kind], part))


def test_an_expert_without_a_token_has_statistics_of_none() -> None:
    stats = gathered([0])
    assert stats.gathered and stats.tokens == 0
    assert not stats[Hessian].matrix.any() and not stats[MeanAbs].mean.any()


def test_of_energies_alone_there_is_a_diagonal() -> None:
    x, told = data(), LinearStats(frozenset({Hessian, Energy, MeanAbs}), 6, CPU)
    told.take_energy(x.square().sum(0), 40)
    torch.testing.assert_close(told[Hessian].matrix, gathered([40])[Hessian].matrix.diagonal().diag_embed())
    torch.testing.assert_close(told[MeanAbs].mean, x.square().mean(0).sqrt())
    assert told.tokens == 40
    with pytest.raises(NotImplementedError, match="Extremes takes more"):
        LinearStats(frozenset({Extremes}), 6, CPU).take_energy(x.square().sum(0), 40)


def test_dividing_is_gathering_what_was_divided() -> None:
    scale = torch.linspace(0.5, 3, 6)
    divided = gathered([40])
    divided.divide(scale)
    anew = LinearStats(frozenset({Hessian, Drift, MeanAbs}), 6, CPU)
    anew.add(data() / scale, data(1) / scale, gap=(data(1) - data())[:, :4])
    anew.finish()
    torch.testing.assert_close(divided[Hessian].matrix, anew[Hessian].matrix)
    torch.testing.assert_close(divided[Drift].matrix, anew[Drift].matrix)
    torch.testing.assert_close(divided[Drift].gap, anew[Drift].gap)
    torch.testing.assert_close(divided[MeanAbs].mean, anew[MeanAbs].mean)


def test_of_parts_of_rows_tokens_count_by_their_weights() -> None:
    """Directly summed; a scale of the inputs divides these, too."""
    kinds: frozenset[type[Statistic]] = frozenset({Hessian, Drift})
    weights = torch.rand(40, 2, generator=torch.Generator().manual_seed(3))
    stats = LinearStats(frozenset({Hessian}), 6, CPU, Guide(kinds, {"a": weights[None]}))
    x, teacher, gap = data(), data(1), data(2)[:, :5]
    for start, stop in ((0, 15), (15, 15), (15, 40)):
        here = slice(start, stop)
        stats.add(x[here], teacher[here], gap[here], {"a": weights[here]})
    stats.finish()
    stats.divide(scale := torch.linspace(0.5, 3, 6))
    x, teacher = x / scale, teacher / scale
    torch.testing.assert_close(stats[Hessian].matrix, x.T @ x)
    for part, counts, own in zip(stats.parts["a"], weights.T, (gap[:, :3], gap[:, 3:])):
        torch.testing.assert_close(part[Hessian].matrix, torch.einsum("t,ti,tj->ij", counts, x, x))
        torch.testing.assert_close(part[Drift].matrix, torch.einsum("t,ti,tj->ij", counts, teacher - x, x))
        torch.testing.assert_close(part[Drift].gap, torch.einsum("t,ti,tj->ij", counts, own, x))
        assert part.tokens == 40


def test_only_what_was_asked_for_is_there() -> None:
    stats = gathered([40], frozenset({Hessian}))
    assert Hessian in stats and MeanAbs not in stats
    assert not LinearStats(frozenset(), 6, CPU).gathered
