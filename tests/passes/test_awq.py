"""AWQ as a pass: better than rounding on every tensor, folded without a trace, and a start for gptq."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.kernels.qtensor import NumberFormat, QTensor, quantize
from compress.passes.awq import AWQ
from compress.passes.core.base import LayerPass
from compress.passes.core.change import Change
from compress.passes.core.linear import LinearPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.walk import Stream, Walk
from compress.passes.gptq import GPTQ
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense
from compress.passes.options.any_format import FormatOptions

ROWS, LENGTH = 16, 32
Swept = Callable[..., Run]


@pytest.fixture
def swept(
    tmp_path: Path, make_model: Callable[..., Path], begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> Swept:
    """swept(family, passes) → the run after one stage of `passes` over a tiny model with loud channels."""

    def run_stage(family: str, passes: Sequence[LayerPass], name: str = "run", max_ram: int = 1 << 32) -> Run:
        path = tmp_path / family
        if not path.exists():
            _make_loud(make_model(path, family))
        run = begin(path, tmp_path / name, max_ram)
        torch.manual_seed(0)
        run.left = Outcome(calibration=Sequences(torch.randint(1, 320, (ROWS, LENGTH))))
        return carry_out(run, *passes)

    return run_stage


def _make_loud(path: Path) -> None:
    """Norm weights that differ, as those of trained models do: some channels carry much more than others."""
    torch.manual_seed(1)
    tensors = load_file(path / "model.safetensors")
    for name, value in tensors.items():
        if value.ndim == 1 and name.endswith("weight"):
            value.mul_(torch.exp(torch.randn_like(value)))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def reports(run: Run) -> dict[str, Any]:
    return dict(run.left.reports)


def carried(run: Run) -> torch.Tensor:
    """The hidden states after the last layer, as the sweep's own forward went on with them."""
    (folder,) = run.work.glob("stage-*/hidden-0")
    return HiddenStates(folder, LENGTH, run.skeleton.width, ROWS).read(2, 0, ROWS)


def hidden_of(run: Run, tmp_path: Path) -> torch.Tensor:
    """The hidden states after the last layer of the committed model, computed anew."""
    assert run.left.calibration is not None
    hidden = HiddenStates(tmp_path / "anew", LENGTH, run.skeleton.width, ROWS)
    with torch.no_grad():
        Walk(run.skeleton, run.left.calibration, [Stream(dense(run.model), hidden)]).carry(0, lambda boundary: None)
    return hidden.read(2, 0, ROWS)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"symmetric": True}),
        ("llama", {"search": False}),
        ("qwen3", {"bits": 3}),
        ("gpt_neox", {}),
        ("llama", {"format": "nf4", "block_size": 32}),
        ("llama", {"format": "fp4", "block_size": 32, "double_quant": True}),
        ("llama", {"format": "mxfp4"}),
        ("llama", {"format": "nvfp4"}),
    ],
)
def test_errs_less_than_rounding_on_every_tensor(swept: Swept, family: str, options: dict[str, Any]) -> None:
    grid = {"group_size": 32, "bits": 4, "symmetric": False, **options}
    ours = reports(swept(family, [AWQ(**grid)], "awq"))
    grid.pop("search", None)
    # With statistics at hand, so that both report the error of their outputs.
    plain = reports(swept(family, [Nearest(**grid)], "rtn"))
    assert ours.keys() == plain.keys()
    for name, report in ours.items():
        if "layers.0" in name:  # the same inputs in both runs
            assert report["relative_error"] < plain[name]["relative_error"], name


class Nearest(FormatOptions, LinearPass):
    def needs(self) -> Any:
        return AWQ().needs()

    def linear(self, weight: torch.Tensor, stats: LinearStats, number_format: NumberFormat) -> Change:
        return Change(quantize(weight, number_format, number_format.fit(weight)))


@pytest.mark.parametrize(("family", "hold"), [("llama", True), ("llama", False), ("gpt_neox", True)])
def test_what_is_committed_is_what_the_forward_went_on_with(
    swept: Swept, family: str, tmp_path: Path, hold: bool
) -> None:
    run = swept(family, [AWQ(group_size=32)], max_ram=1 << 32 if hold else 1)
    went_on = carried(run)
    anew = hidden_of(run, tmp_path)
    assert float((anew - went_on).norm() / went_on.norm()) < 2e-3
    assert any(name.endswith("norm.weight") for name in run.model.rewritten)


def test_the_report_says_where_the_scale_went(swept: Swept) -> None:
    found = reports(swept("llama", [AWQ(group_size=32)]))
    folds = {name.removeprefix("model.layers.0."): r["fold"] for name, r in found.items() if "layers.0" in name}
    assert folds == {
        **{f"self_attn.{x}_proj": "model.layers.0.input_layernorm" for x in "qkv"},
        **{f"mlp.{x}_proj": "model.layers.0.post_attention_layernorm" for x in ("gate", "up")},
        "self_attn.o_proj": "model.layers.0.self_attn.v_proj",
        "mlp.down_proj": "model.layers.0.mlp.up_proj",
    }
    neox = reports(swept("gpt_neox", [AWQ(group_size=32)], "neox"))
    assert "left alone" in str(neox["gpt_neox.layers.0.mlp.dense_4h_to_h"]["fold"])


def test_a_group_that_is_not_quantized_as_a_whole_is_left_alone(swept: Swept) -> None:
    found = reports(swept("llama", [AWQ(group_size=32, skip=("*.k_proj",))]))
    assert "k_proj shares the input" in found["model.layers.0.self_attn.q_proj"]["fold"]
    assert found["model.layers.0.mlp.up_proj"]["fold"] == "model.layers.0.post_attention_layernorm"


def test_gptq_goes_on_from_the_scaled_weights(swept: Swept, tmp_path: Path) -> None:
    grid: dict[str, Any] = {"group_size": 32, "symmetric": False}
    alone = swept("llama", [AWQ(**grid)], "alone")
    both = swept("llama", [AWQ(**grid), GPTQ(**grid)], "both")
    first, second = reports(alone), reports(both)
    for name in (name for name in first if "layers.0.self_attn.q" in name or "layers.0.mlp.gate" in name):
        assert second[name]["relative_error"] < first[name]["relative_error"]
        assert second[name]["fold"] == first[name]["fold"] and "damp" in second[name]
    norm = "model.layers.0.input_layernorm.weight"
    norms = [run.model.read(norm) for run in (alone, both)]
    assert all(isinstance(value, torch.Tensor) for value in norms) and torch.equal(*norms)  # type: ignore[arg-type]
    codes = [run.model.read("model.layers.0.self_attn.q_proj.weight") for run in (alone, both)]
    assert isinstance(codes[0], QTensor) and isinstance(codes[1], QTensor)
    assert not torch.equal(codes[0].codes, codes[1].codes)
    went_on = carried(both)
    assert float((hidden_of(both, tmp_path) - went_on).norm() / went_on.norm()) < 2e-3
