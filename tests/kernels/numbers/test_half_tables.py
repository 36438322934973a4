"""Tables under a float16: values by hand, against trying scales, refusals."""

import pytest
import torch

from compress.kernels.numbers.half_tables import HalfTableFormat

KINDS = ("iq4_nl", "tq1_0", "tq2_0")
BLOCK = {"iq4_nl": 32, "tq1_0": 256, "tq2_0": 256}
TABLE = {
    "iq4_nl": [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
    "tq1_0": [-1, 0, 1],
    "tq2_0": [-1, 0, 1],
}
each = pytest.mark.parametrize("kind", KINDS)


def weights():
    return torch.randn(4, 512, generator=torch.Generator().manual_seed(0)) * 0.05


@each
def test_scales_are_near_the_best_that_a_fine_search_finds(kind):
    weight, block = weights(), BLOCK[kind]
    values = HalfTableFormat(kind).search(weight).dequantize()
    found = (values - weight).square().view(-1, block).sum(1)
    groups = weight.view(-1, block)
    best = torch.full_like(found, torch.inf)
    for part in torch.linspace(-1.2, 1.2, 601):
        scale = groups.abs().amax(1, keepdim=True) / max(map(abs, TABLE[kind])) * part
        grid = scale.unsqueeze(-1) * torch.tensor(TABLE[kind])
        best = torch.minimum(best, (groups.unsqueeze(-1) - grid).abs().amin(-1).square().sum(1))
    assert float((found / best).mean()) < 1.02


@each
def test_values_by_hand(kind):
    quantized = HalfTableFormat(kind).search(weights())
    table = torch.tensor(TABLE[kind], dtype=torch.float32)
    scale = quantized.params["scale"].float().repeat_interleave(BLOCK[kind], 1)
    assert torch.equal(quantized.dequantize(), table[quantized.codes.long()] * scale)


@each
def test_sizes_and_refusals(kind):
    number_format = HalfTableFormat(kind)
    assert number_format.bits_per_weight((4, 512)) == {"iq4_nl": 4.5, "tq1_0": 1.6875, "tq2_0": 2.0625}[kind]
    assert f"blocks of {BLOCK[kind]}" in number_format.misfit((4, 48))
    with pytest.raises(ValueError, match="too large"):
        number_format.fit(torch.full((1, 256), 1e12))
    with pytest.raises(ValueError, match="not 'q4_k'"):
        HalfTableFormat("q4_k")
    assert number_format.search(weights()).times_rows(torch.full((4,), 1e12)) is None


def test_zero_is_a_code_of_ternary_blocks_alone():
    assert [HalfTableFormat(kind).holds_zero for kind in KINDS] == [False, True, True]
