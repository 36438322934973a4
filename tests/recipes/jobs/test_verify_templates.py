"""An artifact with several chat templates: each of them is recorded, and a changed one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.recipes.jobs.export import export
from compress.recipes.jobs.verify import verify

FOLDER = "additional_chat_templates"


@pytest.fixture
def model(tiny_llama: Path) -> Path:
    """A llama with two chat templates."""
    (tiny_llama / FOLDER).mkdir()
    (tiny_llama / FOLDER / "rag.jinja").write_text("{{ 'rag' }}")
    (tiny_llama / "chat_template.jinja").write_text("{{ 'plain' }}")
    return tiny_llama


def test_a_changed_template_in_the_folder_is_named(model: Path, tmp_path: Path) -> None:
    artifact = Path(export(str(model), "dense", {}, tmp_path / "out").path)
    assert verify(artifact).passed
    (artifact / FOLDER / "rag.jinja").write_text("{{ 'other' }}")
    (artifact / FOLDER / "new.jinja").write_text("{{ 'new' }}")
    found = {problem.where: problem.what for problem in verify(artifact).problems}
    assert "was changed" in found[f"{FOLDER}/rag.jinja"] and "was not there" in found[f"{FOLDER}/new.jinja"]


def test_templates_inside_a_gguf_file_are_recorded(model: Path, tmp_path: Path) -> None:
    artifact = Path(export(str(model), "gguf", {}, tmp_path / "out").path)
    assert f"{FOLDER}/rag.jinja" in (artifact / "compress.json").read_text()
    assert verify(artifact).passed
