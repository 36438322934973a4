"""What an engine's answer is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.formats import open_checkpoint
from compress.kernels.qtensor import QTensor

LogProbs = Callable[[Path, Sequence[list[int]]], Tensor]


@pytest.fixture
def log_probs() -> LogProbs:
    """log_probs(dense directory, sequences): fp32 [sequences, vocabulary], as transformers computes them."""

    @torch.no_grad()
    def compute(path: Path, sequences: Sequence[list[int]]) -> Tensor:
        return _after(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), sequences)

    return compute


@pytest.fixture
def our_log_probs() -> Callable[[Path, Path, Sequence[list[int]]], Tensor]:
    """our_log_probs(artifact, dense directory, sequences): the same of the weights that our own reader decodes."""

    @torch.no_grad()
    def compute(artifact: Path, dense: Path, sequences: Sequence[list[int]]) -> Tensor:
        model, read = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32), values_of(artifact)
        model.load_state_dict(read, strict=False)  # scales of inputs stay over
        return _after(model, sequences)

    return compute


def values_of(artifact: Path) -> dict[str, Tensor]:
    """Every tensor as our reader decodes it, fp32."""
    opened = open_checkpoint(artifact)
    read = {name: opened.read(name) for name in opened.spec.tensors}
    return {name: (value.dequantize() if isinstance(value, QTensor) else value).float() for name, value in read.items()}


def _after(model: torch.nn.Module, sequences: Sequence[list[int]]) -> Tensor:
    return torch.stack([model(torch.tensor([sequence])).logits[0, -1].log_softmax(-1) for sequence in sequences])
