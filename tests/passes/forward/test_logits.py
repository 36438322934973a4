"""Logits of several models side by side are those of each alone; transformers' own forward is the judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.passes.forward.heap import return_freed_memory
from compress.passes.forward.logits import logits_of
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.weights import dense


def test_each_models_logits_are_its_own(family: str, tmp_path: Path, make_model: Callable[..., Path]) -> None:
    paths = [make_model(tmp_path / str(seed), family, seed=seed) for seed in (0, 1)]
    opened = [Skeleton.open(open_checkpoint(path), torch.device("cpu")) for path in paths]
    ids = torch.randint(1, 320, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = logits_of(opened[0][1], Sequences(ids), [dense(model) for model, _ in opened])
        for path, logits in zip(paths, found):
            expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(ids).logits[0]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_returning_memory_leaves_what_is_in_use_alone() -> None:
    kept = torch.arange(1 << 20)
    del_me = [torch.zeros(1 << 16) for _ in range(64)]
    del_me.clear()
    return_freed_memory()
    assert torch.equal(kept, torch.arange(1 << 20))
