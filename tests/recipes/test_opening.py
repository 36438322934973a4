"""On opening, transformers' model is built once: by a run with its exports, and by every other job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from compress.passes.model import blank
from compress.recipes.jobs.evaluate import evaluate
from compress.recipes.jobs.generate import generate
from compress.recipes.jobs.verify import verify
from compress.recipes.recipe import from_data
from compress.recipes.run import run


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
