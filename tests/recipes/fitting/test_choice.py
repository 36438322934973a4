"""The most faithful way that fits: what was promised is what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError
from compress.recipes.figures.planned import FitPlan, Plan
from compress.recipes.fitting.choice import choose
from compress.recipes.fitting.ways import AS_WRITTEN, Way
from compress.recipes.fitting.wish import Place
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

VLLM = [{"calibrate": {"samples": 4, "seq_len": 32}}, {"rtn": {"group_size": 32}}, {"kv_cache": {}},
        {"export": {"dialect": "compressed-tensors"}}]  # fmt: skip
TOKEN = 2 * 2 * 2 * 16  # numbers of keys and values: layers, heads, width


def recipe(model: Path, passes: list[dict[str, Any]], **head: Any) -> Recipe:
    return from_data({"model": str(model), "passes": passes, **head})


def chosen(planned: Plan) -> Any:
    assert planned.fit is not None
    (row,) = [row for row in planned.fit.rows if row.chosen]
    return row


def test_the_file_and_its_cache_are_as_large_as_was_said(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    passes = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}, *VLLM[1:]]
    wide = plan(recipe(tiny_llama, passes, fit={"vram": "1GB", "context": 100, "users": 3}))
    assert (chosen(wide).weights, chosen(wide).cache) == ("8 bits", "16 bits")
    assert chosen(wide).cache_bytes == TOKEN * 2 * 300
    rows = {(row.weights, row.cache): row for row in wide.fit.rows} if wide.fit else {}
    tight = int(rows["4 bits", "fp8"].bytes / 0.9) + 2
    narrow = recipe(tiny_llama, passes, fit={"vram": tight, "context": 100, "users": 3})
    said = chosen(plan(narrow))
    assert (said.weights, said.cache, said.cache_bytes) == ("4 bits", "fp8", TOKEN * 300)
    report = run(narrow, tmp_path / "out")
    artifact = open_checkpoint(Path(report.artifacts[0].path))
    assert artifact.nbytes() == said.weights_bytes
    assert artifact.spec.kv_cache and artifact.spec.kv_cache.grid == "fp8"
    assert {spec.format.name for spec in artifact.spec.tensors.values() if spec.format} == {"int4 g32 sym"}


def test_what_fits_in_16_bits_keeps_its_cache(tiny_llama: Path, corpus: Path) -> None:
    passes = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}, *VLLM[1:]]
    planned = plan(recipe(tiny_llama, passes, fit={"vram": "1GB"}))
    assert [name for stage in planned.stages for name in stage.passes] == ["calibrate", "rtn", "export"]


def test_the_smallest_is_named_where_nothing_fits(tiny_llama: Path) -> None:
    passes = [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gguf"}}]
    with pytest.raises(RefusedError, match=r"smallest, \w+ with a cache in q8_0, takes [\d,]+ \(") as caught:
        plan(recipe(tiny_llama, passes, fit={"vram": 1000}))
    least = int(str(caught.value).partition("takes ")[2].partition(" ")[0].replace(",", ""))
    enough = plan(recipe(tiny_llama, passes, fit={"vram": int(least / 0.9) + 2}))
    assert chosen(enough).bytes == least


def test_a_phone_gets_a_type_that_it_is_fast_at(tiny_llama: Path, tmp_path: Path) -> None:
    phone = recipe(tiny_llama, [{"export": {"dialect": "gguf"}}], targets=["mobile"])
    said = chosen(plan(phone))
    assert said.weights == "q8_0"
    assert open_checkpoint(Path(run(phone, tmp_path / "out").artifacts[0].path)).nbytes() == said.weights_bytes
    with pytest.raises(RefusedError, match="phones are fast at q4_0"):
        plan(recipe(tiny_llama, [{"export": {"dialect": "gguf", "type": "q5_0"}}], targets=["mobile"]))
    long = {"context": 2_000_000_000 // (TOKEN * 2)}
    assert (
        chosen(plan(recipe(tiny_llama, [{"export": {"dialect": "gguf"}}], targets=["mobile"], fit=long))).cache
        == "q8_0"
    )
    with pytest.raises(RefusedError, match="compressed-tensors"):
        plan(recipe(tiny_llama, VLLM[1:2] + VLLM[3:], targets=["mobile"]))


def test_a_way_that_cannot_be_says_why() -> None:
    def weigh(steps: object) -> list[Any]:
        raise RefusedError("no such container")

    with pytest.raises(RefusedError, match="no such container"):
        choose([Way(AS_WRITTEN, "16 bits", 2, {})], weigh, Place(1, 1, 1), [])
    assert FitPlan(allowed=1, context=1, users=1, rows=[]).rows == []
