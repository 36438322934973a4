"""GPTQModel's script, with a GPTQModel made up here: which kernels it is told to take, and how many cores it sees."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress.recipes.engines.scripts import gptqmodel

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the loader was asked for; it loads a dense model."""
    told: dict[str, Any] = {}

    def load(path: str, **options: Any) -> Any:
        told.update(options, cores=os.cpu_count())
        return SimpleNamespace(model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))

    backends = SimpleNamespace(AWQ_TORCH="awq", GPTQ_TORCH="gptq")
    stub = SimpleNamespace(BACKEND=backends, GPTQModel=SimpleNamespace(load=load))
    monkeypatch.setitem(sys.modules, "gptqmodel", stub)
    return told


@pytest.mark.parametrize(("cores", "seen"), [(None, 4), (2, 4), (8, 8)])
def test_it_computes_on_the_cpu_and_sees_no_fewer_cores_than_it_plans_for(
    cores: int | None, seen: int, asked: dict[str, Any], tiny_llama: Path, log_probs: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    found = torch.tensor(gptqmodel.answer(str(tiny_llama), ROWS))
    torch.testing.assert_close(found, log_probs(tiny_llama, ROWS))
    assert asked == {"device": "cpu", "backend": "gptq", "cores": seen}


@pytest.mark.parametrize(("method", "backend"), [("awq", "awq"), ("gptq", "gptq")])
def test_kernels_are_those_of_the_container(
    method: str, backend: str, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", os.cpu_count)  # put back afterwards
    monkeypatch.setattr(gptqmodel, "next_log_probs", lambda model, sequences: [])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: torch.nn.Module())
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    assert gptqmodel.answer(str(tmp_path), ROWS) == []
    assert asked["backend"] == backend
