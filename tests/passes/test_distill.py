"""Distillation as a pass: what learns and what stays, what it gains, kills, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.kernels.qtensor import QTensor
from compress.passes.core.base import Pass
from compress.passes.core.run import Run
from compress.passes.distill import Distill
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


@pytest.fixture
def distilled(
    corpus: Path, tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> Callable[..., tuple[Run, Run]]:
    """distilled(*before, **options) → the run before the distillation and a run after it."""

    def make(*before: Pass, **options: Any) -> tuple[Run, Run]:
        runs = []
        for name, after in (("before", ()), ("after", (Distill(data=str(corpus), **{**FAST, **options}),))):
            run = begin(tiny_llama, tmp_path / name)
            for step in (*before, *after):
                carry_out(run, step)
            runs.append(run)
        return runs[0], runs[1]

    return make


def tensors(run: Run) -> dict[str, Tensor | QTensor]:
    return {name: run.model.read(name) for name in run.model.spec.tensors}


def changed(before: Run, after: Run) -> set[str]:
    """The names of the tensors that differ."""
    old, new = tensors(before), tensors(after)
    return {name for name in old if not same(old[name], new[name])}


def same(one: Tensor | QTensor, other: Tensor | QTensor) -> bool:
    if isinstance(one, QTensor) and isinstance(other, QTensor):
        parts = zip([one.codes, *one.params.values()], [other.codes, *other.params.values()])
        return one.format == other.format and all(torch.equal(*pair) for pair in parts)
    assert isinstance(one, Tensor) and isinstance(other, Tensor)
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("train", ["scales", "all", "norms"])
def test_a_quantized_model_comes_nearer_to_the_untouched_one(
    distilled: Callable[..., tuple[Run, Run]], lost: Callable[[Run], float], train: str
) -> None:
    before, after = distilled(RTN(bits=3, group_size=32), train=train, steps=40)
    assert lost(after) < 0.95 * lost(before)
    (trained,) = after.journal.of(Trained)
    assert min(loss for _, loss in trained.measured) < trained.measured[0][1]
    assert len(trained.losses) == 40


def test_scales_learn_and_no_code_moves(distilled: Callable[..., tuple[Run, Run]]) -> None:
    before, after = distilled(RTN(bits=3, group_size=32), train="scales")
    old, new = tensors(before), tensors(after)
    quantized = {name for name, tensor in old.items() if isinstance(tensor, QTensor)}
    assert quantized
    for name in quantized:
        one, other = old[name], new[name]
        assert isinstance(one, QTensor) and isinstance(other, QTensor)
        assert torch.equal(one.codes, other.codes)
        assert not torch.equal(one.params["scale"], other.params["scale"])
        assert other.params["scale"].dtype == one.params["scale"].dtype
    norms = {name for name in old if name.endswith("norm.weight")}
    assert changed(before, after) == quantized | norms


def test_with_all_of_it_codes_move(distilled: Callable[..., tuple[Run, Run]]) -> None:
    before, after = distilled(RTN(bits=3, group_size=32), train="all")
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = before.model.read(name), after.model.read(name)
    assert isinstance(one, QTensor) and isinstance(other, QTensor)
    assert 0 < float((one.codes != other.codes).float().mean()) < 0.5
    assert changed(before, after) == set(before.model.spec.tensors)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (["*.mlp.*"], lambda name: ".mlp." in name),
        (["down_proj"], lambda name: name.endswith("down_proj.weight")),
        ("norms", lambda name: name.endswith("norm.weight")),
    ],
)
def test_nothing_learns_but_what_is_named(
    distilled: Callable[..., tuple[Run, Run]], train: Any, expected: Callable[[str], bool]
) -> None:
    before, after = distilled(RTN(bits=3, group_size=32), train=train)
    assert changed(before, after) == {name for name in before.model.spec.tensors if expected(name)}


@pytest.mark.parametrize("options", [{"loss": "feature"}, {"loss": "mixed", "tau": 2.0, "divergence": "jsd"}])
def test_hidden_states_are_learned_too(
    distilled: Callable[..., tuple[Run, Run]], lost: Callable[[Run], float], options: dict[str, Any]
) -> None:
    before, after = distilled(RTN(bits=3, group_size=32), train="all", steps=40, **options)
    assert lost(after) < 0.95 * lost(before)


def test_checkpointing_changes_no_gradient(distilled: Callable[..., tuple[Run, Run]]) -> None:
    curves = []
    for checkpointing in (False, True):
        _, after = distilled(RTN(bits=3, group_size=32), checkpointing=checkpointing, micro_batch=2)
        curves.append(after.journal.of(Trained)[-1].losses)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("before", [RTN(bits=3, group_size=32), RTN(bits=3, group_size=32, include=("*.mlp.*",))])
def test_layer_by_layer_it_comes_nearer_too(
    distilled: Callable[..., tuple[Run, Run]], lost: Callable[[Run], float], before: Pass
) -> None:
    unlearned, learned = distilled(before, scope="layer", steps=20)
    assert lost(learned) < 0.95 * lost(unlearned)
    assert [record.unit for record in learned.journal.of(Trained)] == ["model.layers.0", "model.layers.1"]
    assert all(".layers." in name for name in changed(unlearned, learned))


def test_a_plan_counts_the_steps_of_every_layer(tiny_llama: Path, corpus: Path) -> None:
    few, many = (plan(recipe(tiny_llama, corpus, scope="layer", steps=steps)).stages[1] for steps in (10, 1000))
    assert many.seconds > 20 * few.seconds and many.memory_bytes == few.memory_bytes


def test_layer_by_layer_only_outputs_are_learned(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out tau"):
        plan(recipe(tiny_llama, corpus, scope="layer", tau=2.0))
    with pytest.raises(UsageError, match="leave out teacher"):
        plan(recipe(tiny_llama, corpus, scope="layer", teacher=str(tiny_llama)))
    with pytest.raises(UsageError, match="by one process: leave out shard"):
        plan(recipe(tiny_llama, corpus, scope="layer", shard=True))


def recipe(source: Path, corpus: Path, **options: Any) -> Any:
    steps = [
        {"rtn": {"bits": 4, "group_size": 32}},
        {"distill": {"data": str(corpus), **FAST, **options}},
        {"export": {"dialect": "gptq"}},
    ]
    return from_data({"model": str(source), "passes": steps})


def test_the_artifact_says_how_it_was_trained(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    report = run_recipe(recipe(tiny_llama, corpus, train="scales"), tmp_path / "out")
    manifest = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())
    (training,) = manifest["training"]
    assert training["pass"] == "distill" and len(training["losses"]) == 12
    assert training["best"] in dict(training["measured"])
    assert (Path(report.artifacts[0].path) / "training.svg").read_bytes().startswith(b"<?xml")
    written = open_checkpoint(Path(report.artifacts[0].path)).spec
    assert sum(spec.format is not None for spec in written.tensors.values()) == 14


def test_patterns_that_match_nothing_are_refused_by_the_plan(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is named 'down_prj'; did you mean 'down_proj'"):
        run_recipe(recipe(tiny_llama, corpus, train=["down_prj"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scales_of_a_dense_model_are_refused_by_the_plan(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tensor is quantized"):
        run_recipe(alone(tiny_llama, corpus, train="scales", teacher=str(tiny_llama)), tmp_path / "out")


def test_a_model_cannot_learn_from_itself(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pass before it changes the model"):
        run_recipe(alone(tiny_llama, corpus), tmp_path / "out")


def test_another_vocabulary_is_refused_by_the_plan(
    tiny_llama: Path, corpus: Path, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    other = make_model(tmp_path / "other", "llama", seed=1)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RefusedError, match="cannot teach"):
        plan(alone(tiny_llama, corpus, teacher=str(other)))


@pytest.mark.parametrize("options", [{}, {"cache": {"top_k": 320}}, {"cache": "off"}])
def test_another_model_teaches(
    tiny_llama: Path, corpus: Path, tmp_path: Path, make_model: Callable[..., Path], options: dict[str, Any]
) -> None:
    """Asked once or run beside it, the losses are the same: float16 keeps about three digits."""
    other = make_model(tmp_path / "other", "llama", layers=3, seed=1)
    report = run_recipe(alone(tiny_llama, corpus, teacher=str(other), **options), tmp_path / "out")
    (training,) = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())["training"]
    expected = run_recipe(alone(tiny_llama, corpus, teacher=str(other)), tmp_path / "expected")
    (other_training,) = json.loads((Path(expected.artifacts[0].path) / "compress.json").read_text())["training"]
    assert training["losses"] == pytest.approx(other_training["losses"], rel=1e-3)
    assert training["measured"][-1][1] < training["measured"][0][1]


@pytest.mark.parametrize(("scope", "places"), [("model", (1, 5, 12, 20)), ("layer", (7, 9))])
def test_killed_anywhere_it_ends_in_the_same_bytes(
    tiny_llama: Path, corpus: Path, tmp_path: Path, scope: str, places: tuple[int, ...], killed_at: KilledAt
) -> None:
    """Killed at a commit: before it, when files are written and their record is not."""
    wanted = recipe(tiny_llama, corpus, scope=scope)
    whole = run_recipe(wanted, tmp_path / "whole")
    for at in places:
        with killed_at(at):
            run_recipe(wanted, tmp_path / f"cut-{at}")
        resumed = run_recipe(wanted, tmp_path / f"cut-{at}")
        one, other = (Path(report.artifacts[0].path) / "model.safetensors" for report in (whole, resumed))
        assert one.read_bytes() == other.read_bytes(), at


def test_of_itself_a_model_learns_the_text(tiny_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """α·CE beside the divergence: the model as it comes has that to learn, and keeps to what it was."""
    report = run_recipe(alone(tiny_llama, corpus, alpha=1, lr=3e-3), tmp_path / "out")
    (training,) = json.loads((Path(report.artifacts[0].path) / "compress.json").read_text())["training"]
    assert training["measured"][-1][1] < training["measured"][0][1]
    with pytest.raises(UsageError, match="no pass before it changes the model"):
        plan(alone(tiny_llama, corpus, alpha=1, loss="feature"))


def alone(source: Path, corpus: Path, **options: Any) -> Any:
    """A recipe that distils a model as it comes."""
    steps = [{"distill": {"data": str(corpus), **FAST, **options}}, {"export": {"dialect": "dense"}}]
    return from_data({"model": str(source), "passes": steps})
