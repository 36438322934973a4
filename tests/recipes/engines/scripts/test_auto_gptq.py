"""AutoGPTQ's script, with an AutoGPTQ made up here: it computes in fp32 on the CPU, without compiled kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]


def test_it_loads_plain_kernels_and_tells_of_every_token(
    tiny_llama: Path, log_probs: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def from_quantized(path: str, torch_dtype: torch.dtype, **options: Any) -> Any:
        asked.update(options)
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype)

    loader = SimpleNamespace(from_quantized=from_quantized)
    monkeypatch.setitem(sys.modules, "auto_gptq", SimpleNamespace(AutoGPTQForCausalLM=loader))
    from compress.recipes.engines.scripts import auto_gptq

    found = torch.tensor(auto_gptq.answer(str(tiny_llama), ROWS))
    torch.testing.assert_close(found, log_probs(tiny_llama, ROWS))
    assert asked == {"device": "cpu", "use_triton": False, "disable_exllama": True, "disable_exllamav2": True}
