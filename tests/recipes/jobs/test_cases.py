"""What is timed: which engines an artifact goes to, and what is said of those that it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.formats.errors import RefusedError, UsageError
from compress.passes.core.report import Reporter
from compress.recipes.jobs.cases import cases_of
from compress.recipes.jobs.export import export
from compress.recipes.recipe import from_data
from compress.recipes.run import run


def told(paths: list[str], engines: list[str], draft: str | None) -> list[str]:
    return [str(case) for case in cases_of(paths, engines, draft, Reporter())]


def test_an_artifact_goes_to_the_engines_of_its_container(tiny_llama: Path, tmp_path: Path) -> None:
    gguf, dense = export(str(tiny_llama), "gguf", {"type": "f16"}, tmp_path / "gguf").path, str(tiny_llama)
    assert told([dense, gguf], [], None) == [
        f"{dense} in transformers", f"{gguf} in llama.cpp", f"{gguf} in transformers",
    ]  # fmt: skip
    assert told([dense, gguf], ["llama_cpp"], None) == [f"{dense} in llama.cpp", f"{gguf} in llama.cpp"]
    drafted = f"{gguf} in llama.cpp, {dense} drafts"
    assert told([gguf], ["llama.cpp"], dense) == [f"{gguf} in llama.cpp", drafted]
    alone, wrong, right = cases_of([gguf], [], dense, Reporter())[:3]
    alone.refuse()
    right.refuse()
    with pytest.raises(RefusedError, match=r"llama\.cpp: does not load dense files"):
        wrong.refuse()


def test_an_engine_without_a_writer_is_no_engine_to_time(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="vllm has no writer"):
        cases_of([str(tiny_llama)], ["vllm"], None, Reporter())


def test_a_container_that_only_others_load(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = from_data({"model": str(tiny_llama), "passes": [{"fp8": {}}, {"export": {"dialect": "modelopt"}}]})
    (case,) = cases_of([run(recipe, tmp_path / "out").artifacts[0].path], [], None, Reporter())
    with pytest.raises(RefusedError, match="modelopt files load in tensorrt-llm, vllm, which are not timed"):
        case.refuse()
