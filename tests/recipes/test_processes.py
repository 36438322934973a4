"""Several processes that share a run write the bytes of one, and one goes on where several were cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from together import PLACES, SEQUENCES, fail_together, run_short, sweep_together, together

from compress.kernels.share import Crew
from compress.passes.core.journal import Journal
from compress.passes.forward.cost import flow
from compress.passes.sweep.units import Unit
from compress.recipes.plan import plan
from compress.recipes.recipe import load
from compress.recipes.run import run

pytestmark = pytest.mark.timeout(900)  # nine processes start

TOKENS, LAYERS = 16, 2
EVALUATE = "evaluate: {data: builtin, samples: 5, seq_len: 16}"
BITS = "[{match: '*k_proj', value: 3}, {value: 4}]"
# Two streams, linears that are solved apart, what is measured; experts that not every batch reaches; inputs that are
# scaled; inputs that are rounded in a range; rows that are solved in parts, tokens weighted by the end loss.
RECIPES = {
    "tuned": ("llama", f"gptq: {{group_size: 32, correct: true, tune: true, bits: {BITS}}}", EVALUATE),
    "experts": ("qwen3_moe", "gptq: {group_size: 32, correct: true}"),
    "scaled": ("llama", "awq: {group_size: 32}"),
    "ranges": ("llama", "int8: {activations: static, range: mse, smooth: 0.5}"),
    "guided": ("llama", "gptq: {group_size: 32, end_loss: true, end_loss_parts: 2}"),
}
DIALECTS = {"ranges": "compressed-tensors"}


@pytest.fixture(scope="module")
def swept(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for each recipe with it, and what one, two and three processes made of it; batches are small."""
    folder = tmp_path_factory.mktemp("processes")
    recipes = [written(folder / name, name, make_model) for name in RECIPES]
    together(sweep_together, {recipe: recipe.parent / "2" for recipe in recipes}, TOKENS)
    together(sweep_together, {recipe: recipe.parent / "3" for recipe in recipes[:2]}, TOKENS, count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "_LEAST_TOKENS", TOKENS)
        for recipe in recipes:
            run(load(str(recipe)), recipe.parent / "1")
        yield folder


def written(folder: Path, name: str, make_model: Callable[..., Path]) -> Path:
    """The file of a recipe."""
    family, *passes = RECIPES[name]
    model = make_model(folder / "model", family, layers=LAYERS)
    export = f"export: {{dialect: {DIALECTS.get(name, 'gptq')}}}"
    steps = (f"calibrate: {{data: builtin, samples: {SEQUENCES}, seq_len: 16}}", *passes, export)
    (folder / "recipe.yaml").write_text(f"model: {model}\npasses:\n" + "".join(f"  - {each}\n" for each in steps))
    return folder / "recipe.yaml"


def weights(output: Path) -> bytes:
    (file,) = output.glob("*/model.safetensors")
    return file.read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_several_processes_write_the_bytes_of_one(name: str, swept: Path) -> None:
    several = [output for count in (2, 3) if (output := swept / name / f"{count}").exists()]
    assert several and all(weights(output) == weights(swept / name / "1") for output in several)


def test_several_processes_measure_what_one_measures(swept: Path) -> None:
    recipe = swept / "tuned" / "recipe.yaml"
    found = [run(load(str(recipe)), recipe.parent / count).metrics for count in "123"]
    assert found[0] is not None and found[0] == found[1] == found[2]


def test_one_that_fails_stops_the_others_and_one_alone_goes_on(swept: Path, tmp_path: Path) -> None:
    recipe = swept / "tuned" / "recipe.yaml"
    together(fail_together, recipe, tmp_path / "out", TOKENS)
    (first, stopped), (second, failed) = ((tmp_path / f"{index}").read_text().split() for index in (0, 1))
    assert (first, second) == ("RuntimeError", "InputError")
    assert float(stopped) - float(failed) < 5
    assert len(Journal(tmp_path / "out" / ".compress" / "journal.jsonl").of(Unit)) == 1
    run(load(str(recipe)), tmp_path / "out")
    assert weights(tmp_path / "out") == weights(recipe.parent / "1")


def test_where_one_runs_out_of_memory_all_shrink_and_bytes_stay(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, outputs = swept / "tuned" / "recipe.yaml", {place: tmp_path / place for place in PLACES}
    together(run_short, recipe, outputs, 3 * TOKENS)
    monkeypatch.setattr(flow, "_LEAST_TOKENS", 3 * TOKENS)  # batches of three sequences
    run(load(str(recipe)), tmp_path / "alone")
    said = "\n".join(f"memory ran out, and each batch was run in {parts} parts" for parts in (2, 4))
    for output in outputs.values():
        assert weights(output) == weights(tmp_path / "alone")
        assert [(output / f"process {index}").read_text() for index in (0, 1)] == [said, said]


def test_a_plan_says_what_is_shared_and_what_each_process_takes(swept: Path) -> None:
    recipe = load(str(swept / "tuned" / "recipe.yaml"))
    alone, crowd = (plan(recipe, max_ram=1 << 34, crew=Crew(count, count)) for count in (1, 3))
    assert [stage.shared for stage in crowd.stages] == [False, True, True, False]
    assert crowd.division() == "3 processes share gptq, evaluate; one of them does calibrate, export"
    assert alone.division() == "" and crowd.stages[1].processes == 3
    each = crowd.stages[1].memory_bytes
    short = plan(recipe, max_ram=2 * each, crew=Crew(3, 3))
    assert not short.stages[1].shared and short.stages[1].processes == 1
    own = plan(recipe, max_ram=2 * each, crew=Crew(3, 1))  # each has so much of its own
    assert own.stages[1].shared and own.stages[1].processes == 1
