"""compressed-tensors' script: its decompressor gives what our reader decodes, and a model of that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.recipes.recipe import from_data
from compress.recipes.run import run

pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed: pip install compress-llm[dev]")

from compress.recipes.engines.scripts import compressed_tensors

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]
INT4: dict[str, Any] = {"bits": 4, "group_size": 32}
STEPS: dict[str, list[dict[str, Any]]] = {
    "packed": [{"rtn": INT4}],
    "asymmetric": [{"rtn": {**INT4, "symmetric": False}}],
    "of two widths": [{"rtn": {**INT4, "bits": {"*.down_proj": 8, "default": 4}}}],
    "fp8 with scales of inputs left over": [
        {"calibrate": {"samples": 2, "seq_len": 16}}, {"fp8": {"activations": "static"}},
    ],
    "some layers dense": [{"rtn": {**INT4, "skip": ["*.0.*"]}}],
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_it_answers_as_our_reader_decodes(
    case: str, tiny_llama: Path, tmp_path: Path, our_log_probs: Callable[..., Tensor]
) -> None:
    steps = [*STEPS[case], {"export": {"dialect": "compressed-tensors", "dtype": "float32"}}]
    report = run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out")
    path = Path(report.artifacts[0].path)
    found = torch.tensor(compressed_tensors.answer(str(path), ROWS))
    torch.testing.assert_close(found, our_log_probs(path, tiny_llama, ROWS), rtol=0, atol=1e-4)
    assert found.std() > 0.5
