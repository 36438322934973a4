"""transformers' script: its own loader answers, with integer kernels in plain torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.recipes.engines.scripts import transformers

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]


def test_a_dense_model_is_asked_as_it_is(tiny_llama: Path, log_probs: Callable[..., Tensor]) -> None:
    found = torch.tensor(transformers.answer(str(tiny_llama), ROWS))
    torch.testing.assert_close(found, log_probs(tiny_llama, ROWS))


@pytest.mark.parametrize(
    ("settings", "backend"),
    [({"quant_method": "gptq", "bits": 3}, "gptq_torch"), ({"quant_method": "awq", "bits": 4}, "torch_awq")],
)
def test_integers_are_computed_in_plain_torch(settings: dict[str, Any], backend: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    config = transformers.options(str(tmp_path))["quantization_config"]
    assert (config.backend, config.bits) == (backend, settings["bits"])


@pytest.mark.parametrize("config", [{}, {"quantization_config": {"quant_method": "compressed-tensors"}}])
def test_other_containers_need_no_word(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert transformers.options(str(tmp_path)) == {}


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are there, as far as the script sees; empty it, and none is."""
    names = {"fastapi", "uvicorn", "openai", "gptqmodel"}
    monkeypatch.setattr(transformers, "find_spec", lambda name: name in names)
    return names


def test_a_gguf_file_is_named_behind_its_directory(tmp_path: Path, present: set[str]) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    assert transformers.options(str(tmp_path)) == {"gguf_file": "tiny.gguf"}
    for path in (tmp_path, file):
        assert f"{tmp_path}:tiny.gguf" in transformers.command(str(path), 8123)


def test_its_server_listens_on_the_loopback_interface_unless_told(tmp_path: Path, present: set[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = transformers.command(str(tmp_path), 8123)
    assert command[0] == sys.executable
    assert command[4:] == [str(tmp_path), "--host", "127.0.0.1", "--port", "8123"]
    assert transformers.command(str(tmp_path), 8123, host="::1")[-4:] == ["--host", "::1", "--port", "8123"]


@pytest.mark.parametrize(
    ("method", "gone", "missing"),
    [("gptq", "openai", r"'transformers\[serving\]'"), ("awq", "gptqmodel", "'gptqmodel'")],
)
def test_what_its_server_needs_is_looked_for(
    method: str, gone: str, missing: str, present: set[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": method}}))
    assert transformers.command(str(tmp_path), 8123)
    present.remove(gone)
    with pytest.raises(ModuleNotFoundError, match=f"No module named {missing}"):
        transformers.command(str(tmp_path), 8123)


def test_a_writer_tells_when_each_token_came(tiny_llama: Path) -> None:
    write = transformers.writer(str(tiny_llama), threads=1, context=16, parallel=2)
    for _ in range(2):
        one, other = write([[5, 6, 7], [1, 2, 3]], 4)
        assert [number for _, number in one] == [1, 2, 3, 4]
        times = [seconds for seconds, _ in one]
        assert one == other and times == sorted(times) and times[0] > 0


def test_a_draft_that_is_right_brings_several_tokens_at_once(tiny_llama: Path) -> None:
    write = transformers.writer(str(tiny_llama), threads=1, context=40, parallel=1, draft=str(tiny_llama))
    ((*_, last),) = found = write([[5, 6, 7]], 32)
    assert last[1] == 32 and len(found[0]) < 32
    with pytest.raises(ValueError, match="one conversation at a time"):
        transformers.writer(str(tiny_llama), threads=1, context=40, parallel=2, draft=str(tiny_llama))
