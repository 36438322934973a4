"""bitsandbytes' script: its functions decode what our reader decodes, and a model of that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.formats import open_checkpoint
from compress.kernels.qtensor import QTensor
from compress.recipes.engines.scripts import stored
from compress.recipes.recipe import from_data
from compress.recipes.run import run

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install compress-llm[dev]")

from compress.recipes.engines.scripts import bitsandbytes

ROWS = [[5, 6, 7], [1, 2, 3, 4, 5]]


@pytest.fixture
def artifact(tiny_llama: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """artifact(pass) → the tiny llama after it, in bitsandbytes' container."""

    def write(step: dict[str, Any]) -> Path:
        steps = [step, {"export": {"dialect": "bitsandbytes", "dtype": "float32"}}]
        return Path(run(from_data({"model": str(tiny_llama), "passes": steps}), tmp_path / "out").artifacts[0].path)

    return write


@pytest.mark.parametrize("options", [{}, {"double_quant": True}, {"table": "fp4"}], ids=str)
def test_weights_are_those_that_our_reader_decodes(
    options: dict[str, Any], artifact: Callable[..., Path], tiny_llama: Path, our_log_probs: Callable[..., Tensor]
) -> None:
    path = artifact({"nf4": options})
    held, ours = bitsandbytes.decoded(stored(str(path))), open_checkpoint(path)
    assert set(held) == set(ours.spec.tensors)
    for name, value in held.items():
        meant = ours.read(name)
        assert torch.equal(value.float(), meant.dequantize() if isinstance(meant, QTensor) else meant.float()), name
    found = torch.tensor(bitsandbytes.answer(str(path), ROWS))
    torch.testing.assert_close(found, our_log_probs(path, tiny_llama, ROWS))


def test_rows_of_int8_are_decoded_by_their_scales() -> None:
    weight, scale = torch.tensor([[127, -127], [64, 0]], dtype=torch.int8), torch.tensor([2.0, 127.0])
    held = {"a.weight": weight, "a.SCB": scale, "a.weight_format": torch.zeros(1), "a.bias": torch.ones(2)}
    found = bitsandbytes.decoded(held)
    assert set(found) == {"a.weight", "a.bias"}
    torch.testing.assert_close(found["a.weight"], torch.tensor([[2.0, -2.0], [64.0, 0.0]]))


def test_another_container_is_refused(written_as: Callable[..., Path], tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quant_method is 'gptq'"):
        bitsandbytes.answer(str(written_as("gptq", tiny_llama, tmp_path / "out")), ROWS)
