"""Rows that are taken at once: no more than fit into a cache on a CPU, and how many there are changes no byte."""

from __future__ import annotations

import pytest
import torch

from compress.kernels import rows
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.k_affine import KAffineFormat
from compress.kernels.numbers.k_scaled import KScaledFormat
from compress.kernels.qtensor import NumberFormat
from compress.kernels.rows import rows_at_once

CPU = torch.device("cpu")
FORMATS = (HalfTableFormat("tq1_0"), HalfTableFormat("iq4_nl"), KAffineFormat("q4_k"), KScaledFormat("q6_k"))


def test_a_row_that_is_too_long_is_taken_alone() -> None:
    assert rows_at_once(1 << 10, CPU) == 1 << 8
    assert rows_at_once(1 << 10, CPU, 1 << 16) == 1 << 6
    assert rows_at_once(1 << 30, CPU) == 1
    assert rows_at_once(1 << 10, torch.device("cuda")) > rows_at_once(1 << 10, CPU)


@pytest.mark.parametrize("number_format", FORMATS, ids=lambda each: each.name)
def test_what_is_fitted_is_the_same_whatever_is_taken_at_once(
    number_format: NumberFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(7, 512, generator=torch.Generator().manual_seed(3))
    whole = number_format.fit(weight)
    monkeypatch.setattr(rows_at_once, "__defaults__", (1024,))
    apart = number_format.fit(weight)
    assert rows.rows_at_once(512, CPU) == 2
    for name, value in whole.items():
        assert torch.equal(value, apart[name]), name
