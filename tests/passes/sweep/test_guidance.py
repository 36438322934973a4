"""Tokens weighted by the end loss: gathered before the sweep, resumable at any boundary, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats.files.native import NativeFile, save_tensors
from compress.kernels.qtensor import QTensor
from compress.kernels.solve.gptq import gptq_solve
from compress.passes.awq import AWQ
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Drift, Hessian
from compress.passes.gptq import GPTQ
from compress.passes.sweep import guidance
from compress.passes.sweep.guidance import Guidance, WalkedBack
from compress.passes.sweep.units import Unit

Begin, CarryOut = Callable[..., Run], Callable[..., Run]
OPTIONS: dict[str, Any] = {"group_size": 32, "end_loss": True}


def codes(run: Run) -> dict[str, Tensor]:
    tensors = {name: run.model.read(f"{name}.weight") for name in run.skeleton.anatomy.linears}
    return {name: tensor.codes for name, tensor in tensors.items() if isinstance(tensor, QTensor)}


def differing(one: Run, other: Run) -> list[float]:
    """The part of each weight's codes that differ."""
    pairs = zip(codes(one).values(), codes(other).values(), strict=True)
    return [float((a != b).float().mean()) for a, b in pairs]


def save_ones(path: Path, found: Mapping[str, Tensor]) -> None:
    save_tensors(path, {name: torch.ones_like(weights) for name, weights in found.items()})


@pytest.mark.parametrize("options", [{}, {"correct": True, "tune": True}])
def test_tokens_that_count_alike_give_what_is_given_without(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """But for few codes: rows are solved in other company, which may turn the last bit of a product."""
    plain = carry_out(begin(tiny_llama, tmp_path / "plain"), GPTQ(group_size=32, **options))
    guided = carry_out(begin(tiny_llama, tmp_path / "guided"), GPTQ(**OPTIONS, **options))
    assert min(differing(plain, guided)) > 0.05
    monkeypatch.setattr(guidance, "save_tensors", save_ones)
    for parts in (1, 3):
        alike = carry_out(begin(tiny_llama, tmp_path / f"{parts}"), GPTQ(**OPTIONS, **options, end_loss_parts=parts))
        assert max(differing(plain, alike)) < 0.01


def test_every_part_is_solved_with_its_own_hessian(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[tuple[dict[str, Tensor], LinearStats]] = []
    siblings = GPTQ.siblings

    def noted(step: GPTQ, weights: dict[str, Tensor], stats: LinearStats) -> Any:
        solved.append(({name: weight.clone() for name, weight in weights.items()}, stats))
        return siblings(step, weights, stats)

    monkeypatch.setattr(GPTQ, "siblings", noted)
    step = GPTQ(**OPTIONS, end_loss_parts=2)
    run = carry_out(begin(tiny_llama, tmp_path / "work"), step)
    for weights, stats in solved:
        assert Drift not in stats and Hessian in stats
        for name, weight in weights.items():
            number_format = step.number_format(name)
            assert number_format is not None
            hessians = [part[Hessian].matrix for part in stats.parts[name]]
            assert len(hessians) == 2 and not torch.allclose(hessians[0], hessians[1], rtol=0.01)
            halves = [gptq_solve(w, h, number_format)[0].codes for w, h in zip(weight.chunk(2), hessians)]
            assert torch.equal(codes(run)[name], torch.cat(halves))


def test_what_is_kept_are_weights_of_tokens_in_halves(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    run = carry_out(begin(tiny_llama, tmp_path / "work"), GPTQ(**OPTIONS, end_loss_parts=4, skip=("q_proj",)))
    back = run.journal.of(WalkedBack)
    assert [record.boundary for record in back] == [2, 1, 0] and back[0].file == ""
    (folder,) = run.work.glob("stage-*")
    for record, layer in zip(reversed(back[1:]), run.skeleton.anatomy.layers):
        file = NativeFile(folder / record.file)
        assert set(file.specs) == {name for name in layer.modules if not name.endswith("q_proj")}
        assert {(spec.shape, spec.dtype) for spec in file.specs.values()} == {((6, 24, 4), "float16")}
    assert not list(folder.glob("hidden-guide*"))


def test_it_goes_on_where_it_was_cut_off(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut, killed_at: Callable[[int], Any]
) -> None:
    """Two boundaries there, three back, then the layers, each by a run that is cut off at the next: the same codes."""
    step = GPTQ(**OPTIONS, correct=True)
    whole = carry_out(begin(tiny_llama, tmp_path / "whole"), step)
    for committed in range(1, 7):
        with killed_at(2):
            carry_out(cut := begin(tiny_llama, tmp_path / "cut"), step)
        assert len(cut.journal.records) == committed
    again = carry_out(begin(tiny_llama, tmp_path / "cut"), step)
    assert max(differing(whole, again)) == 0
    kinds = [[record["kind"] for record in run.journal.records] for run in (again, whole)]
    assert kinds[0] == kinds[1] == ["Boundary"] * 2 + ["WalkedBack"] * 3 + ["Unit"] * 2


def test_it_goes_with_a_pass_that_scales_the_inputs(
    tiny_llama: Path, tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    """Weighted statistics that were not those of the scaled inputs would leave errors many times as large."""
    errors = []
    for number, step in enumerate((GPTQ(group_size=32), GPTQ(**OPTIONS, end_loss_parts=2))):
        run = carry_out(begin(tiny_llama, tmp_path / f"{number}"), AWQ(group_size=32), step)
        reports = run.left.reports.values()
        assert any("fold" in report for report in reports)
        errors.append(sum(float(report["relative_error"]) for report in reports))
    assert errors[0] < errors[1] < 1.5 * errors[0]


def test_the_head_has_no_weights_of_tokens_and_is_solved_without(
    make_model: Callable[..., Path], tmp_path: Path, begin: Begin, carry_out: CarryOut
) -> None:
    source = make_model(tmp_path / "untied", "qwen3")
    options = {"group_size": 32, "include": ("lm_head",)}
    plain = carry_out(begin(source, tmp_path / "plain"), GPTQ(**options))
    guided = carry_out(begin(source, tmp_path / "guided"), GPTQ(**options, end_loss=True))
    one, other = (run.model.read("lm_head.weight") for run in (plain, guided))
    assert isinstance(one, QTensor) and isinstance(other, QTensor) and torch.equal(one.codes, other.codes)


def test_only_the_guided_are_guided(tiny_llama: Path, tmp_path: Path, begin: Begin) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    name = "model.layers.1.mlp.up_proj"
    found, half = (
        Guidance(run, Stage((), {}, run.work), {name: GPTQ(**OPTIONS, end_loss_share=share)}) for share in (1, 0.5)
    )
    found.gather()
    assert found.guide(0, run.skeleton.anatomy.layers[0].siblings[0], frozenset({Hessian})) is None
    guide = found.guide(1, ["model.layers.1.mlp.gate_proj", name], frozenset({Hessian}))
    assert guide is not None and set(guide.weights) == {name}
    mixed = half.guide(1, [name], frozenset({Hessian}))
    assert mixed is not None
    torch.testing.assert_close(mixed.weights[name], 0.5 * guide.weights[name] + 0.5)
    assert float(guide.weights[name].mean()) == pytest.approx(1, abs=1e-3)
    assert len(run.journal.of(Unit)) == 0
