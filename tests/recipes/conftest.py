"""A run of a recipe that a stranger would write first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.recipes.recipe import from_data
from compress.recipes.run import run


@pytest.fixture
def written_as() -> Callable[..., Path]:
    """written_as(dialect, model, out, **options of the export) → the artifact's directory; the weights are int4."""

    def write(dialect: str, model: Path, out: Path, **options: Any) -> Path:
        steps = [{"rtn": {"bits": 4, "group_size": 32}}, {"export": {"dialect": dialect, **options}}]
        return Path(run(from_data({"model": str(model), "passes": steps}), out).artifacts[0].path)

    return write
