"""The conformance table's own judgement: an engine that answers nothing is not right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants

sys.path.insert(0, str(Path(__file__).with_name("table")))
from cells import compared, inputs_of, is_green, rounded_in_blocks, silent


def test_an_answer_of_nan_is_silence() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    assert silent(torch.full((3, 50), float("nan")), expected) == pytest.approx(1)
    assert silent(expected, expected) == pytest.approx(0, abs=1e-6)
    unlikely = expected.clone()
    unlikely[0, expected[0].argmin()] = float("nan")
    assert silent(unlikely, expected) < 0.01
    assert silent(expected[:, :10], expected) > 0.5


def test_inputs_are_rounded_as_ggml_does() -> None:
    x = torch.randn(5, 96) * torch.logspace(-3, 3, 96)
    x[0] = 0
    blocks = quants.quantize(x.numpy(), GGMLQuantizationType.Q8_0)
    meant = torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType.Q8_0))
    torch.testing.assert_close(rounded_in_blocks(x), meant, rtol=1e-6, atol=0)


def test_who_rounds_inputs(tmp_path: Path) -> None:
    assert inputs_of("llama_cpp", tmp_path) == inputs_of("vllm", tmp_path) == "as written"
    (tmp_path / "model.gguf").touch()
    assert (inputs_of("llama_cpp", tmp_path), inputs_of("transformers", tmp_path)) == ("in blocks", "as written")
    assert inputs_of("bitsandbytes", tmp_path) == "kept"


def test_a_cell_is_green_where_the_divergence_is_small() -> None:
    expected = torch.randn(3, 50).log_softmax(-1)
    other = torch.randn(3, 50).log_softmax(-1)
    assert is_green({**compared(expected, expected), "limit": 0.05})
    assert not is_green({**compared(other, expected), "limit": 0.05})
    assert not is_green({"message": "no"})
