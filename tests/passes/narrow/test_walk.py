"""The walk that makes layers narrower, with parts of a toy pass: heads of keys and values that share their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Hessian
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.walk import Narrowed, Narrower, Part, narrow
from compress.passes.rtn import RTN

SIZE = 16


def pooled(weights: Mapping[str, Tensor], stats: LinearStats) -> Narrower:
    """One head of keys and values [16, in], the mean of two; both go on with it."""
    assert stats[Hessian].tokens == 6 * 24
    tensors = {name: weight.unflatten(0, (-1, SIZE)).mean(0) for name, weight in weights.items()}
    return Narrower(tensors, lambda stored: {name: weight.repeat(2, 1) for name, weight in stored.items()})


def halved(weights: Mapping[str, Tensor], stats: LinearStats) -> Narrower:
    """The first half of the columns."""
    ((name, weight),) = weights.items()
    return Narrower({name: weight[:, :64]}, lambda stored: {name: torch.cat([stored[name], 0 * weight[:, 64:]], 1)})


def parts(layers: int = 2) -> Sequence[Sequence[Part]]:
    found = []
    for index in range(layers):
        attention, down = f"model.layers.{index}.self_attn", f"model.layers.{index}.mlp.down_proj"
        heads = tuple(f"{attention}.{kind}_proj.weight" for kind in "kv")
        found.append([Part(f"{attention}.q_proj", heads, pooled), Part(down, (f"{down}.weight",), halved)])
    return found


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage((RTN(),), {}, tmp_path / "work")


def errors_by_transformers(model: Path, rows: Sequences) -> dict[str, float]:
    """Of each linear, when every layer has pooled heads and half its channels: its error, on what it then takes."""
    llama, errors = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), dict[str, float]()

    def note(linear: nn.Linear, before: Tensor, name: str) -> None:
        def hook(own: nn.Module, args: tuple[Tensor, ...]) -> None:
            was, change = args[0] @ before.T, args[0] @ (linear.weight - before).T
            errors[name] = float(change.square().sum() / was.square().sum())

        linear.register_forward_pre_hook(hook)

    with torch.no_grad():
        for name, linear in llama.named_modules():
            if name.endswith(("k_proj", "v_proj", "down_proj")):
                note(linear, linear.weight.clone(), name)
            if name.endswith(("k_proj", "v_proj")):
                linear.weight.copy_(linear.weight.unflatten(0, (-1, SIZE)).mean(0).repeat(2, 1))
            elif name.endswith("down_proj"):
                linear.weight[:, 64:] = 0
        llama(rows.ids, use_cache=False)
    return errors


@pytest.mark.parametrize("max_ram", [1 << 34, 1 << 10], ids=["held", "apart"])
def test_each_part_sees_what_those_before_it_left(
    tmp_path: Path, tiny_llama: Path, rows: Sequences, begin: Callable[..., Run], stage: Stage, max_ram: int
) -> None:
    run = begin(tiny_llama, tmp_path / "work", max_ram)
    records = narrow(run, stage, parts())
    found = {name: error for record in records for name, error in record.errors.items()}
    assert found == pytest.approx(errors_by_transformers(tiny_llama, rows), rel=1e-3)
    shapes = {name: spec.shape for name, spec in run.model.spec.tensors.items() if ".layers.1." in name}
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (16, 64)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (64, 64)
    whole = run.source.read("model.layers.1.self_attn.v_proj.weight")
    assert isinstance(whole, Tensor)
    found_v = run.model.read("model.layers.1.self_attn.v_proj.weight")
    assert isinstance(found_v, Tensor) and torch.equal(found_v, (whole[:16] + whole[16:]) / 2)


def test_a_kill_costs_the_layer_at_hand(
    tmp_path: Path, tiny_llama: Path, begin: Callable[..., Run], stage: Stage,
    killed_at: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    run = begin(tiny_llama, tmp_path / "work")
    with killed_at(2):
        narrow(run, stage, parts())
    assert [record.boundary for record in run.journal.of(Narrowed)] == [1]
    resumed = narrow(begin(tiny_llama, tmp_path / "work"), stage, parts())
    whole = narrow(begin(tiny_llama, tmp_path / "whole"), replace(stage, work=tmp_path / "whole"), parts())
    assert [record.sha256 for record in resumed] == [record.sha256 for record in whole]
