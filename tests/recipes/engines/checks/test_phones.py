"""Types that phones are fast at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compress.formats.base import TensorSpec
from compress.kernels.numbers.half_tables import HalfTableFormat
from compress.kernels.numbers.int import IntFormat
from compress.recipes.engines.checks.phones import phone_types
from compress.recipes.engines.subject import Subject

Make = Callable[..., Subject]
Q4_0, Q5_0, Q8_0 = (IntFormat(bits, 32) for bits in (4, 5, 8))


def test_types_that_arm_multiplies_fast(subject: Make) -> None:
    assert phone_types(subject(Q4_0, lm_head=Q8_0)) is None
    assert phone_types(subject(HalfTableFormat("iq4_nl"), lm_head=Q8_0)) is None
    (told,) = [phone_types(subject(Q4_0, lm_head=Q8_0, up_proj=Q5_0))]
    assert told and told.startswith("model.layers.0.mlp.up_proj.weight is in q5_0, and phones are fast at q4_0")


def test_what_stays_dense_is_little(subject: Make) -> None:
    told = phone_types(subject(Q4_0))
    assert told and told.startswith("lm_head.weight is not quantized")
    small = subject(Q4_0, lm_head=Q8_0)
    tensors = {**small.model.tensors, "model.layers.0.router.weight": TensorSpec((4, 64), "float32")}
    assert phone_types(Subject("gguf", replace(small.model, tensors=tensors))) is None


def test_what_the_container_rounds_counts(subject: Make) -> None:
    rounded = {"lm_head.weight": Q8_0}
    assert phone_types(replace(subject(Q4_0), rounded=rounded)) is None
    assert "q5_0" in str(phone_types(replace(subject(Q4_0), rounded={"lm_head.weight": Q5_0})))
