"""Two processes that hold a model together train it as one that holds it alone, and go on where they were cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from together import together, train_sharded
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.kernels.share import Crew
from compress.passes.train.shard import gathered, sharded_as, whole
from compress.recipes.plan import plan
from compress.recipes.recipe import load
from compress.recipes.run import run

TRAIN = (
    "data: builtin, samples: 9, seq_len: 16, steps: 2, batch: 3, micro_batch: 1, held_out: 3, precision: fp32, "
    "measure_every: 1, lr: 1.0e-3, lr_scales: 3.0e-3, lr_codes: 2.0e-2, lr_lora: 1.0e-2, shard: true"
)
# Latent weights and scales under a live teacher's hidden states and logits, layers computed twice; scales alone of a
# format with two sorts of them; adapters beside dense weights and before a rounding. Embeddings are tied or not.
RECIPES = {
    "qat": ("gemma3_text", f"qat: {{{TRAIN}, bits: 3, group_size: 32, loss: mixed, cache: off, checkpointing: true}}"),
    "pruned": ("llama", "prune: {method: magnitude, solve: false}", "rewind: {}", f"finetune: {{{TRAIN}}}"),
    "scales": ("llama", "nvfp4: {}", f"distill: {{{TRAIN}, train: scales, alpha: 1.0}}"),
    "lora": (
        "qwen3",
        "rtn: {bits: 3, group_size: 32, skip: [o_proj]}",
        f"distill: {{{TRAIN}, train: lora, lora: {{targets: ['*_proj', lm_head]}}}}",
    ),
}


@pytest.fixture(scope="module")
def trained(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each recipe with it, and `two`, where two processes carried it out."""
    folder = tmp_path_factory.mktemp("shard")
    recipes = [written(folder / name, name, make_model) for name in RECIPES]
    together(train_sharded, {recipe: recipe.parent / "two" for recipe in recipes})
    return folder


def written(folder: Path, name: str, make_model: Callable[..., Path]) -> Path:
    """The file of a recipe."""
    family, *passes = RECIPES[name]
    model = make_model(folder / "model", family)
    steps = "".join(f"  - {step}\n" for step in (*passes, "export: {dialect: dense}"))
    (folder / "recipe.yaml").write_text(f"model: {model}\npasses:\n{steps}")
    return folder / "recipe.yaml"


def training_of(output: Path) -> dict[str, Any]:
    (training,) = json.loads((output / "dense" / "compress.json").read_text())["training"]
    assert isinstance(training, dict)
    return training


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_that_hold_a_model_together_give_the_result_of_one(name: str, trained: Path) -> None:
    """A batch of 3, and 3 held out, part unevenly."""
    folder = trained / name
    run(load(str(folder / "recipe.yaml")), folder / "one")
    one, two = (training_of(folder / which) for which in ("one", "two"))
    assert two["processes"] == 2 and two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    found, expected = (dict(each["measured"]) for each in (two, one))
    assert found == pytest.approx(expected, rel=1e-3)
    assert found[2] != found[0]


def test_each_keeps_the_zeros_of_its_part(trained: Path) -> None:
    weights = open_checkpoint(trained / "pruned" / "two" / "dense")
    pruned = [weights.read(name) for name in weights.spec.tensors if name.endswith("_proj.weight")]
    assert len(pruned) == 14
    for weight in pruned:
        assert isinstance(weight, torch.Tensor) and int((weight != 0).sum()) == weight.numel() // 2


def test_killed_they_go_on_together_to_the_same_bytes_and_not_alone(trained: Path, tmp_path: Path) -> None:
    recipe = trained / "scales" / "recipe.yaml"
    with pytest.raises(ProcessExitedException):
        together(train_sharded, {recipe: tmp_path}, 1)
    with pytest.raises(RefusedError, match="distill was begun by 2 processes, and now there are 1") as refused:
        run(load(str(recipe)), tmp_path)
    assert "--processes 2" in refused.value.hint
    together(train_sharded, {recipe: tmp_path})
    for file in (trained / "scales" / "two" / "dense").iterdir():
        assert file.read_bytes() == (tmp_path / "dense" / file.name).read_bytes(), file.name


def test_what_is_not_sharded_is_whole() -> None:
    linear, value = nn.Linear(2, 3), torch.ones(3, 2)
    with gathered(linear):
        assert whole(linear.weight) is linear.weight
    assert sharded_as(value, linear.weight) is value


def test_a_plan_counts_what_each_process_holds(make_model: Callable[..., Path], tmp_path: Path) -> None:
    asked = load(str(written(tmp_path, "qat", make_model)))
    alone, two, four = (plan(asked, max_ram=1 << 34, crew=Crew(count, count)).stages[0] for count in (1, 2, 4))
    assert not alone.sharded and two.sharded and four.sharded
    assert (alone.processes, two.processes, four.processes) == (1, 2, 4)
    assert alone.memory_bytes > two.memory_bytes > four.memory_bytes
