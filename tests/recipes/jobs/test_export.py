"""`compress export` speaks the words of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats.errors import RefusedError
from compress.recipes.jobs.export import export


def test_hints_name_options_of_the_command(tiny_llama: Path, written_as: Callable[..., Path], tmp_path: Path) -> None:
    artifact = str(written_as("gptq", tiny_llama, tmp_path / "made"))
    with pytest.raises(RefusedError) as caught:
        export(artifact, "bitsandbytes", {}, tmp_path / "out")
    assert "--requantize" in caught.value.hint and caught.value.hint.startswith(
        "--dialect awq holds it exactly (so does "
    )
    assert "requantize: true" not in caught.value.hint and "dialect: " not in caught.value.hint


def test_so_does_the_hint_for_a_model_that_is_not_quantized(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no tensor is quantized") as caught:
        export(str(tiny_llama), "gptq", {}, tmp_path / "out")
    assert caught.value.hint == "use --dialect dense"
