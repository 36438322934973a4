"""Scales of multiples against every distinct rounding there is, and on tables that are there."""

import pytest
import torch

from compress.kernels.search.multiples import Multiples, real_multiples
from compress.kernels.search.regions import Region

GENERATOR = torch.Generator().manual_seed(0)
LOUD = torch.rand(1, 1, 8, 16, generator=GENERATOR) ** 4 + 1e-3


def whole(lowest, highest):
    return Multiples(lambda x: x.round().clamp_(lowest, highest), float(-lowest), highest - lowest + 1)


def error(w, h, lowest, highest, scale):
    """Σ h·(w − ŵ)² of groups, by hand; `scale` [...] of each."""
    scale = scale.double().unsqueeze(-1)
    return ((w - scale * (w / scale).round().clamp(lowest, highest)).square() * h).sum(-1)


def least_error(w, h, lowest, highest):
    """Of all roundings: codes change at |w| / (k − ½); between two such scales the best is fitted in closed form."""
    borders = torch.cat([w.abs() / (k - 0.5) for k in range(1, max(-lowest, highest) + 1)], -1).sort(-1)[0]
    between = torch.cat([borders[..., :1] / 2, (borders[..., 1:] + borders[..., :-1]) / 2, borders[..., -1:] * 2], -1)
    best = torch.full(w.shape[:-1], torch.inf, dtype=torch.float64)
    for scale in (*between.unbind(-1), *(-between).unbind(-1)):
        codes = (w / scale.unsqueeze(-1)).round().clamp(lowest, highest)
        fitted = (h * w * codes).sum(-1) / (h * codes * codes).sum(-1).clamp(min=1e-30)
        best = torch.minimum(best, ((w - fitted.unsqueeze(-1) * codes).square() * h).sum(-1))
    return best


@pytest.mark.parametrize(("lowest", "highest", "more"), [(-1, 1, 1.02), (-4, 3, 1.01), (-8, 7, 1.03), (-32, 31, 1.06)])
@pytest.mark.parametrize("h", [torch.ones_like(LOUD), LOUD], ids=["even", "loud"])
def test_what_is_found_is_next_to_the_best_of_all_roundings(lowest, highest, more, h):
    w = torch.randn(12, 1, 8, 16, generator=torch.Generator().manual_seed(1))
    region = Region.of(w, h)
    found = real_multiples(region, whole(lowest, highest)).scale * region.unit
    least = least_error(w.double(), h.double(), lowest, highest).sum()
    assert float(error(w.double(), h.double(), lowest, highest, found).sum()) < more * float(least)


@pytest.mark.parametrize("sign", [-1, 1])
def test_codes_that_are_there_are_found_again(sign):
    codes = torch.stack([torch.randperm(64, generator=GENERATOR)[:16] - 32 for _ in range(48)]).view(6, 1, 8, 16)
    codes[..., 0] = -32
    scale = sign * (torch.rand(6, 1, 8, generator=GENERATOR) + 0.5)
    region = Region.of(codes * scale.unsqueeze(-1), torch.ones_like(LOUD))
    torch.testing.assert_close(real_multiples(region, whole(-32, 31)).scale * region.unit, scale)


def test_groups_of_zeros_have_the_scale_zero():
    found = real_multiples(Region.of(torch.zeros(2, 1, 8, 16), LOUD), whole(-4, 3))
    assert not found.scale.any() and not found.gain.any()
