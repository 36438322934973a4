"""A plan is plain data: what `compress plan --json` prints can be read again."""

from __future__ import annotations

from pathlib import Path

from compress.recipes.figures.planned import Plan
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data


def test_what_is_printed_can_be_read_again(tiny_llama: Path) -> None:
    steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"evaluate": {"seq_len": 32}}, {"export": {"dialect": "gptq"}}]
    gates = {"max_kl": 1, "repair": True}
    planned = plan(from_data({"model": str(tiny_llama), "passes": steps, "gates": gates}))
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
    assert planned.repair and planned.repair.passes == ["rtn", "evaluate"]
