"""What scores and the way back from the end loss take, counted by hand."""

from __future__ import annotations

from counted_model import ANATOMY, FORWARD, MODEL, TOKENS

from compress.passes.forward.cost.base import RUNTIME
from compress.passes.forward.cost.logits import back_cost, score_bytes, score_effort


def test_scores_take_a_product_with_the_whole_vocabulary() -> None:
    effort = score_effort(MODEL, ANATOMY, (3, 5), 1)
    assert effort.flops == 2 * TOKENS * 100 * 8 and effort.elements > TOKENS * 100
    assert score_effort(MODEL, ANATOMY, (3, 5), 2) == effort * 2


def test_two_models_are_compared_with_both_heads_and_a_few_tokens_logits() -> None:
    both, one = (score_bytes(MODEL, ANATOMY, models) for models in (2, 1))
    assert both - one == 4 * 100 * 8 and one > RUNTIME + 4 * 100 * (8 + 256)


def test_to_the_end_loss_and_back_are_three_forwards_and_the_heads_two_products() -> None:
    cost = back_cost(MODEL, ANATOMY, (3, 5))
    assert cost.effort.flops == 3 * FORWARD + 2 * 2 * TOKENS * 100 * 8
    longer, shorter = (back_cost(MODEL, ANATOMY, (count, 512)).memory for count in (4096, 8))
    assert longer == shorter > cost.memory  # a batch at a time
