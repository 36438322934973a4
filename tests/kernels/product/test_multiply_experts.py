"""The product with the weights of experts: each input with its own expert's, as one operator of torch's compiler."""

from __future__ import annotations

import pytest
import torch
from coded_experts import coded_experts

from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.product.multiply_experts import experts_product
from compress.kernels.product.stack import Stack

OPERATOR = torch.ops.compress.multiply_experts.default


def test_each_input_goes_to_its_own_expert():
    weights, stack = coded_experts(IntFormat(4, 32), 4, 48, 96)
    counts, x = [2, 0, 5, 1], torch.randn(9, 96)
    found = experts_product(x, stack, torch.tensor(counts).cumsum(0).int())
    whose = torch.arange(4).repeat_interleave(torch.tensor(counts))
    expected = torch.einsum("nc,nrc->nr", x[:8], weights[whose])
    torch.testing.assert_close(found[:8], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("compiling")
def test_it_is_one_operator_of_a_compiled_graph_for_any_number_of_inputs():
    seen: list[object] = []

    def keep(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    _, stack = coded_experts(IntFormat(5, 32, "integer"), 3, 48, 96)  # two planes and minima
    compiled = torch.compile(lambda x, ends: experts_product(x, stack, ends).relu(), fullgraph=True, dynamic=True,
                             backend=keep)  # fmt: skip
    for ends in ([1, 1, 5], [0, 40, 70]):
        x, until = torch.randn(ends[-1], 96), torch.tensor(ends).int()
        assert torch.equal(compiled(x, until), experts_product(x, stack, until).relu())
    assert seen.count(OPERATOR) == 1


@pytest.mark.usefixtures("compiling")
def test_the_operator_says_of_its_result_what_it_is():
    stacks: list[Stack] = [
        coded_experts(each, 3, 48, 96)[1] for each in (CodebookFormat("nf4", 32), IntFormat(3, 32, "real"))
    ]
    for stack in stacks:
        words = stack.words
        parts = (
            words.low,
            words.high,
            words.table,
            words.scale,
            words.minimum,
            [3, *words.shape],
            words.group,
            words.center,
        )
        given = (torch.randn(3, 96).half(), torch.tensor([1, 1, 3]).int(), *parts)
        torch.library.opcheck(OPERATOR, given, test_utils=["test_schema", "test_faketensor"])
