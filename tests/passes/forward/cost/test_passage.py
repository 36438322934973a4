"""What a walk takes, counted by hand on a model that is small enough for it."""

from __future__ import annotations

from counted_model import ANATOMY, FORWARD, MODEL, TOKENS

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.effort import Effort
from compress.passes.forward.cost.base import RUNTIME
from compress.passes.forward.cost.flow import Flow
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.cost.shapes import reached
from compress.passes.model.anatomy import Anatomy, LayerAnatomy

PLENTY = 1 << 40


def test_a_forward_is_two_operations_for_each_weight_and_token_and_attention() -> None:
    cost = Passage(MODEL, ANATOMY, (3, 5)).cost(PLENTY)
    assert (cost.effort.flops, cost.forwards) == (FORWARD, 1)
    longer = Passage(MODEL, ANATOMY, (1, 15)).cost(PLENTY).effort
    assert longer.flops - cost.effort.flops == 2 * 4 * TOKENS * (15 - 5) * 8
    assert longer.elements == cost.effort.elements > 0


def test_a_token_goes_through_some_of_the_experts() -> None:
    names = [f"a.experts.{number}.up" for number in range(4)]
    tensors = {"embedding.weight": TensorSpec((100, 8), "float32"), "a.q.weight": TensorSpec((8, 8), "float32")}
    model = ModelSpec(
        {"num_experts": 4, "num_experts_per_tok": 1},
        {**tensors, **{f"{name}.weight": TensorSpec((8, 8), "float32") for name in names}},
    )
    layer = LayerAnatomy("a", (("a.q",), *((name,) for name in names)), {})
    anatomy = Anatomy((layer,), "embedding.weight", "embedding.weight", True, lambda: (None,))
    assert [reached(model, name) for name in ("a.q", names[0])] == [1, 0.25]
    assert Passage(model, anatomy, (3, 5)).cost(PLENTY).effort.flops == 2 * TOKENS * (64 + 64) + 4 * TOKENS * 5 * 8


def test_two_models_or_two_forwards_take_twice_as_long() -> None:
    once = Passage(MODEL, ANATOMY, (3, 5)).cost(PLENTY).effort
    assert Passage(MODEL, ANATOMY, (3, 5), streams=2, statistics=True).cost(PLENTY).effort == once * 2
    assert Passage(MODEL, ANATOMY, (3, 5), statistics=True).cost(1).effort == once * 2


def test_what_one_model_multiplies_to_gather_statistics_may_be_rounded() -> None:
    """Of its linears, where inputs are 256 wide or more; attention is left alone."""
    wide = {f"{layer}.down.weight": TensorSpec((8, 256), "float32") for layer in "ab"}
    model = ModelSpec({}, {**MODEL.tensors, **wide})
    plain = Passage(model, ANATOMY, (3, 5)).cost(PLENTY).effort
    gathered, beside = (
        Passage(model, ANATOMY, (3, 5), streams=streams, statistics=True).cost(PLENTY).effort for streams in (1, 2)
    )
    assert gathered.rounded == 2 * TOKENS * 2 * 8 * 256 and plain.rounded == beside.rounded == 0
    assert gathered.flops + gathered.rounded == plain.flops and gathered.elements == plain.elements


def test_what_is_held_is_the_residual_the_norms_output_and_the_widest_input() -> None:
    assert Passage(MODEL, ANATOMY, (3, 5)).held == TOKENS * 4 * (8 + 8 + 24)
    assert Passage(MODEL, ANATOMY, (3, 5), 2).held == 2 * TOKENS * 4 * (8 + 8 + 24)


LONG = (512, 256)


def walked(budget: int, statistics: bool = True, rounds: int = 1) -> tuple[int, int]:
    """Memory and forwards within a budget."""
    cost = Passage(MODEL, ANATOMY, LONG, statistics=statistics).cost(budget, rounds=rounds)
    return cost.memory, cost.forwards


def test_what_does_not_fit_goes_in_smaller_batches_then_twice_then_refuses_to_shrink() -> None:
    budgets = range(RUNTIME, RUNTIME + (64 << 20), 1 << 16)
    ways = {budget: Passage(MODEL, ANATOMY, LONG, statistics=True).flow(budget) for budget in budgets}
    assert list(dict.fromkeys(reversed(ways.values()))) == [
        Flow(tokens, hold) for hold in (True, False) for tokens in (4096, 1024, 256)
    ]
    least, _ = walked(0)
    for budget, flow in ways.items():
        memory, forwards = walked(budget)
        assert forwards == (1 if flow.hold else 2) and (memory <= budget or memory == least)
    assert walked(least) == (least, 2) and walked(least - 1) == (least, 2)
    assert walked(0, rounds=2)[1] == 3
    assert walked(0, statistics=False)[1] == 1  # nothing pauses
    assert Passage(MODEL, ANATOMY, LONG).flow(PLENTY) == Flow()


def test_without_sequences_there_is_nothing_to_compute() -> None:
    cost = Passage(MODEL, ANATOMY, (0, 0)).cost(PLENTY)
    assert (cost.effort, cost.forwards) == (Effort(), 0)


def test_more_sequences_that_are_held_take_more_memory() -> None:
    few, many = (Passage(MODEL, ANATOMY, (count, 512), statistics=True).cost(PLENTY).memory for count in (8, 4096))
    streamed = [Passage(MODEL, ANATOMY, (count, 512)).cost(PLENTY).memory for count in (8, 4096)]
    assert many > few and streamed[0] == streamed[1]
