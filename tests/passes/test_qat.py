"""Quantization-aware training as a pass: where it starts, what it gains, what it writes, kills, refusals."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.errors import UsageError
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor
from compress.passes.core.base import Pass
from compress.passes.core.run import Run
from compress.passes.gptq import GPTQ
from compress.passes.qat import QAT
from compress.passes.rtn import RTN
from compress.passes.train.commit import Trained
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run as run_recipe

Begin = Callable[..., Run]
KilledAt = Callable[[int], AbstractContextManager[None]]
CarryOut = Callable[..., Run]
FAST: dict[str, Any] = {
    "samples": 24, "seq_len": 32, "steps": 12, "batch": 4, "held_out": 6, "precision": "fp32",
    "lr": 1e-3, "lr_scales": 3e-3, "lr_codes": 2e-2,
}  # fmt: skip
STILL = {**FAST, "steps": 1, "lr": 1e-12, "lr_scales": 1e-12, "lr_codes": 1e-12}
"""Nothing moves by as much as could be seen."""


@pytest.fixture
def trained(tiny_llama: Path, corpus: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut) -> Callable[..., Run]:
    """trained(*before, **options) → a run after those passes and QAT."""

    def make(*before: Pass, fast: dict[str, Any] = FAST, **options: Any) -> Run:
        run = begin(tiny_llama, tmp_path / f"run {len(list(tmp_path.iterdir()))}")
        step = QAT.model_validate({"data": str(corpus), **fast, "group_size": 32, **options})
        for each in (*before, step):
            carry_out(run, each)
        return run

    return make


@pytest.fixture
def untrained(tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut) -> Callable[..., Run]:
    """untrained(*steps) → a run after those passes alone."""

    def make(*steps: Pass) -> Run:
        run = begin(tiny_llama, tmp_path / f"run {len(list(tmp_path.iterdir()))}")
        for step in steps:
            carry_out(run, step)
        return run

    return make


def codes_of(run: Run) -> dict[str, QTensor]:
    read = {name: run.model.read(name) for name in run.model.spec.tensors}
    return {name: tensor for name, tensor in read.items() if isinstance(tensor, QTensor)}


def same(one: QTensor, other: QTensor) -> bool:
    params = all(torch.equal(one.params[name], other.params[name]) for name in (*one.params, *other.params))
    return one.format == other.format and torch.equal(one.codes, other.codes) and params


@pytest.mark.parametrize(
    ("before", "options", "like"),
    [
        ((GPTQ(bits=3, group_size=32),), {}, (GPTQ(bits=3, group_size=32),)),
        ((), {"bits": 3}, (RTN(bits=3, group_size=32, search="weights"),)),
        ((), {"bits": 3, "loss": "ce", "train": "scales"}, (RTN(bits=3, group_size=32, search="weights"),)),
    ],
)
def test_it_starts_from_the_codes_before_it_or_from_a_searched_fit(
    trained: Callable[..., Run], untrained: Callable[..., Run], before: Any, options: Any, like: Any
) -> None:
    found, expected = codes_of(trained(*before, fast=STILL, **options)), codes_of(untrained(*like))
    assert found.keys() == expected.keys() and len(found) == 14
    assert all(same(found[name], expected[name]) for name in found)


def test_both_starts_in_one_model(trained: Callable[..., Run], untrained: Callable[..., Run]) -> None:
    """What GPTQ left out gets the format of QAT's own options, by rules."""
    before = GPTQ(bits=3, group_size=32, skip=("down_proj", "o_proj"))
    rules = [{"match": "o_proj", "value": "nf4"}, {"value": "int"}]
    found = codes_of(trained(before, fast=STILL, format=rules, bits=2, block_size=32))
    solved = codes_of(untrained(before))
    assert all(same(found[name], tensor) for name, tensor in solved.items())
    added = {name.split(".")[-2]: found[name].format for name in found.keys() - solved.keys()}
    assert added == {"down_proj": IntFormat(2, 32), "o_proj": CodebookFormat("nf4", 32)}


@pytest.mark.parametrize("options", [{"bits": 2}, {"format": "nf4", "block_size": 64}, {"format": "mxfp4"}])
def test_it_comes_nearer_than_rounding(
    trained: Callable[..., Run], lost: Callable[[Run], float], options: dict[str, Any]
) -> None:
    start = lost(trained(fast=STILL, **options))
    assert lost(trained(steps=40, **options)) < 0.85 * start


def test_it_goes_on_where_gptq_ends(trained: Callable[..., Run], lost: Callable[[Run], float]) -> None:
    before = GPTQ(bits=2, group_size=32)
    assert lost(trained(before, steps=40)) < 0.8 * lost(trained(before, fast=STILL))


def test_the_text_itself_teaches(trained: Callable[..., Run]) -> None:
    (course,) = trained(bits=3, loss="ce", steps=40).journal.of(Trained)
    assert min(loss for _, loss in course.measured) < 0.8 * course.measured[0][1]


def test_codes_stay_where_only_scales_learn(trained: Callable[..., Run], untrained: Callable[..., Run]) -> None:
    start, end = (
        codes_of(untrained(RTN(bits=3, group_size=32))),
        codes_of(trained(RTN(bits=3, group_size=32), train="scales")),
    )
    assert all(torch.equal(end[name].codes, start[name].codes) for name in start)
    assert any(not torch.equal(end[name].params["scale"], start[name].params["scale"]) for name in start)


