"""The repair of what merged heads lose: least squares, whether or not batches can be held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gqa_model import llama, logits, written
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.passes.core.run import Run
from compress.passes.gqa import GQA
from compress.passes.model.sequences import Sequences


def test_the_repair_is_the_least_squares_of_the_untouched_outputs(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run],
) -> None:  # fmt: skip
    """Layer 0: inputs of the output's linear by transformers, before and after; the solution in fp64."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    bare, repaired = (
        written(carry_out(begin(source, tmp_path / str(on)), GQA(kv_heads=1, repair=on)), source, tmp_path)
        for on in (False, True)
    )
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    seen: list[Tensor] = []
    for model in (whole, bare):
        output = model.model.layers[0].self_attn.o_proj
        output.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1).double()))
        logits(model, rows)
    turned, found = (model.model.layers[0].self_attn.o_proj.weight.double() for model in (bare, repaired))
    wanted = seen[0] @ whole.model.layers[0].self_attn.o_proj.weight.double().T
    hessian = seen[1].T @ seen[1]
    ridge = 0.1 * hessian.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    solved = torch.linalg.solve(hessian + ridge, seen[1].T @ wanted + ridge @ turned.T).T
    torch.testing.assert_close(found, solved, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("repair", [False, True])
def test_little_memory_gives_the_same(
    tmp_path: Path, make_model: Callable[..., Path], begin: Callable[..., Run], carry_out: Callable[..., Run],
    repair: bool,
) -> None:  # fmt: skip
    """Where batches cannot be held, statistics are gathered apart: those of the output still after heads are merged."""
    source = make_model(tmp_path / "model", "llama", config=llama())
    step = GQA(kv_heads=1, repair=repair)
    held, apart = (carry_out(begin(source, tmp_path / str(ram), ram), step).model for ram in (1 << 34, 1 << 10))
    for name in held.spec.tensors:
        torch.testing.assert_close(apart.read(name), held.read(name), rtol=1e-4, atol=1e-4)
