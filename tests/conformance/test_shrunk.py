"""llama.cpp gives the logits of models that were made smaller, by each axis, as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.recipes.recipe import from_data
from compress.recipes.run import run

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.engine

PROMPT = [196, 171, 119, 86, 198]
SMALLER = {
    "channels": [{"ffn": 64}],
    "heads": [{"kv_heads": 1}],
    "layers": [{"layers": 2}],
    "stream": [{"hidden": 32}],
    "all": [{"layers": 2}, {"ffn": 64, "kv_heads": 1}, {"hidden": 32}],
}


@pytest.mark.parametrize("case", SMALLER)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_is_the_same_model(
    family: str, case: str, make_model: Callable[..., Path], corpus: Path, tmp_path: Path,
    llama_cpp: Callable[[Path], Any],
) -> None:  # fmt: skip
    model = make_model(tmp_path / "model", family, layers=3)
    steps: list[dict[str, Any]] = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}]
    steps += [{"shrink": {"multiple": 32, **options}} for options in SMALLER[case]]
    steps += [{"export": {"dialect": "dense", "dtype": "float32"}}, {"export": {"dialect": "gguf", "type": "f32"}}]
    run(from_data({"model": str(model), "passes": steps}), tmp_path / "out")
    smaller = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dense", dtype=torch.float32).eval()
    with torch.no_grad(), llama_cpp(tmp_path / "out" / "gguf-f32") as engine:
        for prompt in (PROMPT, PROMPT * 10):
            expected = smaller(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(engine.log_probabilities(prompt, 320), expected, rtol=0, atol=0.02)
