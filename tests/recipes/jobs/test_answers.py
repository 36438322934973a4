"""The same question to several models, each answered as `generate` answers it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.formats.errors import InputError
from compress.recipes.jobs.answers import QUESTION, ask
from compress.recipes.jobs.generate import generate


def test_each_model_gives_its_own_answer(tiny_llama: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", "llama", seed=1)
    found = ask({"one": str(tiny_llama), "two": str(other)})
    assert found.question == QUESTION and list(found.answers) == ["one", "two"]
    for name, path in (("one", tiny_llama), ("two", other)):
        pieces: list[str] = []
        generate(str(path), QUESTION, pieces.append, max_tokens=24)
        assert found.answers[name] == "".join(pieces).strip()
    assert found.answers["one"] != found.answers["two"]


def test_a_model_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        ask({"one": str(tmp_path / "nowhere")})
