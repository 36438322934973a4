"""A narrower residual stream: statistics, norms and repair against transformers' own hidden states in fp64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats.errors import RefusedError
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.model.sequences import Sequences
from compress.passes.narrow.choice import Choice
from compress.passes.narrow.stream import find_stream
from compress.passes.narrow.thin import Gathered, Thinned, Thinning, _refuse_offset, thin_disk, thin_effort
from compress.passes.rtn import RTN

CHOICE = Choice("activation", True, 0.5, False)


@pytest.fixture
def thinning(begin: Callable[..., Run], tmp_path: Path) -> Callable[..., Thinning]:
    def build(model: Path, name: str = "work", choice: Choice = CHOICE) -> Thinning:
        run = begin(model, tmp_path / name)
        stream = find_stream(run.model.spec, run.skeleton.anatomy)
        return Thinning(run, Stage((RTN(),), {}, tmp_path / name), stream, choice)

    return build


def read(run: Run, name: str) -> Tensor:
    found = run.model.read(name)
    assert isinstance(found, Tensor)
    return found


def seen(model: Path, rows: Sequences, module: str) -> Tensor:
    """What arrives at a module of the untouched model, [tokens, in] fp64."""
    llama, inputs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), list[Tensor]()
    llama.get_submodule(module).register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1).double()))
    with torch.no_grad():
        llama(rows.ids, use_cache=False)
    return inputs[0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_norms_and_repair_are_those_of_the_equations(
    tmp_path: Path, make_model: Callable[..., Path], thinning: Callable[..., Thinning], rows: Sequences, family: str
) -> None:
    model = make_model(tmp_path / "model", family)
    work = thinning(model)
    run = work.run
    work.gather()
    lying = sum(path.stat().st_size for path in work.stage.folder.glob("gathered-*"))
    assert thin_disk(work.stream) == pytest.approx(lying, rel=0.5) and thin_disk(work.stream) < lying
    work.thin(48)
    whole, cut = run.source.read("model.embed_tokens.weight"), read(run, "model.embed_tokens.weight")
    assert isinstance(whole, Tensor)
    kept = [next(at for at in range(64) if torch.equal(column, whole[:, at])) for column in cut.T]
    for norm in ("model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm", "model.norm"):
        states = seen(model, rows, norm).square()
        factor = (float((states / states.sum(1, keepdim=True)).mean(0)[kept].sum()) * 64 / 48) ** 0.5
        before = run.source.read(f"{norm}.weight")
        assert isinstance(before, Tensor)
        torch.testing.assert_close(read(run, f"{norm}.weight"), before[kept] * factor, rtol=1e-4, atol=1e-5)
    for name in ("model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj"):
        x, weight = seen(model, rows, name), run.source.read(f"{name}.weight")
        assert isinstance(weight, Tensor)
        h = x.T @ x
        h = h.diagonal().diag() + 0.5 * (h - h.diagonal().diag())
        ridge = 0.01 * h[kept][:, kept].diagonal().mean() * torch.eye(48, dtype=torch.float64)
        right = weight.double() @ h[:, kept] + weight.double()[:, kept] @ ridge
        solved = torch.linalg.solve(h[kept][:, kept] + ridge, right.T).T
        torch.testing.assert_close(read(run, f"{name}.weight").double(), solved, rtol=1e-3, atol=1e-3)
    rows_of = read(run, "model.layers.0.mlp.down_proj.weight")
    down = run.source.read("model.layers.0.mlp.down_proj.weight")
    assert isinstance(down, Tensor) and torch.equal(rows_of, down[kept])


def test_a_kill_costs_the_layer_at_hand(
    tiny_llama: Path, thinning: Callable[..., Thinning], killed_at: Callable[[int], AbstractContextManager[None]]
) -> None:
    whole = thinning(tiny_llama, "whole")
    whole.gather()
    expected = [record.sha256 for record in whole.thin(48)]
    assert len(expected) == 3
    for at in range(1, 7):
        begun = thinning(tiny_llama, f"killed-{at}")
        with killed_at(at):
            begun.gather()
            begun.thin(48)
        done = begun.run.journal.of(Gathered) + begun.run.journal.of(Thinned)  # type: ignore[operator]
        assert len(done) == at - 1
        again = thinning(tiny_llama, f"killed-{at}")
        again.gather()
        assert [record.sha256 for record in again.thin(48)] == expected
        assert not list(again.stage.folder.glob("gathered-*"))


def test_a_norm_that_does_more_is_refused(tiny_llama: Path) -> None:
    norm = AutoModelForCausalLM.from_pretrained(tiny_llama).model.norm
    _refuse_offset("norm", norm)
    norm.weight.data -= 1
    norm.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(RefusedError, match="no plain root mean square"):
        _refuse_offset("norm", norm)


def test_repair_takes_time(tiny_llama: Path, thinning: Callable[..., Thinning]) -> None:
    work = thinning(tiny_llama)
    bare = Choice("activation", False, 0.5, False)
    less, more = (thin_effort(work.run.model.spec, work.stream, choice, 48, 100).flops for choice in (bare, CHOICE))
    assert 0 < less < more
