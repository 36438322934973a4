"""An importance matrix in place of text, and one for other tools: what it gives is what the text gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from told import Notes

from compress.formats import open_checkpoint
from compress.formats.errors import RefusedError, UsageError
from compress.formats.gguf.importance.file import read_imatrix
from compress.kernels.qtensor import QTensor
from compress.passes.awq import AWQ
from compress.passes.calibrate import Calibrate
from compress.passes.core.run import Run
from compress.passes.imatrix import Imatrix
from compress.passes.prune import Prune
from compress.passes.rtn import RTN
from compress.recipes.plan import plan
from compress.recipes.recipe import from_data
from compress.recipes.run import run

STEP = RTN(group_size=32, search="inputs")


@pytest.fixture
def written(
    tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run], carry_out: Callable[..., Run]
) -> tuple[Run, Path]:
    """A run that has written its importance matrix."""
    run = carry_out(begin(tiny_llama, tmp_path / "first"), Imatrix())
    return run, run.output / "imatrix.gguf"


def test_it_holds_the_energy_of_inputs(written: tuple[Run, Path]) -> None:
    """Of the first layer that can be computed by hand: q, k and v take the normed embeddings."""
    run, path = written
    entries = read_imatrix(path)
    assert len(entries) == 2 * 7
    read = run.source.read
    embedding, norm = read("model.embed_tokens.weight"), read("model.layers.0.input_layernorm.weight")
    assert isinstance(embedding, torch.Tensor) and isinstance(norm, torch.Tensor) and run.left.calibration is not None
    hidden = embedding[run.left.calibration.ids.flatten()].double()
    inputs = hidden * (hidden.square().mean(-1, keepdim=True) + run.source.spec.config["rms_norm_eps"]).rsqrt() * norm
    for name in ("q", "k", "v"):
        sums, tokens = entries[f"blk.0.attn_{name}.weight"].matrix(0, 1, 64)
        assert tokens == run.left.calibration.tokens
        torch.testing.assert_close(sums.double(), inputs.square().sum(0), rtol=1e-5, atol=0)


def test_codes_from_it_are_those_from_the_text(
    written: tuple[Run, Path], begin: Callable[..., Run], carry_out: Callable[..., Run], tmp_path: Path
) -> None:
    """In the first layer: what comes into the second, text runs through rounded weights to."""
    text, path = written
    other = begin(text.source.path, tmp_path / "second")
    carry_out(other, Calibrate(imatrix=str(path)))
    assert other.left.calibration is None and other.left.energies is not None
    plain = begin(text.source.path, tmp_path / "third")
    for each, step in ((text, STEP), (other, STEP), (plain, RTN(group_size=32, search="weights"))):
        carry_out(each, step)
    name = "model.layers.0.self_attn.q_proj.weight"
    by_text, by_matrix, by_nothing = (each.model.read(name) for each in (text, other, plain))
    assert isinstance(by_text, QTensor) and isinstance(by_matrix, QTensor) and isinstance(by_nothing, QTensor)
    assert torch.equal(by_text.codes, by_matrix.codes) and not torch.equal(by_text.codes, by_nothing.codes)


@pytest.mark.parametrize("step", [AWQ(group_size=32), Prune(method="wanda", solve=False)], ids=["awq", "wanda"])
def test_passes_that_need_no_more_run_on_it(
    step: AWQ | Prune, written: tuple[Run, Path], begin: Callable[..., Run], carry_out: Callable[..., Run],
    tmp_path: Path,
) -> None:  # fmt: skip
    other = carry_out(begin(written[0].source.path, tmp_path / "second"), Calibrate(imatrix=str(written[1])))
    carry_out(other, step)
    assert len(other.left.reports) == 14 and not any("reason" in said for said in other.left.reports.values())
    if isinstance(step, AWQ):  # what wanda picks in the first layer the text picks as well
        assert any(said.get("fold", "").endswith("layernorm") for said in other.left.reports.values())


@pytest.mark.parametrize(("step", "said"), [
    ({"gptq": {"group_size": 32}}, "gptq needs the products of every two inputs; an imatrix"),
    ({"gptq": {"group_size": 32, "correct": True}}, "the untouched model's inputs"),
    ({"int8": {"activations": "static"}}, "int8 needs how often every size"),
    ({"kv_cache": {}}, "kv_cache runs text through the model"),
])  # fmt: skip
def test_others_are_refused_by_the_plan_with_the_reason(
    step: dict[str, object], said: str, written: tuple[Run, Path]
) -> None:
    steps = [{"calibrate": {"imatrix": str(written[1])}}, step, {"export": {"dialect": "compressed-tensors"}}]
    with pytest.raises(RefusedError, match=said) as refused:
        plan(from_data({"model": str(written[0].source.path), "passes": steps}))
    assert "calibrate on text" in str(refused.value.hint)


def test_text_and_a_matrix_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="leave samples out"):
        from_data({"model": "m", "passes": [{"calibrate": {"imatrix": "a.gguf", "samples": 4}}]})


def test_experts_that_were_never_reached_fall_back_alone_and_are_named(
    make_model: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    source, told = make_model(tmp_path / "moe", "qwen3_moe", layers=1), Notes()
    text = {"calibrate": {"data": str(corpus), "samples": 1, "seq_len": 3}}
    run(from_data({"model": str(source), "passes": [text, {"imatrix": {}}]}), tmp_path / "a", reporter=told)
    counts = read_imatrix(tmp_path / "a" / "imatrix.gguf")["blk.0.ffn_down_exps.weight"].counts
    left = [f"model.layers.0.mlp.experts.{number}.down_proj" for number in range(8) if not counts[number]]
    assert 2 <= len(left) < 8 and counts.sum() == 6 and all(name in " ".join(told.said) for name in left)
    matrix, again = {"calibrate": {"imatrix": str(tmp_path / "a" / "imatrix.gguf")}}, Notes()
    steps = [matrix, {"rtn": {"group_size": 32, "search": "inputs"}}, {"export": {"dialect": "dense"}}]
    run(from_data({"model": str(source), "passes": steps}), tmp_path / "b", reporter=again)
    said = " ".join(again.said)
    assert all((f"experts.{number}.down_proj" in said) == (not counts[number]) for number in range(8))
    assert open_checkpoint(tmp_path / "b" / "dense").spec.parameters
