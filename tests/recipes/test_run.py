"""A whole run on tiny models: what it writes, that it resumes to the same bytes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import killed_after_each_commit

from compress.formats.errors import CompressError, InputError, RefusedError, UsageError
from compress.passes.core.report import Reporter
from compress.recipes.recipe import Recipe, build
from compress.recipes.run import run
from compress.recipes.yaml import Document


def recipe(model: Path, corpus: Path, *, gptq: dict[str, Any] | None = None, **more: Any) -> Recipe:
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {"gptq": {"group_size": 32, **(gptq or {})}},
        {"evaluate": {"data": str(corpus.with_name("held_out.txt")), "samples": 4, "seq_len": 32}},
        {"export": {"dialect": "gptq"}},
        {"export": {"dialect": "gguf"}},
    ]
    return build(Document("test", {"model": str(model), "passes": passes, **more}, {}))


def contents(output: Path) -> dict[str, bytes]:
    """Every artifact file; the run's own compress.json holds timings and is left out."""
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.glob("g*/*"))}


@pytest.mark.parametrize("correct", [False, True])
def test_every_family_runs_end_to_end(
    tmp_path: Path, family: str, make_model: Callable[..., Path], corpus: Path, correct: bool
) -> None:
    model = make_model(tmp_path / family, family)
    report = run(recipe(model, corpus, gptq={"correct": correct}), tmp_path / "out")
    assert [Path(artifact.path).name for artifact in report.artifacts] == ["gptq", "gguf"]
    assert report.metrics.kl_divergence is not None and 0 < report.metrics.kl_divergence < 0.5
    manifest = json.loads((tmp_path / "out" / "gptq" / "compress.json").read_text())
    assert all(0 < entry["relative_error"] < 0.1 for entry in manifest["tensors"].values())


def test_the_same_recipe_gives_the_same_bytes(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(recipe(tiny_llama, corpus), tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_killed_after_each_commit_it_resumes_to_the_same_bytes(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """A real SIGKILL, after every journal line in turn."""
    wanted = recipe(tiny_llama, corpus, gptq={"correct": True})
    assert killed_after_each_commit(wanted.model_dump(mode="json"), tmp_path) >= 10
    whole = contents(tmp_path / "whole")
    assert {name.split("/")[0] for name in whole} == {"gptq", "gguf"}
    assert contents(tmp_path / "killed") == whole


def test_a_second_call_only_reports(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    first = run(recipe(tiny_llama, corpus), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("g*/*")}
    assert run(recipe(tiny_llama, corpus), tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("g*/*")} == before


def test_each_walk_of_an_evaluation_counts_the_layers_of_one_model(
    tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    class Titles(Reporter):
        def __init__(self) -> None:
            self.started: list[tuple[str, int, str]] = []

        def start(self, title: str, total: int, unit: str, done: int = 0) -> None:
            self.started.append((title, total, unit))

    seen = Titles()
    run(recipe(tiny_llama, corpus), tmp_path / "out", reporter=seen)
    walks = [started for started in seen.started if started[0].startswith("evaluate") and started[2] == "layer"]
    assert walks == [("evaluate the original", 2, "layer"), ("evaluate", 2, "layer")]


def test_gates_are_reported(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, corpus, gates={"max_kl": 1e-9}), tmp_path / "out")
    assert report.missed and "max_kl" in report.missed[0]
    assert (tmp_path / "out" / "gptq").is_dir()
    assert json.loads((tmp_path / "out" / "gptq" / "compress.json").read_text())["missed_gates"]


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"group_size": 48}, RefusedError, "48"),
        ({"include": ["*.nowhere"]}, UsageError, "nowhere"),
        ({"group_size": 32, "bits": 5}, RefusedError, "gptq cannot hold"),
        ({"group_size": 16}, RefusedError, "gguf cannot hold"),
    ],
)
def test_what_cannot_be_done_is_said_before_compute(
    tiny_llama: Path,
    corpus: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[CompressError],
    what: str,
) -> None:
    with pytest.raises(error, match=what):
        run(recipe(tiny_llama, corpus, gptq=options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_text_file_is_found_before_compute(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    missing = build(
        Document(
            "test",
            {
                "model": str(tiny_llama),
                "passes": [{"rtn": {"group_size": 32}}, {"evaluate": {"data": "none.txt"}}],
            },
            {},
        )
    )
    with pytest.raises(InputError, match=r"none\.txt"):
        run(missing, tmp_path / "out")


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_by_name(tmp_path: Path, make_model: Callable[..., Path], corpus: Path, tied: bool) -> None:
    model = make_model(tmp_path / "model", "llama" if tied else "qwen3")
    passes = [
        {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}},
        {
            "gptq": {
                "group_size": 32,
                "include": ["*"],
                "bits": [{"match": "*embed*", "value": 8}, {"value": 4}],
            }
        },
        {"evaluate": {"data": str(corpus.with_name("held_out.txt")), "samples": 4, "seq_len": 32}},
        {"export": {"dialect": "gguf"}},
    ]
    report = run(build(Document("test", {"model": str(model), "passes": passes}, {})), tmp_path / "out")
    tensors = json.loads((tmp_path / "out" / "gguf" / "compress.json").read_text())["tensors"]
    assert tensors["model.embed_tokens"]["format"] == "int8 g32 sym"
    assert ("lm_head" in tensors) == (not tied)
    assert report.metrics.kl_divergence is not None and report.metrics.kl_divergence < 0.5


def test_budgets_are_kept(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="memory"):
        run(recipe(tiny_llama, corpus), tmp_path / "out", max_ram=1 << 20)
    with pytest.raises(UsageError, match="max-vram"):
        run(recipe(tiny_llama, corpus), tmp_path / "out", max_vram=1 << 40)
    assert not (tmp_path / "out").exists()


def test_every_option_may_differ_from_module_to_module(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """Rules that name a module change that module as the plain option would, and no other in its layer."""

    def damps(name: str, **gptq: Any) -> dict[str, float]:
        run(recipe(tiny_llama, corpus, gptq=gptq), tmp_path / name)
        manifest = json.loads((tmp_path / name / "gptq" / "compress.json").read_text())
        return {tensor: report["damp"] for tensor, report in manifest["tensors"].items()}

    off = [{"match": "*.q_proj", "value": False}]
    rules = damps("rules", damp=[{"match": "*.q_proj", "value": 0.5}], search=off, act_order=off, correct=off)
    assert {name: 0.5 if name.endswith("q_proj") else 0.01 for name in rules} == rules
