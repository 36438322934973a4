"""What a walk takes, counted by hand on a model that is small enough for it."""

from __future__ import annotations

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.effort import Effort
from compress.passes.forward.cost import (
    RUNTIME,
    Flow,
    back_cost,
    flow_of,
    held_bytes,
    reached,
    score_bytes,
    score_effort,
    walk_cost,
)
from compress.passes.model.anatomy import Anatomy, LayerAnatomy

# Two layers, each: q and k [8, 8] share an input, down [8, 24] has another; an embedding of 100 rows.
LAYERS = tuple(LayerAnatomy(name, ((f"{name}.q", f"{name}.k"), (f"{name}.down",)), {}) for name in ("a", "b"))
ANATOMY = Anatomy(LAYERS, "embedding.weight", "embedding.weight", True, lambda: (None, None))
SHAPES = {"embedding": (100, 8)} | {
    f"{layer}.{name}": (8, width) for layer in "ab" for name, width in (("q", 8), ("k", 8), ("down", 24))
}
MODEL = ModelSpec({}, {f"{name}.weight": TensorSpec(shape, "float32") for name, shape in SHAPES.items()})
PLENTY = 1 << 40
TOKENS = 3 * 5
FORWARD = 2 * TOKENS * 2 * (8 * 8 + 8 * 8 + 8 * 24) + 2 * 4 * TOKENS * 5 * 8


def test_a_forward_is_two_operations_for_each_weight_and_token_and_attention() -> None:
    cost = walk_cost(MODEL, ANATOMY, (3, 5), PLENTY)
    assert (cost.effort.flops, cost.forwards) == (FORWARD, 1)
    longer = walk_cost(MODEL, ANATOMY, (1, 15), PLENTY).effort
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
    assert walk_cost(model, anatomy, (3, 5), PLENTY).effort.flops == 2 * TOKENS * (64 + 64) + 4 * TOKENS * 5 * 8


def test_two_models_or_two_forwards_take_twice_as_long() -> None:
    once = walk_cost(MODEL, ANATOMY, (3, 5), PLENTY).effort
    assert walk_cost(MODEL, ANATOMY, (3, 5), PLENTY, streams=2, statistics=True).effort == once * 2
    assert walk_cost(MODEL, ANATOMY, (3, 5), 1, statistics=True).effort == once * 2


def test_what_one_model_multiplies_to_gather_statistics_may_be_rounded() -> None:
    """Of its linears, where inputs are 256 wide or more; attention is left alone."""
    wide = {f"{layer}.down.weight": TensorSpec((8, 256), "float32") for layer in "ab"}
    model = ModelSpec({}, {**MODEL.tensors, **wide})
    plain = walk_cost(model, ANATOMY, (3, 5), PLENTY).effort
    gathered, beside = (
        walk_cost(model, ANATOMY, (3, 5), PLENTY, streams=streams, statistics=True).effort for streams in (1, 2)
    )
    assert gathered.rounded == 2 * TOKENS * 2 * 8 * 256 and plain.rounded == beside.rounded == 0
    assert gathered.flops + gathered.rounded == plain.flops and gathered.elements == plain.elements


def test_scores_take_a_product_with_the_whole_vocabulary() -> None:
    effort = score_effort(MODEL, ANATOMY, (3, 5), 1)
    assert effort.flops == 2 * TOKENS * 100 * 8 and effort.elements > TOKENS * 100
    assert score_effort(MODEL, ANATOMY, (3, 5), 2) == effort * 2


def test_two_models_are_compared_with_both_heads_and_a_few_tokens_logits() -> None:
    both, one = (score_bytes(MODEL, ANATOMY, models) for models in (2, 1))
    assert both - one == 4 * 100 * 8 and one > RUNTIME + 4 * 100 * (8 + 256)


def test_what_is_held_is_the_residual_the_norms_output_and_the_widest_input() -> None:
    assert held_bytes(MODEL, ANATOMY, (3, 5), 1) == TOKENS * 4 * (8 + 8 + 24)
    assert held_bytes(MODEL, ANATOMY, (3, 5), 2) == 2 * TOKENS * 4 * (8 + 8 + 24)


LONG = (512, 256)


def walked(budget: int, statistics: bool = True, rounds: int = 1) -> tuple[int, int]:
    """Memory and forwards within a budget."""
    cost = walk_cost(MODEL, ANATOMY, LONG, budget, statistics=statistics, rounds=rounds)
    return cost.memory, cost.forwards


def test_what_does_not_fit_goes_in_smaller_batches_then_twice_then_refuses_to_shrink() -> None:
    budgets = range(RUNTIME, RUNTIME + (64 << 20), 1 << 16)
    ways = {budget: flow_of(MODEL, ANATOMY, LONG, 1, budget, statistics=True) for budget in budgets}
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
    assert flow_of(MODEL, ANATOMY, LONG, 1, PLENTY) == Flow()


def test_without_sequences_there_is_nothing_to_compute() -> None:
    cost = walk_cost(MODEL, ANATOMY, (0, 0), PLENTY)
    assert (cost.effort, cost.forwards) == (Effort(), 0)


def test_more_sequences_that_are_held_take_more_memory() -> None:
    few, many = (walk_cost(MODEL, ANATOMY, (count, 512), PLENTY, statistics=True).memory for count in (8, 4096))
    streamed = [walk_cost(MODEL, ANATOMY, (count, 512), PLENTY).memory for count in (8, 4096)]
    assert many > few and streamed[0] == streamed[1]


def test_to_the_end_loss_and_back_are_three_forwards_and_the_heads_two_products() -> None:
    cost = back_cost(MODEL, ANATOMY, (3, 5))
    assert cost.effort.flops == 3 * FORWARD + 2 * 2 * TOKENS * 100 * 8
    longer, shorter = (back_cost(MODEL, ANATOMY, (count, 512)).memory for count in (4096, 8))
    assert longer == shorter > cost.memory  # a batch at a time
