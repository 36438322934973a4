"""What is shown of checkpoints: layers that are alike on one line, what was not measured as a dash, the verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compress.cli.views.checkpoints import inspection, results, verification
from compress.recipes.jobs.evaluate import EvalResult, Figures
from compress.recipes.jobs.inspect import FormatLine, Inspection, TensorLine
from compress.recipes.jobs.verify import Problem, Verification

Shown = Callable[..., list[str]]


def line(name: str, shape: tuple[int, ...] = (64, 32), kind: str = "int4", bits: float = 4.5) -> TensorLine:
    return TensorLine(name=name, shape=shape, format=kind, bits=bits)


def inspected(*tensors: TensorLine, **more: Any) -> Inspection:
    return Inspection(**{
        "path": "here", "dialect": "gptq", "architecture": "LlamaForCausalLM", "parameters": 4096, "bytes": 2304,
        "bits_per_weight": 4.5, "formats": (FormatLine(format="int4", tensors=2, parameters=4096, bits=4.5),),
        "files": ("config.json",), "tensors": tensors, "missed_gates": (), "targets": {"vllm": ""},
        "dialects": {"awq": "2 bits"}, **more,
    })  # fmt: skip


def test_layers_that_are_alike_share_a_line(shown: Shown) -> None:
    tensors = [line(f"model.layers.{number}.up.weight") for number in range(3)]
    lines = shown(inspection(inspected(*tensors, line("lm_head.weight", (320, 32), "float16", 16))))
    assert "model.layers.*.up.weight ×3 64 × 32 int4 4.50" in lines
    assert "lm_head.weight 320 × 32 float16 16.00" in lines


def test_layers_that_differ_do_not(shown: Shown) -> None:
    tensors = [line("layers.0.up"), line("layers.1.up"), line("layers.2.up", kind="int8", bits=8.5)]
    tensors += [line("layers.3.up", kind="int3", bits=3.5), line("layers.4.up", kind="int3", bits=3.5)]
    lines = shown(inspection(inspected(*tensors)))
    assert "layers.*.up ×2 64 × 32 int4 4.50" in lines
    assert "layers.2.up 64 × 32 int8 8.50" in lines
    assert "layers.3.up ×2 64 × 32 int3 3.50" in lines  # the name with the star is taken


def test_who_loads_it_and_which_gates_it_missed(shown: Shown) -> None:
    lines = shown(inspection(inspected(line("a"), missed_gates=("max_kl: 1 is above 0.1",))))
    assert lines[0] == "here: gptq, LlamaForCausalLM, 4,096 parameters, 2.30 kB, 4.50 bits per weight"
    assert {"missed gates: max_kl: 1 is above 0.1", "vllm loads it", "awq no 2 bits"} <= set(lines)
    assert not any(found.startswith("missed gates") for found in shown(inspection(inspected(line("a")))))


def test_what_has_no_reference_has_a_dash(shown: Shown) -> None:
    row = EvalResult(path="here", perplexity=12.3456, kl_divergence=None, top1_agreement=None, bytes=1000, tokens=2046)
    scores = {"kl_divergence": 0.01234, "kl_p999": 1.5, "top1_agreement": 0.8125, "acceptance": 0.875}
    compared = row.model_copy(update={"path": "there", **scores})
    assert shown(results([row, compared]))[-3:-1] == [
        "here 1.00 kB 12.346 – – – – 2,046",
        "there ★ 1.00 kB 12.346 0.0123 1.500 81.2 % 87.5 % 2,046",
    ]


def test_texts_and_paces_are_shown_where_they_are_known(shown: Shown) -> None:
    domain = Figures(perplexity=9, kl_divergence=0.5, kl_p999=2, top1_agreement=0.5, acceptance=0.25, tokens=10)
    whole = {**domain.model_dump(), "path": "here", "bytes": 1000, "domains": {"code.txt": domain}}
    lines = shown(results([EvalResult(**whole, tokens_per_second=81.26)]))
    assert "here 1.00 kB 9.000 0.5000 2.000 50.0 % 25.0 % 10 81.3" in lines
    assert "code.txt here 9.000 0.5000 2.000 50.0 % 25.0 %" in lines


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_comes_last(passed: bool, shown: Shown) -> None:
    problems = [] if passed else [Problem(check="files", where="a.json", what="is missing")]
    found = Verification(
        path="here", dialect="gguf", passed=passed, checked={"files": 3}, problems=problems, largest_difference=0.25,
        engine={"vllm": "1.0"}, engine_difference=0.5, not_here="no AVX-512", missed_gates=["max_kl: 1 is above 0.1"],
    )  # fmt: skip
    lines = shown(verification(found))
    assert lines[-1] == f"here (gguf): {'passed' if passed else 'did NOT pass'}"
    assert f"files 3 {len(problems)}" in lines
    assert ("files: a.json is missing" in lines) == (not passed)
    assert "logits: at most 0.25 nats from the recorded ones" in lines
    assert "engine: at most 0.5 nats from the recorded logits (vllm 1.0)" in lines
    assert {"engine: not asked, no AVX-512", "missed gates: max_kl: 1 is above 0.1"} <= set(lines)
