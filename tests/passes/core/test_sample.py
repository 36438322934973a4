"""Text sampled from the model: as many sequences as asked for, seeded, begun with usual tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from compress.passes.core.run import Run
from compress.passes.core.sample import sample_sequences
from compress.passes.model.tokenizer import load_tokenizer


def test_sequences_are_full_and_the_seed_decides(tiny_llama: Path, tmp_path: Path, begin: Callable[..., Run]) -> None:
    run = begin(tiny_llama, tmp_path / "work")
    tokenizer = load_tokenizer(run.source)
    first, again = (sample_sequences(run, tokenizer, 18, 6) for _ in range(2))
    assert first.ids.shape == (18, 6) and first.mask is None
    assert torch.equal(first.ids, again.ids)
    run.seed = 1
    assert not torch.equal(sample_sequences(run, tokenizer, 18, 6).ids, first.ids)
    assert not set(first.ids[:, 0].tolist()) & set(tokenizer.all_special_ids)
