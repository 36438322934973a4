"""A recipe that a stranger would write first, its text, and a run of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.recipes.recipe import from_data
from compress.recipes.run import run

_GOOD = """\
model: here
passes:
  - calibrate:
      data: text.txt
  - gptq:
      bits: [{match: "*.down_proj", value: 8}, {value: 4}]
      group_size: 64
  - evaluate:
  - export: {dialect: gguf, type: q8_0}
gates: {max_kl: 1}
"""


@pytest.fixture
def good() -> str:
    """The text of a recipe without a mistake."""
    return _GOOD


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """write(text) → the path of a file recipe.yaml that holds it."""

    def save(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return save


@pytest.fixture
def written_as() -> Callable[..., Path]:
    """written_as(dialect, model, out, **options of the export) → the artifact's directory; the weights are int4."""

    def write(dialect: str, model: Path, out: Path, **options: Any) -> Path:
        steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": dialect, **options}}]
        return Path(run(from_data({"model": str(model), "passes": steps}), out).artifacts[0].path)

    return write