def test_what_does_not_learn_is_quantized_all_the_same(
    trained: Callable[..., Run], untrained: Callable[..., Run]
) -> None:
    found = codes_of(trained(bits=3, train=["down_proj"]))
    rounded = codes_of(untrained(RTN(bits=3, group_size=32, search="weights")))
    assert found.keys() == rounded.keys()
    changed = {name for name in found if not same(found[name], rounded[name])}
    assert changed == {name for name in found if "down_proj" in name}


def test_siblings_share_what_engines_fuse(trained: Callable[..., Run]) -> None:
    """nvfp4 has one scale for all rows of what is quantized together."""
    found = codes_of(trained(format="nvfp4"))
    prefix = "model.layers.0.self_attn"
    scales = [found[f"{prefix}.{name}_proj.weight"].params["tensor_scale"] for name in "qkv"]
    assert len({float(value) for scale in scales for value in scale.flatten()}) == 1


def test_the_embedding_is_quantized_if_it_is_named(trained: Callable[..., Run]) -> None:
    found = codes_of(trained(include=["embed_tokens", "q_proj"], bits=8, lr_codes=0.5))
    assert "model.embed_tokens.weight" in found and len(found) == 3


def recipe(source: Path, corpus: Path, *exports: str, before: Any = (), **options: Any) -> Any:
    steps = [*before, {"qat": {"data": str(corpus), **FAST, **options}}, *({"export": {"dialect": e}} for e in exports)]
    return from_data({"model": str(source), "passes": steps})


@pytest.mark.parametrize(
    ("options", "dialects"),
    [
        ({"bits": 4, "group_size": 32}, ["gptq", "awq", "compressed-tensors", "gguf", "dense"]),
        ({"bits": 4, "group_size": 32, "symmetric": False}, ["gptq", "awq", "compressed-tensors"]),
        ({"bits": 4, "group_size": 32, "symmetric": False, "zero": "real"}, ["gguf"]),
        ({"format": "nf4", "block_size": 64}, ["bitsandbytes"]),
        ({"format": "fp8"}, ["compressed-tensors"]),
        ({"format": "mxfp4"}, ["compressed-tensors"]),
        ({"format": "nvfp4"}, ["modelopt", "compressed-tensors"]),
    ],
)
def test_every_container_takes_the_result(
    tiny_llama: Path, corpus: Path, tmp_path: Path, options: dict[str, Any], dialects: list[str]
) -> None:
    """Exports are verified as they are written; the plan knew their bytes."""
    wanted = recipe(tiny_llama, corpus, *dialects, steps=4, **{k: v for k, v in options.items() if k != "steps"})
    planned = plan(wanted)
    report = run_recipe(wanted, tmp_path / "out")
    assert [artifact.bytes for artifact in report.artifacts] == [artifact.bytes for artifact in planned.artifacts]
    for dialect, artifact in zip(dialects, report.artifacts):
        written = open_checkpoint(Path(artifact.path)).spec.tensors
        assert sum(spec.format is not None for spec in written.values()) == (0 if dialect == "dense" else 14)


def test_a_quantized_model_is_trained_on(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """As it comes, from its own codes: nothing is rounded twice."""
    first = run_recipe(from_data({
        "model": str(tiny_llama),
        "passes": [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": "gptq"}}],
    }), tmp_path / "first")  # fmt: skip
    came = Path(first.artifacts[0].path)
    with pytest.raises(UsageError, match="nothing to learn from itself"):
        run_recipe(recipe(came, corpus, "gptq"), tmp_path / "itself")
    still = {**STILL, "loss": "ce"}
    second = run_recipe(recipe(came, corpus, "gptq", **still), tmp_path / "second")
    one, other = (open_checkpoint(Path(report.artifacts[0].path)) for report in (first, second))
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = one.read(name), other.read(name)
    assert isinstance(before, QTensor) and isinstance(after, QTensor) and same(before, after)


@pytest.mark.parametrize(("at", "before"), [(4, ()), (18, ()), (11, ({"rtn": {"bits": 3, "group_size": 32}},))])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tiny_llama: Path, corpus: Path, tmp_path: Path, at: int, before: Any, killed_at: KilledAt
) -> None:
    """Killed at a commit: before it, when files are written and their record is not."""
    wanted = recipe(tiny_llama, corpus, "dense", before=before, **({} if before else {"bits": 3, "group_size": 32}))
    whole = run_recipe(wanted, tmp_path / "whole")
    with killed_at(at):
        run_recipe(wanted, tmp_path / "cut")
    resumed = run_recipe(wanted, tmp_path / "cut")
    one, other = (Path(report.artifacts[0].path) / "model.safetensors" for report in (whole, resumed))
    assert one.read_bytes() == other.read_bytes()


def test_a_format_that_decides_nothing_is_refused(tiny_llama: Path, corpus: Path) -> None:
    before = ({"rtn": {"bits": 4, "group_size": 32}},)
    with pytest.raises(UsageError, match=r"qat: bits decides nothing: every layer .* was quantized by a pass"):
        plan(recipe(tiny_llama, corpus, "dense", before=before, bits=3))
    assert plan(recipe(tiny_llama, corpus, "dense", before=before)).verdict == "fits"


def test_what_learns_is_refused_by_the_plan_if_it_is_not_there(tiny_llama: Path, corpus: Path) -> None:
    with pytest.raises(UsageError, match="nothing is named 'down_prj'"):
        plan(recipe(tiny_llama, corpus, "dense", train=["down_prj"]))
