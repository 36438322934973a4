"""What tests of `gqa` share: a small model of 8 heads, its logits, and transformers' model of what a run made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from compress.passes.core.run import Run
from compress.passes.model.sequences import Sequences

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip


def llama(**options: Any) -> PreTrainedConfig:
    return LlamaConfig(**{**SIZES, **options})


def logits(model: Path | torch.nn.Module, rows: Sequences) -> Tensor:
    """What transformers gives for `rows`."""
    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(rows.ids, use_cache=False).logits
    return found


def written(run: Run, source: Path, folder: Path) -> torch.nn.Module:
    """transformers' model of what a run has made of `source`, from its configuration and its tensors."""
    config = AutoModelForCausalLM.from_pretrained(source).config
    config.num_key_value_heads = run.model.spec.config["num_key_value_heads"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = {name: run.model.read(name) for name in run.model.spec.tensors}
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model
