"""A sweep: unit by unit, resumable at any, in one forward or two, with what was planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.formats.errors import UsageError
from compress.kernels.qtensor import QTensor
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.flow import Flow
from compress.passes.forward.cost.passage import Passage
from compress.passes.gptq import GPTQ
from compress.passes.rtn import RTN
from compress.passes.sweep.calibrated import calibration_walk
from compress.passes.sweep.sweep import sweep
from compress.passes.sweep.units import Unit

Begin, CarryOut = Callable[..., Run], Callable[..., Run]
NAME = "model.layers.1.mlp.up_proj.weight"


def codes(run: Run, name: str = NAME) -> torch.Tensor:
    tensor = run.model.read(name)
    assert isinstance(tensor, QTensor)
    return tensor.codes


def test_each_layer_is_a_unit_and_ends_come_in_the_forwards_order(
    make_model: Callable[..., Path], tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    step = RTN(group_size=32, include=("*",))
    source = make_model(tmp_path / "untied", "qwen3")
    run = carry_out(begin(source, tmp_path / "work"), step)
    layers = [layer.name for layer in run.skeleton.anatomy.layers]
    assert [unit.unit for unit in run.journal.of(Unit)] == ["model.embed_tokens", *layers, "lm_head"]
    assert run.left.authors[NAME] == "rtn" and run.left.reports[NAME.removesuffix(".weight")]["bits"] == 4.5
    assert run.model.spec.tensors == step.plan(run.source.spec, run.skeleton.anatomy).tensors


def test_a_sweep_goes_on_after_its_last_unit(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carry_out(begin(tiny_llama, tmp_path / "whole"), GPTQ(group_size=32))
    cut = begin(tiny_llama, tmp_path / "cut")
    append = cut.journal.append

    def once(record: Unit) -> None:
        append(record)
        raise KeyboardInterrupt

    monkeypatch.setattr(cut.journal, "append", once)
    with pytest.raises(KeyboardInterrupt):
        carry_out(cut, GPTQ(group_size=32))
    again = carry_out(begin(tiny_llama, tmp_path / "cut"), GPTQ(group_size=32))
    assert len(again.journal.of(Unit)) == 2
    for name in ("model.layers.0.mlp.up_proj.weight", NAME):
        assert torch.equal(codes(again, name), codes(whole, name))


def test_what_is_complete_is_not_computed_again(
    tiny_llama: Path, tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept() -> Outcome:
        run, step = begin(tiny_llama, tmp_path / "work"), RTN(group_size=32)
        return sweep(run, Stage([step], {"own": 1}, run.work), [step])

    first = swept()
    monkeypatch.setattr(RTN, "siblings", lambda *_: pytest.fail("computed again"))
    assert swept() == first and first.authors[NAME] == "rtn"


def test_two_forwards_give_what_one_gives_where_nothing_before_was_changed(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two forwards a layer's statistics are all of its old weights; q's inputs are the same either way."""
    held = carry_out(begin(tiny_llama, tmp_path / "held"), GPTQ(group_size=32))
    monkeypatch.setattr(Passage, "flow", lambda *_: Flow(hold=False))
    apart = carry_out(begin(tiny_llama, tmp_path / "apart"), GPTQ(group_size=32))
    first = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(codes(held, first), codes(apart, first))
    assert not torch.equal(codes(held), codes(apart))


def test_half_products_are_for_statistics_of_two_models(tiny_llama: Path, tmp_path: Path, begin: Begin) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    run.half = True
    stage = Stage([GPTQ()], {}, run.work)
    walks = {correct: calibration_walk(run, stage, GPTQ(correct=correct).needs()) for correct in (False, True)}
    assert {correct: (walk.half, len(walk.streams)) for correct, walk in walks.items()} == {
        False: (True, 1), True: (True, 2),
    }  # fmt: skip


def test_data_that_is_not_there_is_asked_for(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    run.left = Outcome()
    with pytest.raises(UsageError, match="gptq needs calibration data"):
        carry_out(run, RTN(group_size=32), GPTQ(group_size=32))


def test_bits_that_were_chosen_before_are_taken(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    run.left = Outcome(bits={NAME.removesuffix(".weight"): 8})
    carry_out(run, RTN(group_size=32))
    assert run.left.reports[NAME.removesuffix(".weight")]["bits"] == 8.5
    assert run.left.reports["model.layers.0.mlp.up_proj"]["bits"] == 4.5
