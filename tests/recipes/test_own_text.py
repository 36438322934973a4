"""Text of the model's own wherever a model is calibrated or trained, alone and in blends: written once for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.passes.core import sample
from compress.passes.core.journal import Journal
from compress.passes.core.sample import Sampled
from compress.passes.train.commit import Trained
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run
from compress.recipes.workshop import WORK

TEXT: dict[str, Any] = {"samples": 8, "seq_len": 16}
FAST: dict[str, Any] = {"steps": 2, "batch": 2, "held_out": 2}
RTN = {"rtn": {"bits": 4, "group_size": 32}}
PASSES: dict[str, list[Any]] = {
    "calibrate": [("calibrate", {}), {"gptq": {"group_size": 32}}],
    "distill": [RTN, ("distill", FAST)],
    "distill: layer": [RTN, ("distill", {**FAST, "scope": "layer"})],
    "qat": [("qat", {**FAST, "group_size": 32})],
    "finetune": [("finetune", FAST)],
    "one after the other": [("calibrate", {}), {"gptq": {"group_size": 32}}, ("distill", {**FAST, "train": "scales"})],
}


@pytest.fixture
def recipe(tiny_llama: Path, corpus: Path, held_out: Path) -> Callable[[str, str], Recipe]:
    """recipe(passes, data) → with `text`, the corpus; `self`; or `both`, a blend of theirs."""
    given = {"text": str(corpus), "self": "self", "both": [{"path": str(corpus)}, {"path": "self", "weight": 3}]}

    def make(passes: str, data: str) -> Recipe:
        steps = [
            {step[0]: {"data": given[data], **TEXT, **step[1]}} if isinstance(step, tuple) else step
            for step in PASSES[passes]
        ]
        return from_data(
            {"model": str(tiny_llama), "passes": [*steps, {"export": {"dialect": "dense", "requantize": True}}]}
        )

    return make


@pytest.mark.parametrize("passes", PASSES)
def test_a_pass_goes_by_what_the_model_writes(
    passes: str, recipe: Callable[[str, str], Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for data, count in (("self", 8), ("both", 6)):
        report = run(recipe(passes, data), tmp_path / data)
        journal = Journal(tmp_path / data / WORK / "journal.jsonl")
        assert [(record.start, record.stop) for record in journal.of(Sampled)] == [(0, count)]
        weights = (Path(report.artifacts[0].path) / "model.safetensors").read_bytes()
        found[data] = [record.losses for record in journal.of(Trained)] or weights
    assert found["self"] != found["both"]
    monkeypatch.setattr("compress.passes.core.generation.continued", lambda *_: pytest.fail("written again"))
    assert run(recipe(passes, "text"), tmp_path / "text").artifacts


@pytest.mark.parametrize("passes", PASSES)
def test_the_plan_says_what_writing_takes(
    passes: str, recipe: Callable[[str, str], Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_CALLS", 10**9)
    found = [plan(recipe(passes, data)).seconds for data in ("text", "both")]
    assert found[1] > 100 * found[0]
