"""The product with codes as torch's compiler and exporter see it: one operator, whatever the number of inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.coded_linear import CodedLinear
from compress.kernels.product.multiply_codes import FEW, MANY, multiply_codes
from compress.kernels.product.words import Words, words_of
from compress.kernels.qtensor import NumberFormat

pytestmark = pytest.mark.usefixtures("compiling")
OPERATOR = torch.ops.compress.multiply_codes.default


def words(number_format: NumberFormat) -> Words:
    made = words_of(number_format.search(torch.randn(48, 96, generator=torch.Generator().manual_seed(0))))
    assert made is not None
    return made


class Product(nn.Module):
    """A layer of words, which lie where its inputs do."""

    def __init__(self, weight: Words) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return multiply_codes(x, self.weight).relu()


def test_it_is_one_operator_of_a_compiled_graph_for_any_number_of_inputs():
    seen: list[object] = []

    def keep(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    layer = Product(words(IntFormat(5, 32, "integer")))  # two planes and minima
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=keep)
    for count in (2, FEW + 1, MANY + 1):
        x = torch.randn(count, 96)
        assert torch.equal(compiled(x), layer(x))
    assert seen.count(OPERATOR) == 1


def test_the_operator_says_of_its_result_what_it_is():
    for made in (words(CodebookFormat("nf4", 32)), words(IntFormat(3, 32, "real"))):
        parts = (made.low, made.high, made.table, made.scale, made.minimum, [*made.shape], made.group, made.center)
        torch.library.opcheck(
            OPERATOR, (torch.randn(3, 96).half(), *parts), test_utils=["test_schema", "test_faketensor"]
        )


def test_it_can_be_exported():
    layer, x = Product(words(IntFormat(4, 32))), torch.randn(3, 96)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.equal(exported(x), layer(x))


def test_a_coded_linear_on_a_cpu_compiles_in_one_piece():
    weight = IntFormat(4, 32).search(torch.randn(256, 256))
    layer = CodedLinear(weight, nn.Parameter(torch.randn(256), requires_grad=False))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for count in (1, 9):
        x = torch.randn(1, count, 256)
        assert torch.equal(compiled(x), layer(x))
