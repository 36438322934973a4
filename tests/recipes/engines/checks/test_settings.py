"""What an artifact says of itself as a whole."""

from __future__ import annotations

from collections.abc import Callable

from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.settings import (
    any_model,
    architectures,
    either,
    never,
    one_setting,
    option,
    other_architectures,
)
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
INT4 = IntFormat(4, 32)


def test_always_and_never(subject: Make) -> None:
    assert (never("gone")(subject(INT4)), any_model()(subject(INT4))) == ("gone", None)


def test_one_number_format_for_all(subject: Make) -> None:
    told = one_setting(subject(INT4, down_proj=IntFormat(8, 32)))
    assert told == "weights are in int4 g32 sym, int8 g32 sym, and one is known for all; use one"
    assert one_setting(subject(INT4, down_proj=None)) is None


def test_an_option_that_is_not_there_has_its_default(subject: Make) -> None:
    check = option("checkpoint_format", "gptq", default="gptq")
    assert check(subject(INT4)) is None
    assert check(subject(INT4, options={"checkpoint_format": "gptq_v2"})) == (
        "checkpoint_format is 'gptq_v2'; use gptq"
    )


def test_architectures_by_what_is_known_and_by_what_is_not(subject: Make) -> None:
    neox = subject(INT4, config={"model_type": "gpt_neox"})
    assert architectures("llama")(subject(INT4)) is None and "gpt_neox" in str(architectures("llama")(neox))
    check = other_architectures("gpt_neox", why="looks for scales")
    assert check(subject(INT4)) is None and check(neox) == "looks for scales for gpt_neox; choose another dialect"


def test_either_of_two_is_enough(subject: Make) -> None:
    assert either(never("first"), any_model())(subject(INT4)) is None
    assert either(never("first"), never("second"))(subject(INT4)) == "first"
