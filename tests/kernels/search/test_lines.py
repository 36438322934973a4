"""Lines through groups against thousands that are tried, and on lines that are there."""

import pytest
import torch

from compress.kernels.search.lines import real_lines
from compress.kernels.search.regions import Region

LOUD = torch.rand(1, 1, 8, 32, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-3


def found(w, h, levels):
    """Scale and minimum of every group, in units of the weights."""
    region = Region.of(w, h)
    lines = real_lines(region, levels)
    return lines.scale * region.unit, lines.minimum * region.unit


def error(w, h, levels, scale, minimum):
    scale, minimum = scale.unsqueeze(-1), minimum.unsqueeze(-1)
    codes = ((w - minimum) / scale).nan_to_num().round().clamp(0, levels - 1)
    return ((codes * scale + minimum - w).square() * h).sum(-1)


@pytest.mark.parametrize("levels", [4, 16])
@pytest.mark.parametrize("h", [torch.ones_like(LOUD), LOUD], ids=["even", "loud"])
def test_few_of_thousands_of_lines_are_better(levels, h):
    w = torch.randn(6, 1, 8, 32, generator=torch.Generator().manual_seed(1))
    scale, minimum = found(w, h, levels)
    mine, best = error(w, h, levels, scale, minimum), torch.full(scale.shape, torch.inf)
    low, span = w.amin(-1), w.amax(-1) - w.amin(-1)
    for part in torch.linspace(0.4, 1.1, 30):
        for lean in torch.linspace(-0.1, 1.1, 25):
            best = torch.minimum(best, error(w, h, levels, span * part / (levels - 1), low + span * (1 - part) * lean))
    assert float(mine.sum()) < 1.05 * float(best.sum())
    assert bool((minimum <= 0).all())


def test_no_line_begins_above_zero():
    w = torch.rand(2, 1, 8, 32, generator=torch.Generator().manual_seed(2)) + 0.5
    scale, minimum = found(w, LOUD, 16)
    assert bool((minimum <= 0).all() and (minimum > -0.4).all() and (scale > 0).all())
    assert bool((found(-w, LOUD, 16)[1] < -0.5).all())  # but as far below as there are weights


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_constants_are_held_exactly(value):
    w = torch.full((1, 1, 8, 32), value)
    scale, minimum = found(w, LOUD, 16)
    assert float(error(w, LOUD, 16, scale, minimum).sum()) < 1e-10


def test_lines_that_are_there_are_found_again():
    generator = torch.Generator().manual_seed(3)
    codes = torch.stack([torch.randperm(32, generator=generator) % 16 for _ in range(16)]).view(2, 1, 8, 32)
    scale, minimum = (torch.rand(2, 1, 8, generator=generator) + 0.1 for _ in range(2))
    w = codes * scale.unsqueeze(-1) - minimum.unsqueeze(-1)
    torch.testing.assert_close(found(w, LOUD, 16), (scale, -minimum), rtol=1e-4, atol=1e-5)
