"""A recipe with its model's headers and texts at hand; transformers' model is built once for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.passes.core.report import Reporter
from compress.passes.model import blank
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.jobs.generate import generate
from compress.recipes.jobs.verify import verify
from compress.recipes.opening import Opened, model_of, open_recipe
from compress.recipes.recipe import build, from_data
from compress.recipes.run import run
from compress.recipes.yaml import parse


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The models that transformers builds meanwhile."""
    models: list[str] = []
    make = AutoModelForCausalLM.from_config

    def counted(config, **options):
        models.append(config.model_type)
        return make(config, **options)

    monkeypatch.setattr(blank.AutoModelForCausalLM, "from_config", counted)
    yield models


def test_a_run_builds_the_model_once(built: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    steps = [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gptq"}}, {"export": {"dialect": "gguf"}}]
    built.clear()  # the fixture's
    run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    assert built == ["llama"]


def test_so_does_every_other_job(built: list[str], tiny_llama: Path, corpus: Path, written_as) -> None:
    artifact = written_as("gptq", tiny_llama, tiny_llama.parent / "out")
    built.clear()
    assert verify(artifact).passed and len(built) == 1
    generate(str(artifact), "a", lambda text: None, max_tokens=2)
    assert len(built) == 2
    evaluate([str(artifact)], reference=str(tiny_llama), data=str(corpus), windows=1, seq_len=16)
    assert len(built) == 4  # one for each model


def opened(*steps: dict[str, Any], model: Path) -> Opened:
    return open_recipe(from_data({"model": str(model), "passes": list(steps)}), torch.device("cpu"), Reporter())


def test_every_option_is_settled_for_the_model(tiny_llama: Path) -> None:
    found = opened({"rtn": {}}, {"export": {"dialect": "gptq"}}, model=tiny_llama)
    assert found.recipe.passes[0].group_size == 64  # type: ignore[attr-defined]  # of 64 columns, 128 by default


def test_texts_are_read_by_the_number_of_their_pass(tiny_llama: Path, corpus: Path, held_out: Path) -> None:
    size = {"samples": 3, "seq_len": 16}
    calibrate = {"calibrate": {"data": str(corpus), **size}}
    evaluate = {"evaluate": {"data": str(held_out), **size}}
    found = opened(calibrate, {"gptq": {"group_size": 32}}, evaluate, model=tiny_llama)
    assert {number: text.ids.shape for number, text in found.texts.items()} == {0: (3, 16), 2: (3, 16)}


def test_a_quantized_model_keeps_its_codes_only_where_no_pass_quantizes_anew(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    artifact = written_as("gptq", tiny_llama, tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = opened({"export": {"dialect": "awq"}}, model=artifact).source.spec.tensors[name]
    decoded = opened({"rtn": {"group_size": 32}}, {"export": {"dialect": "awq"}}, model=artifact).source
    assert kept.format is not None and decoded.spec.tensors[name].format is None
    assert isinstance(decoded.read(name), torch.Tensor)


def test_a_path_of_the_model_begins_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = build(parse("model: model\npasses: [rtn: {}]", "recipe.yaml"), Path("deep"))
    assert model_of(recipe) == "deep/model"
    assert model_of(from_data({"model": "org/name", "passes": [{"rtn": {}}]})) == "org/name"
