"""Which passes share a sweep, and what the key of a stage depends on: not on what comes after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.kernels.numbers.int import IntFormat
from compress.passes.core.base import Pass
from compress.passes.core.stage import Stage
from compress.passes.gptq import GPTQ
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.recipes.recipe import from_data
from compress.recipes.stages import even, first_numbers, keyed, largest, layerwise, stages

CALIBRATE: dict[str, Any] = {"calibrate": {"data": "text.txt"}}
EXPORT: dict[str, Any] = {"export": {"dialect": "gptq"}}
TEXT = Sequences(torch.arange(12).view(3, 4))


def passes(*steps: Any) -> tuple[Pass, ...]:
    named = [step if isinstance(step, dict) else {step: {}} for step in steps]
    return from_data({"model": "here", "passes": named}).passes


def keys(*steps: Any, text: Sequences = TEXT, **base: Any) -> list[str]:
    """The key of each stage; `calibrate` has read `text`."""
    found = passes(*steps)
    read = {"calibrate": text, "evaluate": TEXT}
    texts = {number: read[step.name] for number, step in enumerate(found) if step.name in read}
    return [stage.key for stage in staged(found, texts, base)]


def staged(found: tuple[Pass, ...], texts: dict[int, Sequences], base: dict[str, Any]) -> list[Stage]:
    return keyed(found, base, texts, Path("work"))


def test_neighbouring_layer_wise_passes_share_a_sweep() -> None:
    grouped = stages(passes(CALIBRATE, "rtn", "gptq", EXPORT, "rtn", EXPORT))
    assert [[step.name for step in steps] for steps in grouped] == [
        ["calibrate"], ["rtn", "gptq"], ["export"], ["rtn"], ["export"],
    ]  # fmt: skip
    assert first_numbers(grouped) == [0, 1, 3, 4, 5]
    assert [len(layerwise(steps)) for steps in grouped] == [0, 2, 0, 1, 0]


def test_what_comes_after_a_stage_does_not_touch_it() -> None:
    first = keys(CALIBRATE, "gptq")
    assert keys(CALIBRATE, "gptq", EXPORT)[:2] == first
    assert keys(CALIBRATE, "gptq", "evaluate", EXPORT)[:2] == first


def test_what_only_looks_at_the_model_changes_nothing_for_the_stages_after_it() -> None:
    plain, looked = keys(CALIBRATE, "gptq", EXPORT), keys(CALIBRATE, "gptq", "evaluate", EXPORT)
    assert (*looked[:2], looked[3]) == tuple(plain)


def test_an_option_is_the_business_of_its_stage_and_of_those_after_it() -> None:
    four, three = (keys(CALIBRATE, {"gptq": {"bits": bits}}, "kv_cache", EXPORT) for bits in (4, 3))
    assert four[0] == three[0]
    assert not set(four[1:]) & set(three[1:])
    assert not set(keys(CALIBRATE, "gptq", EXPORT)) & set(keys(CALIBRATE, "gptq", EXPORT, seed=1))


def test_text_counts_where_it_is_used() -> None:
    other = Sequences(TEXT.ids + 1)
    for method, uses in (("gptq", True), ("rtn", False)):
        one, two = keys(CALIBRATE, method, EXPORT), keys(CALIBRATE, method, EXPORT, text=other)
        assert [a == b for a, b in zip(one, two)] == [False, not uses, not uses]


def test_text_counts_for_an_export_that_weighs_what_it_rounds() -> None:
    other = Sequences(TEXT.ids + 1)
    for kind, counts in (("q4_k_m", True), ("f16", False)):
        export = {"export": {"dialect": "gguf", "type": kind}}
        assert (keys(CALIBRATE, export)[1] != keys(CALIBRATE, export, text=other)[1]) == counts


def test_a_chooser_depends_on_the_passes_that_it_chooses_for() -> None:
    mixed = {"mixed": {"average_bits": 4.5}}
    plain, damped = (keys(CALIBRATE, mixed, {"gptq": {"damp": damp}}) for damp in (0.01, 0.1))
    assert plain[0] == damped[0] and plain[1] != damped[1]


def test_two_passes_of_one_name_are_told_apart() -> None:
    (first, second) = staged(passes("rtn", EXPORT, {"rtn": {"bits": 8}}), {}, {})[::2]
    assert first.depends["rtn.bits"] == 4
    assert second.depends["rtn 2.bits"] == 8 and second.depends["rtn.bits"] == 4


@pytest.fixture
def opened(tiny_llama: Path) -> tuple[ModelSpec, Anatomy]:
    source, skeleton = Skeleton.open(open_checkpoint(tiny_llama), torch.device("cpu"))
    return source.spec, skeleton.anatomy


def test_bits_that_will_be_chosen_are_filled_in_every_way(opened: tuple[ModelSpec, Anatomy]) -> None:
    steps = passes({"mixed": {"average_bits": 3.25, "bits": [2, 4]}}, {"gptq": {"group_size": 64}}, EXPORT)
    names = opened[1].linears
    ways = even(steps, *opened)
    assert [{bits(way, name) for name in names} for way in ways] == [{2}, {4}]
    for most in largest(steps, *opened):
        assert {bits(most, name) for name in names} == {2, 4}
        assert [step.name for step in most] == ["mixed", "gptq", "export"]


def test_without_a_chooser_there_is_one_way(opened: tuple[ModelSpec, Anatomy]) -> None:
    steps = passes(CALIBRATE, "gptq", EXPORT)
    assert largest(steps, *opened) == even(steps, *opened) == [steps]


def bits(way: tuple[Pass, ...], name: str) -> int:
    """What `gptq` would give that module."""
    (solver,) = (step for step in way if isinstance(step, GPTQ))
    found = solver.number_format(name)
    assert isinstance(found, IntFormat)
    return found.bits


@pytest.mark.parametrize("steps", [(CALIBRATE, "gptq"), ("rtn",)])
def test_a_key_does_not_depend_on_where_the_work_lies(steps: tuple[Any, ...]) -> None:
    found = passes(*steps)
    texts = {number: TEXT for number, step in enumerate(found) if step.name == "calibrate"}
    here, there = (keyed(found, {}, texts, Path(work)) for work in ("a", "b"))
    assert [stage.key for stage in here] == [stage.key for stage in there]
