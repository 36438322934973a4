"""Calibration text sampled from the model itself, for where no text is at hand (arXiv 2305.17888, LLM-QAT)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compress.formats.base import ModelSpec
from compress.kernels.effort import Effort
from compress.passes.core.run import Run
from compress.passes.model.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 16
_CALLS = 8
"""Small operators for each tensor and step: norms, rotations, the cache, and what picks a token."""


def sample_sequences(run: Run, tokenizer: PreTrainedTokenizerBase, samples: int, seq_len: int) -> Sequences:
    """`samples` sequences of `seq_len` tokens that the untouched model makes up, each from a random first token.

    Needs the whole model in memory, which nothing else does. Seeded by the run's seed.
    """
    from compress.passes.model.loading import load_model

    run.reporter.tell("loading the whole model")
    model = load_model(run.source, run.device)
    special = set(tokenizer.all_special_ids)
    usual = torch.tensor([i for i in range(model.config.get_text_config().vocab_size) if i not in special])
    torch.manual_seed(run.seed)
    first = usual[torch.randint(len(usual), (samples, 1))].to(run.device)
    run.reporter.start("sample text", -(-samples // _BATCH), "batch")
    parts = []
    for batch in first.split(_BATCH):
        ids = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            min_new_tokens=seq_len - 1,
            max_new_tokens=seq_len - 1,
            pad_token_id=tokenizer.eos_token_id or 0,
        )
        parts.append(ids.cpu())
        run.reporter.advance()
    run.reporter.finish()
    return Sequences(torch.cat(parts))


def sample_effort(model: ModelSpec, samples: int, seq_len: int) -> Effort:
    """What it takes to sample: every token of a batch reads all weights, and is a product with each."""
    steps = -(-samples // _BATCH) * seq_len
    calls = _CALLS * len(model.tensors)
    return Effort(2 * samples * seq_len * model.parameters, steps * model.parameters, steps * calls)
