"""Iterative magnitude pruning: shares that grow, masks that only shrink, what training between the steps gains."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import UsageError
from compress.passes.core.journal import Journal
from compress.passes.finetune import Finetune
from compress.passes.prune import Between, Prune, cubic
from compress.recipes.recipe import Recipe, build, from_data
from compress.recipes.run import run as run_recipe
from compress.recipes.yaml import parse

TRAIN: dict[str, Any] = {"samples": 24, "seq_len": 32, "batch": 8, "held_out": 4, "precision": "fp32", "lr": 3e-3}
FAST: dict[str, Any] = {"method": "wanda", "solve": False}
KilledAt = Callable[[int], AbstractContextManager[None]]


def zeros(model: Checkpoint) -> dict[str, Tensor]:
    """Where the linear layers of the decoder are 0."""
    names = [name for name in model.spec.tensors if name.endswith("_proj.weight")]
    return {name: value == 0 for name in names if isinstance(value := model.read(name), Tensor)}


def share(masks: dict[str, Tensor]) -> float:
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def test_shares_grow_by_the_cube_of_what_is_left_to_go() -> None:
    assert cubic(0.7, 4) == pytest.approx([0.4046875, 0.6125, 0.6890625, 0.7]) and cubic(0.7, 4)[-1] == 0.7


@pytest.mark.parametrize("rewind", [False, True])
def test_it_stands_for_steps_with_trainings_between(rewind: bool) -> None:
    between = Between(finetune=Finetune(data="x.txt"))
    step = Prune(sparsity=0.8, skip=("o_proj",), schedule="cubic", steps=3, between=between, rewind=rewind)
    found = [(place, each.name) for place, each in step.unfolded()]
    again = [(("rewind",), "rewind")] * rewind + [(("between", "finetune"), "finetune"), ((), "prune")]
    assert found == [((), "prune"), *again, *again]
    steps = [each for _, each in step.unfolded() if isinstance(each, Prune)]
    assert steps == [Prune(sparsity=sparsity, skip=("o_proj",)) for sparsity in cubic(0.8, 3)]


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path) -> Callable[..., Recipe]:
    """recipe(**options of prune) → a schedule with what it wants before and after it."""

    def make(training: str = "finetune", **options: Any) -> Recipe:
        between = {training: {"data": str(corpus), **TRAIN, "steps": 4, "measure_every": 2}}
        given = {"sparsity": 0.7, **FAST, "schedule": "cubic", "steps": 3, "between": between, **options}
        prune = {name: value for name, value in given.items() if value is not None}
        text = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
        passes = [text, {"prune": prune}, {"gptq": {"group_size": 32}}, {"export": {"dialect": "gptq"}}]
        return from_data({"model": str(tiny_llama), "passes": passes})

    return make


@pytest.mark.parametrize(
    ("training", "rewind", "moments"),
    [("finetune", False, (6, 7)), ("finetune", True, (9,)), ("distill", False, (20,))],
)
def test_a_run_that_is_cut_off_between_its_steps_goes_on_to_the_same_bytes(
    recipe: Callable[..., Recipe], tmp_path: Path, training: str, rewind: bool, moments: tuple[int, ...],
    killed_at: KilledAt,
) -> None:  # fmt: skip
    """At commits that are counted from where it was cut off before."""
    wanted = recipe(training, rewind=rewind)
    report = run_recipe(wanted, tmp_path / "whole")
    between = ["rewind", training] if rewind else [training]
    assert [step.name for step in report.passes][1:] == ["prune", *between, "prune", *between, "prune + gptq", "export"]
    begun = 0
    for at in moments:
        with killed_at(at):
            run_recipe(wanted, tmp_path / "cut")
        begun += at - 1
        assert len(Journal(next((tmp_path / "cut").rglob("journal*"))).records) >= begun
    run_recipe(wanted, tmp_path / "cut")
    whole, cut = ((tmp_path / name / "gptq" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_what_it_stands_for_is_a_recipe_too(recipe: Callable[..., Recipe]) -> None:
    """As manifests keep it."""
    wanted = recipe(rewind=True)
    assert build(parse(wanted.text(), "text")) == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": None}, "steps is of a schedule, and there is none"),
        ({"between": None}, "say how, between"),
        ({"between": {}}, "one training stands between two steps"),
        ({"between": {"finetune": {"data": "x"}, "distill": {"data": "x"}}}, "one training stands between two steps"),
        ({"correct": True}, "the untouched model, which training has left"),
        ({"pattern": "2:4", "sparsity": None}, "leave pattern out"),
        ({"steps": 1}, "greater than or equal to 2"),
    ],
)
def test_what_makes_no_schedule_is_refused(recipe: Callable[..., Recipe], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe(**options)


@pytest.mark.parametrize(
    ("options", "rewind"),
    [
        ({}, True),
        ({"method": "sparsegpt", "swap": True}, False),
        ({**FAST, "method": "magnitude"}, True),
        ({"method": "obd", "solve": False}, False),
        (FAST, False),
    ],
)
def test_after_each_step_as_many_are_zero_as_it_says_and_none_comes_back(
    recipe: Callable[..., Recipe], tmp_path: Path, options: dict[str, Any], rewind: bool
) -> None:
    """With an export after each of the passes that it stands for."""
    given = {"method": "alps", "solve": True, **options}
    unfolded = recipe(rewind=rewind, sparsity=0.75, **given).passes[:-2]
    passes = [{step.name: step.model_dump(mode="json", exclude_unset=True)} for step in unfolded]
    exports = [{"export": {"dialect": "dense", "path": f"after-{number}"}} for number in range(len(passes))]
    each = [step for pair in zip(passes, exports) for step in pair]
    model = recipe().model
    run_recipe(from_data({"model": model, "passes": each}), tmp_path / "out")
    wanted, before = iter(cubic(0.75, 3)), dict[str, Tensor]()
    for number, step in enumerate(unfolded):
        found = zeros(open_checkpoint(tmp_path / "out" / f"after-{number}"))
        assert all(bool(found[name][gone].all()) for name, gone in before.items())
        expected = next(wanted) if isinstance(step, Prune) else share(before) if before else 0
        assert share(found) == pytest.approx(expected, abs=0.01 if options == FAST else 1e-4)
        before = found
    assert share(before) == 0.75


def test_it_loses_less_than_one_step_and_as_much_training(
    tiny_llama: Path, corpus: Path, held_out: Path, tmp_path: Path
) -> None:
    """A model that has learned something, of which little stays."""

    def training(steps: int) -> dict[str, Any]:
        return {"finetune": {"data": str(corpus), **TRAIN, "steps": steps}}

    def lost(*steps: Any) -> float:
        text = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
        measured = {"evaluate": {"data": str(held_out), "samples": 8, "seq_len": 32}}
        passes = [training(150), text, *steps, measured]
        report = run_recipe(from_data({"model": str(tiny_llama), "passes": passes}), tmp_path / "out")
        assert report.metrics.perplexity is not None
        return math.log(report.metrics.perplexity)

    once = {"sparsity": 0.96, **FAST, "method": "magnitude"}
    schedule = {**once, "schedule": "cubic", "steps": 3, "between": training(15)}
    assert lost({"prune": schedule}, training(15)) < 0.95 * lost({"prune": once}, training(45))
    assert lost({"prune": schedule}) < 0.7 * lost({"prune": once})
