"""Super-blocks: what is found is judged by trying everything near it, and by grids that are known."""

from itertools import product

import pytest
import torch

from compress.kernels.search.multiples import Multiples
from compress.kernels.search.regions import Region, above, chosen, inverse, largest, nearest_unit, over_groups, steps
from compress.kernels.search.super_lines import fit_lines
from compress.kernels.search.super_multiples import fit_multiples

NEAREST = Multiples(lambda x: x.round().clamp(-4, 3), 4.0, 8)


def groups(rows=3, count=8, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(rows, 2, count, 1, generator=generator) + 0.2
    return torch.randn(rows, 2, count, size, generator=generator) * spread * 0.05


def importances(count=8, size=16):
    return torch.rand(1, 2, count, size, generator=torch.Generator().manual_seed(9)) + 0.05


def line_errors(w, h, levels, d, dmin, scale, minimum):
    """By hand, in float64: the nearest of all levels for every weight."""
    slope, depth = d.double().unsqueeze(-1) * scale, dmin.double().unsqueeze(-1) * minimum
    grid = slope.unsqueeze(-1) * torch.arange(levels) - depth.unsqueeze(-1)
    nearest = (w.double().unsqueeze(-1) - grid.unsqueeze(-2)).abs().amin(-1)
    return (nearest.square() * h).sum(-1)


@pytest.mark.parametrize(("levels", "most"), [(4, 15), (16, 63)])
def test_no_neighbour_of_what_lines_are_found_is_better(levels, most):
    w, h = groups(), importances()
    found = fit_lines(w, h, levels, most)
    assert found["d"].dtype == found["dmin"].dtype == torch.float16
    for name in ("scale", "minimum"):
        assert bool(((found[name] >= 0) & (found[name] <= most) & (found[name] == found[name].round())).all())
    best = line_errors(w, h, levels, **found)
    better = 0
    for up, down in product((-1, 0, 1), repeat=2):
        moved = {"scale": (found["scale"] + up).clamp(0, most), "minimum": (found["minimum"] + down).clamp(0, most)}
        better += int((line_errors(w, h, levels, **{**found, **moved}) < best * 0.999).sum())
    assert better <= 0.02 * 8 * best.numel()  # d and dmin moved once more after these were last tried


def test_lines_that_are_there_are_found():
    generator = torch.Generator().manual_seed(1)
    scale = torch.randint(20, 64, (2, 1, 8), generator=generator).float()
    minimum = torch.randint(20, 64, (2, 1, 8), generator=generator).float()
    scale[..., 3] = minimum[..., 5] = 63
    codes = torch.stack([torch.randperm(16, generator=generator) for _ in range(16)]).view(2, 1, 8, 16)
    w = 2.0**-10 * scale.unsqueeze(-1) * codes - 2.0**-8 * minimum.unsqueeze(-1)
    found = fit_lines(w, torch.ones(1, 1, 8, 16), 16, 63)
    assert line_errors(w, torch.ones(()), 16, **found).max() < 1e-12


@pytest.mark.parametrize("sign", [-1, 1])
def test_multiples_that_are_there_are_found(sign):
    generator = torch.Generator().manual_seed(2)
    scale = torch.randint(-32, 32, (2, 1, 16), generator=generator).float()
    scale[..., 0] = -32
    units = torch.cat([torch.arange(-4, 4), torch.arange(-4, 4)]).float()
    w = sign * 2.0**-9 * scale.unsqueeze(-1) * units
    found = fit_multiples(w, torch.ones(1, 1, 16, 16), NEAREST, -32, 31)
    values = found["d"].float().unsqueeze(-1) * found["scale"]
    assert torch.equal(values, sign * 2.0**-9 * scale)


def test_importance_is_what_counts():
    w, h = groups(size=32), importances(size=32) ** 6
    plain, weighted = (fit_lines(w, given, 4, 15) for given in (torch.ones_like(h), h))
    errors = [float(line_errors(w, h, 4, **found).sum()) for found in (plain, weighted)]
    assert errors[1] < 0.8 * errors[0]


def test_regions_round_as_they_store():
    region = Region.of(groups() * 1e-4, importances())
    real = torch.rand(3, 2, 1)
    torch.testing.assert_close(region.held(real) * region.unit, region.stored(real).float().unsqueeze(-1))
    assert float(region.groups.abs().amax()) == 1
    assert Region.of(torch.zeros(1, 1, 8, 16), importances()[:, :1]).unit.item() == 1


def test_what_is_worked_on_lies_group_by_group_and_nothing_has_no_importance():
    importance = importances()
    importance[..., 3] = 0
    region = Region.of(groups(), importance)
    assert region.groups.shape == region.importance.shape == (16, 3, 2, 8) and region.groups.is_contiguous()
    torch.testing.assert_close(region.groups.movedim(0, -1) * region.unit.unsqueeze(-1), groups())
    assert bool((region.importance > 0).all())
    assert inverse(torch.tensor([4.0, 0.0])).tolist() == [0.25, 0]
    better = above(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 1.0, 2.0]))
    assert chosen(better, torch.tensor([5.0, 6, 7]), torch.tensor([0.1, 0.2, 0.3])).tolist() == [
        *torch.tensor([0.1]).tolist(),
        6,
        *torch.tensor([0.3]).tolist(),
    ]


def test_an_importance_that_is_one_for_all_is_none():
    even, uneven = (Region.of(groups(), h) for h in (torch.full((1, 2, 8, 16), 3.0), importances()))
    assert even.importance is None
    torch.testing.assert_close(even.summed(even.groups.square()), (even.groups * even.weighted).sum(0))
    assert even.total.unique().item() == 16
    torch.testing.assert_close(uneven.summed(torch.ones_like(uneven.groups)), uneven.total)


def test_of_equals_the_first_is_largest():
    values = torch.tensor([[1.0, 5.0, -2.0], [3.0, 5.0, -2.0], [2.0, 0.0, -1.0]])
    assert largest(values).tolist() == [[1, 0, 2]]
    assert largest(torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])).tolist() == [[1, 0]]


def test_a_unit_is_chosen_by_what_counts():
    real, units = torch.tensor([[[1.0, 2.0, 2.5]]]), torch.tensor([1.0, 0.5, 2.0]).view(-1, 1, 1, 1)
    assert nearest_unit(real, torch.ones(1, 1, 3), units, 0, 15).item() == 0.5
    assert nearest_unit(real, torch.tensor([[[1.0, 1.0, 0.0]]]), units, 0, 15).item() == 1.0


def test_whole_numbers_of_nothing_are_nothing():
    assert steps(torch.tensor([[[1.0, -1.0, 0.0]]]), torch.zeros(1, 1, 1), 0, 63).tolist() == [[[0, 0, 0]]]
    assert over_groups(torch.ones(1, 1, 3), torch.tensor([1.0, 2.0, 4.0])).item() == 7
