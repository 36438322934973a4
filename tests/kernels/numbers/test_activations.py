"""Rounding of activations, by the formulas that engines use, element by element."""

import pytest
import torch

from compress.kernels.numbers.activations import ActivationFormat, round_input


def inputs(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3


def rounded(x, scale, grid):
    if grid == "int8":
        return torch.tensor([max(-128, min(127, round(v / scale))) * scale for v in x.double().tolist()])
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("grid, largest", [("int8", 127), ("fp8", 448)])
@pytest.mark.parametrize("per", ["token", "group", "tensor"])
def test_dynamic_scales_come_from_the_values_at_hand(grid, largest, per):
    x = inputs(2, 5, 300)
    x[1, 2] = 0
    found = round_input(x, ActivationFormat(grid, True, per))
    for batch in range(2):
        for token in range(5):
            row = x[batch, token]
            cuts = [slice(0, 128), slice(128, 256), slice(256, 300)] if per == "group" else [slice(None)]
            for cut in cuts:
                peak = x.abs().max() if per == "tensor" else row[cut].abs().max()
                expected = rounded(row[cut], float(peak) / largest, grid) if peak else row[cut]
                torch.testing.assert_close(found[batch, token, cut], expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", ["int8", "fp8"])
def test_a_static_scale_saturates(grid):
    x, scale = inputs(64), torch.tensor([0.005])
    torch.testing.assert_close(
        round_input(x, ActivationFormat(grid, False, "tensor"), scale), rounded(x, 0.005, grid).float()
    )
    assert float(x.abs().max()) > 448 * 0.005


@pytest.mark.parametrize("grid", ["int8", "fp8"])
def test_what_was_rounded_stays(grid):
    x = inputs(4, 64).bfloat16()
    number_format = ActivationFormat(grid, False, "tensor")
    once = round_input(x, number_format, torch.tensor([0.03125]))
    assert once.dtype == torch.bfloat16
    assert torch.equal(round_input(once, number_format, torch.tensor([0.03125])), once)


def test_a_static_scale_is_for_the_whole_tensor():
    with pytest.raises(ValueError, match="whole tensor"):
        ActivationFormat("int8", False, "token")
