"""What several engines' scripts need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from compress.recipes.engines.scripts import gguf_file, in_float32, next_log_probs, stored

LogProbs = Callable[[Path, Sequence[list[int]]], Tensor]


def test_a_model_is_asked_for_the_token_after_each_sequence(tiny_llama: Path, log_probs: LogProbs) -> None:
    sequences = [[196, 171, 119], [5, 6, 7, 8, 9]]
    model = in_float32(AutoConfig.from_pretrained(tiny_llama), stored(str(tiny_llama)))
    found = torch.tensor(next_log_probs(model, sequences))
    torch.testing.assert_close(found, log_probs(tiny_llama, sequences))
    assert found.std() > 0.5


def test_weights_are_all_there_and_no_more(tiny_llama: Path) -> None:
    config, weights = AutoConfig.from_pretrained(tiny_llama), load_file(tiny_llama / "model.safetensors")
    first = next(iter(weights))
    with pytest.raises(KeyError, match=first):
        in_float32(config, {name: value for name, value in weights.items() if name != first})
    more = {**weights, "model.layers.0.self_attn.k_scale": torch.ones(1)}
    with pytest.raises(KeyError, match="k_scale"):
        in_float32(config, more)
    assert in_float32(config, more, ignored=("_scale",)).dtype == torch.float32


def test_a_gguf_file_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    assert gguf_file(str(tmp_path)) is None
    file = tmp_path / "tiny-Q8_0.gguf"
    file.touch()
    assert gguf_file(str(tmp_path)) == gguf_file(str(file)) == file
