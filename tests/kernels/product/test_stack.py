"""Weights that go on top of each other, and beneath each other, come out as they went in; others do not go together."""

from __future__ import annotations

import pytest
import torch

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.stack import joined, stacked
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import NumberFormat


def words(number_format: NumberFormat, rows: int = 70, columns: int = 160, seed: int = 0) -> Words:
    generator = torch.Generator().manual_seed(seed)
    made = words_of(number_format.search(torch.randn(rows, columns, generator=generator)))
    assert made is not None
    return made


@pytest.mark.parametrize("number_format", [IntFormat(4, 32), IntFormat(3, 32, "integer"), CodebookFormat("nf4", 32)])
def test_a_stack_holds_each_of_its_weights(number_format):
    each = [words(number_format, seed=seed) for seed in range(3)]
    stack = stacked(each)
    assert stack is not None and stack.count == 3
    assert all(torch.equal(stack[number].values(), weight.values()) for number, weight in enumerate(each))


def test_joined_weights_have_the_rows_of_all():
    first, second = words(IntFormat(5, 32, "real"), 128), words(IntFormat(5, 32, "real"), 70, seed=1)
    whole = joined([first, second])
    assert whole is not None and whole.shape == (198, 160)
    assert torch.equal(whole.values(), torch.cat([first.values(), second.values()]))


def test_what_one_has_of_a_minimum_or_of_a_wider_scale_does_not_part_them():
    plain, wide = words(IntFormat(4, 32), 64), words(IntFormat(4, 32, "middle", "float32"), 64, seed=1)
    above = words(IntFormat(4, 32, "real"), 64, seed=2)
    assert (plain.scale.dtype, wide.scale.dtype, plain.minimum) == (torch.float16, torch.float32, None)
    together = [plain, wide, above]
    stack, whole = stacked(together), joined(together)
    assert stack is not None and whole is not None
    assert torch.equal(torch.cat([stack[number].values() for number in range(3)]), whole.values())
    assert torch.equal(whole.values(), torch.cat([weight.values() for weight in together]))


@pytest.mark.parametrize("other", [
    words(IntFormat(8, 32)), words(IntFormat(4, 160)), words(CodebookFormat("nf4", 32)),
    words(IntFormat(4, 32), 70, 320),
])  # fmt: skip
def test_what_codes_mean_differently_does_not_go_together(other):
    assert stacked([words(IntFormat(4, 32)), other]) is None and joined([words(IntFormat(4, 32), 64), other]) is None


def test_other_rows_and_rows_within_a_tile_do_not_go_together():
    one, other = words(IntFormat(4, 32), 70), words(IntFormat(4, 32), 64)
    assert stacked([one, other]) is None and joined([one, other]) is None and joined([other, one]) is not None
