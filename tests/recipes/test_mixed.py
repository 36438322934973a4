"""`mixed` in a recipe: the plan bounds the bytes, artifacts reopen, a killed run resumes to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import killed_after_each_commit

from compress.formats import dialects, open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.recipes.plan import plan
from compress.recipes.recipe import Recipe, from_data
from compress.recipes.run import run

GPTQ = {"gptq": {"group_size": 32}}
SAID = {"bits": [{"match": "*", "value": 4}]}


def recipe(model: Path, corpus: Path, *steps: dict[str, Any], **more: Any) -> Recipe:
    calibrate = {"calibrate": {"data": str(corpus), "samples": 8, "seq_len": 32}}
    return from_data({"model": str(model), "passes": [calibrate, *steps], **more})


def export(dialect: str) -> dict[str, Any]:
    return {"export": {"dialect": dialect}}


@pytest.mark.parametrize("symmetric", [True, False])
def test_artifacts_hold_the_bits_and_stay_within_the_plan(
    symmetric: bool, tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    names = ("gptq", "compressed-tensors", *(("gguf",) if symmetric else ()))
    solver = {"gptq": {"group_size": 32, "symmetric": symmetric}}
    asked = recipe(tiny_llama, corpus, {"mixed": {"average_bits": 4.3}}, solver, *map(export, names))
    planned = plan(asked)
    report = run(asked, tmp_path)
    for before, artifact in zip(planned.artifacts, report.artifacts):
        assert artifact.bytes <= before.bytes
        assert any("at most" in note for note in before.notes)
        path = Path(artifact.path)
        chosen = json.loads((path / "compress.json").read_bytes())["mixed"]["bits"]
        reopened = open_checkpoint(path)
        if artifact.dialect == "gguf":  # holds 2 and 3 bits in wider blocks
            continue
        found = {name: spec.format for name, spec in reopened.spec.tensors.items() if spec.format}
        assert {name.removesuffix(".weight"): format.bits for name, format in found.items()} == chosen == report.bits  # type: ignore[attr-defined]
        assert len(set(chosen.values())) > 1
        witness = dialects()[artifact.dialect].witness(path)
        for name in found:
            assert torch.equal(witness(name), reopened.read(name).dequantize())  # type: ignore[union-attr]


def test_what_goes_by_the_choice_is_no_fact_of_the_plan_or_the_run(
    tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    mixed = {"mixed": {"average_bits": 6, "formats": ["q4_0", "q5_0", "q8_0"]}}
    written = {"export": {"dialect": "gguf", "type": "q4_1"}}
    asked = recipe(tiny_llama, corpus, mixed, {"gptq": {}}, written)
    (planned,) = plan(asked).artifacts
    least = plan(recipe(tiny_llama, corpus, {"gptq": {"format": "q4_0"}}, written))
    assert f"{least.artifacts[0].bytes:,} to at most {planned.bytes:,} bytes, as the run chooses" in planned.notes
    # Three types stay in the fullest file, one where a single one is taken everywhere.
    assert [note for note in planned.notes if "stay" in note] == [
        "with the most bits, 14 tensors are quantized already and stay q4_0, q5_0, q8_0: `type: q4_1` is for the others"
    ]
    assert not any("stay" in line for line in planned.told)
    report = run(asked, tmp_path)
    assert not [note for note in report.notes if "stay" in note]


def test_gptq_files_say_which_layers_differ(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    report = run(recipe(tiny_llama, corpus, {"mixed": {"average_bits": 4.3}}, GPTQ, export("gptq")), tmp_path)
    settings = json.loads((Path(report.artifacts[0].path) / "quantize_config.json").read_bytes())
    assert settings["dynamic"] and all(rule["bits"] in (2, 3, 4, 8) for rule in settings["dynamic"].values())


def test_awq_and_gptq_both_take_the_bits(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    steps = ({"awq": {"group_size": 32}}, {"gptq": {"group_size": 32, "symmetric": False}})
    report = run(recipe(tiny_llama, corpus, {"mixed": {"average_bits": 4.5}}, *steps, export("gptq")), tmp_path)
    chosen = json.loads((Path(report.artifacts[0].path) / "compress.json").read_bytes())["mixed"]
    assert chosen["average_bits"] <= 4.5 and len(set(chosen["bits"].values())) > 1


def test_the_plan_counts_the_stage_and_reads_no_weight(tiny_llama: Path, corpus: Path) -> None:
    weights = tiny_llama / "model.safetensors"
    header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:header])
    with open(weights, "ab") as file:
        file.truncate(size)  # all weights are 0: a run would give other bits
    planned = plan(recipe(tiny_llama, corpus, {"mixed": {"max_kl": 0.05}}, GPTQ, export("gptq")))
    assert [stage.passes for stage in planned.stages] == [["calibrate"], ["mixed"], ["gptq"], ["export"]]
    assert planned.stages[1].forwards == 1 and planned.stages[1].seconds > 0
    even = plan(recipe(tiny_llama, corpus, {"gptq": {"group_size": 32, "bits": 8}}, export("gptq")))
    assert planned.artifacts[0].bytes == even.artifacts[0].bytes


@pytest.mark.parametrize(
    "steps, error, what",
    [
        ([{"mixed": {"average_bits": 4}}, export("gptq")], UsageError, "none there takes bits"),
        ([GPTQ, {"mixed": {"average_bits": 4}}, export("gptq")], UsageError, "none there takes bits"),
        ([{"mixed": {"average_bits": 2}}, GPTQ, export("gptq")], RefusedError, "already take 2.500"),
        ([{"mixed": {"average_bits": 4, "bits": [4, 5]}}, GPTQ, export("gptq")], RefusedError, "already take 4.500"),
        ([{"mixed": {"average_bits": 5, "bits": [4, 5]}}, GPTQ, export("gptq")], RefusedError, "not 5"),
        ([{"mixed": {"average_bits": 5}}, GPTQ, export("awq")], RefusedError, "awq cannot hold"),
        ([{"mixed": {"average_bits": 5}}, {"gptq": {"group_size": 48}}, export("gptq")], RefusedError, "48"),
        (
            [{"mixed": {"average_bits": 5}}, {"gptq": {"bits": [{"match": "*", "value": 4}]}}, export("gptq")],
            UsageError,
            "leaves no bits for mixed",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_compute(
    steps: list[dict[str, Any]], error: type[Exception], what: str, tiny_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=what):
        run(recipe(tiny_llama, corpus, *steps), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_needs_calibration(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match="mixed needs calibration data"):
        plan(
            from_data(
                {"model": str(tiny_llama), "passes": [{"mixed": {"average_bits": 5}}, {"rtn": {}}, export("gptq")]}
            )
        )


def test_a_target_refuses_candidates_that_it_cannot_load(tiny_llama: Path, corpus: Path) -> None:
    def planned(*bits: int) -> None:
        mixed = {"mixed": {"average_bits": 6, "bits": bits}}
        plan(recipe(tiny_llama, corpus, mixed, GPTQ, export("gptq"), targets=["vllm"]))

    planned(4, 8)
    with pytest.raises(RefusedError, match="vllm"):
        planned(3, 4, 8)


def test_killed_at_any_commit_it_resumes_to_the_same_bytes(
    make_model: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", "llama", layers=1)
    wanted = recipe(model, corpus, {"mixed": {"average_bits": 4.3}}, GPTQ, export("gptq"))
    assert killed_after_each_commit(wanted.model_dump(mode="json"), tmp_path, step=2) >= 3
    whole = contents(tmp_path / "whole")
    assert whole and contents(tmp_path / "killed") == whole


def contents(output: Path) -> dict[str, bytes]:
    """Every artifact file; compress.json holds timings and is left out."""
    paths = [path for path in sorted(output.glob("gptq/*")) if path.name != "compress.json"]
    return {path.name: path.read_bytes() for path in paths}


def test_bits_are_integer_grids(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """A hint, not a crash, where the pass behind solves for a table of values."""
    with pytest.raises(UsageError, match="not to have an integer grid"):
        plan(recipe(tiny_llama, corpus, {"mixed": {"average_bits": 5}}, {"gptq": {"format": "nf4"}}, export("gptq")))
