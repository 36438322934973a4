"""Several exports of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.formats.errors import UsageError
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import Document


def recipe(model: Path, *exports: dict[str, Any]) -> Recipe:
    steps = [{"export": {"dialect": "gguf", **options}} for options in exports]
    return build(Document("exports", {"model": str(model), "passes": steps}, {}))


def test_files_of_different_types_stand_beside_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, {"type": "q8_0"}, {"type": "q4_0"}, {}), tmp_path / "out")
    assert [Path(artifact.path).name for artifact in report.artifacts] == ["gguf-q8_0", "gguf-q4_0", "gguf"]
    files = [file.name for artifact in report.artifacts for file in Path(artifact.path).glob("*.gguf")]
    assert files == ["model-Q8_0.gguf", "model-Q4_0.gguf", "model-F16.gguf"]
    for artifact, file in zip(report.artifacts, files):
        assert artifact.loads["llama.cpp"] == f"llama-cli -m {artifact.path}/{file}"


def test_two_of_one_type_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="two exports write to gguf-q8_0"):
        plan(recipe(tiny_llama, {"type": "q8_0"}, {"type": "q8_0"}))
