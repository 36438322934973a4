"""Products of bfloat16 are chosen once for a run: where they are of use, and as it was first begun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from compress.passes.core.journal import Begun, Committed, Journal
from compress.passes.core.stage import Stage
from compress.passes.sweep.units import Unit
from compress.recipes import workshop
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run
from compress.recipes.workshop import HALF, WHOLE, products_of

Measured = Callable[[bool], list[None]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """measured(answer): from now on that is measured; an entry for each time."""

    def answer(pays: bool) -> list[None]:
        asked = list[None]()
        monkeypatch.setattr(workshop, "has_half", lambda: True)
        monkeypatch.setattr(workshop, "half_pays", lambda: (asked.append(None), pays)[1])
        return asked

    return answer


@pytest.fixture
def recipe(make_model: Callable[..., Path], tmp_path: Path) -> Recipe:
    """Wide enough for products of bfloat16 to be taken."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1,
    )  # fmt: skip
    source = make_model(tmp_path / "model", "llama", config=config)
    calibrate = {"calibrate": {"data": "builtin", "samples": 4, "seq_len": 32}}
    return from_data({
        "model": str(source), "passes": [calibrate, {"gptq": {"group_size": 32}}, {"export": {"dialect": "gptq"}}],
    })  # fmt: skip


def machines(output: Path) -> list[object]:
    journal = Journal(output / ".compress" / "journal.jsonl")
    return [unit.machine["products"] for unit in journal.of(Unit)]


def test_a_run_goes_on_with_the_products_that_it_began_with(
    recipe: Recipe, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append

    def killed(journal: Journal, record: Committed) -> None:
        if isinstance(record, Unit) and journal.of(Unit):
            raise KeyboardInterrupt
        append(journal, record)

    measured(True)
    run(recipe, tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "append", killed)
        run(recipe, tmp_path / "out")
    assert machines(tmp_path / "out") == [HALF]
    asked = measured(False)
    run(recipe, tmp_path / "out")
    assert machines(tmp_path / "out") == [HALF, HALF] and not asked
    whole, out = (tmp_path / name / "gptq" / "model.safetensors" for name in ("undisturbed", "out"))
    assert whole.read_bytes() == out.read_bytes()


def test_where_nothing_is_calibrated_nothing_is_measured(
    tiny_llama: Path, recipe: Recipe, measured: Measured, tmp_path: Path
) -> None:
    asked = measured(True)
    plain, export = [{"rtn": {"group_size": 32, "search": "weights"}}], {"export": {"dialect": "gptq"}}
    run(from_data({"model": str(tiny_llama), "passes": [*plain, export]}), tmp_path / "plain")
    assert not asked
    run(recipe, tmp_path / "out")
    run(recipe, tmp_path / "out")  # all is done
    assert len(asked) == 1


def test_what_another_recipe_began_with_says_nothing(measured: Measured, recipe: Recipe, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    stage = Stage(recipe.passes[1:2], {"own": 1}, tmp_path)
    cpu = torch.device("cpu")
    measured(False)
    journal.append(Begun(stage="another", title="gptq", depends={}, products=HALF))
    journal.append(Begun(stage=stage.key, title="gptq", depends={}))  # which asked for none
    assert products_of(journal, [stage], cpu) == WHOLE
    journal.append(Begun(stage=stage.key, title="gptq", depends={}, products=HALF))
    assert products_of(journal, [stage], cpu) == HALF
    assert products_of(journal, [stage], torch.device("cuda")) == WHOLE
