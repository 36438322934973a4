"""Products of bfloat16 are those of rounded inputs, summed in fp32; outside nothing is rounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress.kernels import half
from compress.kernels.effort import Effort
from compress.kernels.half import half_pays, half_products, halved, halved_effort
from compress.kernels.measure.hessian import add_hessian, fill_lower


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What is found of the machine is not kept from test to test."""
    half_pays.cache_clear()
    yield
    half_pays.cache_clear()


def needs_amx() -> None:
    if not torch.cpu.get_capabilities()["amx_bf16"] or torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AMX")


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().double()


def test_a_hessian_is_that_of_rounded_inputs() -> None:
    needs_amx()
    x, total = torch.randn(300, 320, generator=torch.Generator().manual_seed(1)), torch.zeros(320, 320)
    with half_products(320):
        add_hessian(total, x)
    fill_lower(total)
    exact = rounded(x).T @ rounded(x)
    torch.testing.assert_close(total.double(), exact, rtol=0, atol=2e-6 * float(exact.max()))
    assert (x.double().T @ x.double() - exact).abs().max() > 1e-5 * exact.max()  # the two can be told apart


@pytest.mark.parametrize("columns, halves", [(256, True), (255, False)])
def test_wide_linears_round_within_and_not_after(columns: int, halves: bool) -> None:
    needs_amx()
    linear, x = nn.Linear(columns, 300), torch.randn(64, columns)
    plain = functional.linear(x, linear.weight, linear.bias)
    with halved([linear]):
        found = linear(x)
        outside = functional.linear(x, linear.weight, linear.bias)
    assert linear.bias is not None
    exact = rounded(x) @ rounded(linear.weight).T + linear.bias.double()
    torch.testing.assert_close(found.double(), exact if halves else plain.double(), rtol=0, atol=1e-5)
    assert torch.equal(outside, plain) and torch.equal(linear(x), plain)
    assert torch.equal(found, plain) != halves


def test_an_error_ends_it_too() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    linear = nn.Linear(256, 2)
    with pytest.raises(ValueError, match="x"), half_products(), halved([linear]):
        raise ValueError("x")
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    assert "forward" not in vars(linear)


@pytest.mark.parametrize("capability, amx, gain, pays", [
    ("AVX512", True, 3.0, True),
    ("AVX512", True, 1.2, False),  # it has the units, and they do not pay
    ("AVX512", False, 3.0, False),
    ("DEFAULT", True, 3.0, False),  # it is told not to use them
])  # fmt: skip
def test_it_pays_where_the_processor_is_faster_so(
    monkeypatch: pytest.MonkeyPatch, capability: str, amx: bool, gain: float, pays: bool
) -> None:
    taken = iter([gain, 1.0])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    monkeypatch.setattr(half, "least_seconds", lambda work: next(taken))
    assert half_pays() is pays


def test_products_are_counted_as_they_go() -> None:
    assert halved_effort(Effort(flops=3, elements=2), 256) == Effort(rounded=3, elements=2)
    assert halved_effort(Effort(flops=3), 255) == Effort(flops=3)
