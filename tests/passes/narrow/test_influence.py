"""How far a layer turns the hidden states, against transformers' own hidden states in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.passes.core.run import Run
from compress.passes.forward.hidden import HiddenStates
from compress.passes.forward.walk import Stream, Walk
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import dense
from compress.passes.narrow.influence import influence


@pytest.mark.parametrize("padded", [False, True])
def test_it_is_one_less_the_mean_cosine(
    tmp_path: Path, tiny_llama: Path, rows: Sequences, begin: Callable[..., Run], padded: bool
) -> None:
    real = torch.ones_like(rows.ids, dtype=torch.bool)
    real[1, 10:] = not padded
    sequences = Sequences(rows.ids, real) if padded else rows
    run = begin(tiny_llama, tmp_path / "work")
    hidden = HiddenStates(tmp_path / "hidden", rows.length, run.skeleton.width, rows.count)
    walk, found = Walk(run.skeleton, sequences, [Stream(dense(run.model), hidden)]), list[float]()
    with torch.no_grad():
        walk.carry(0, lambda boundary: found.append(influence(walk, boundary)))
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        first = model.model(rows.ids, attention_mask=real.long(), output_hidden_states=True).hidden_states[:2]
    taken, given = (states.double() for states in first)
    cosines = (taken * given).sum(-1) / (taken.norm(dim=-1) * given.norm(dim=-1))
    assert len(found) == 2 and found[0] == pytest.approx(1 - float(cosines[real].mean()), abs=1e-6)
