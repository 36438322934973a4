"""What narrower layers give with every linear corrected, and with the narrowed ones alone, by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.passes.core.run import Run
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import decoded
from compress.passes.narrow import ways
from compress.passes.shrink import Shrink


def last_states(source: Path, done: Run | None, rows: Sequences) -> Tensor:
    """What the last norm takes, of the model of `done` where there is one."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters() if done else ():
        parameter.data = decoded(done.model.read(name)) if done else parameter.data
    taken = list[Tensor]()
    model.model.norm.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    with torch.no_grad():
        model(rows.ids, use_cache=False)
    return taken[0]


def test_linears_that_keep_their_shapes_make_up_for_layers_before(
    tmp_path: Path, make_model: Callable[..., Path], rows: Sequences, begin: Callable[..., Run],
    carry_out: Callable[..., Run], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = make_model(tmp_path / "model", "llama", layers=4)
    untouched, step = last_states(source, None, rows), Shrink(ffn=64, multiple=32, correct=True)

    def lost(work: str) -> float:
        done = carry_out(begin(source, tmp_path / work), step)
        return float((last_states(source, done, rows) - untouched).square().sum())

    all_of_them = lost("all")
    monkeypatch.setattr(ways, "corrections", lambda layer, narrowed: ())
    assert all_of_them < 0.9 * lost("narrowed")
