"""Recipes that are only checked: every one of them, models elsewhere unseen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from compress.cli.app import main
from compress.recipes.elsewhere.check import check

GOOD = "model: {model}\npasses:\n  - rtn: {{group_size: {size}}}\n  - export: {{dialect: gptq}}\n"
HOOKS = Path(__file__).parents[3] / ".pre-commit-hooks.yaml"


@pytest.fixture
def recipes(tiny_llama: Path, tmp_path: Path) -> list[str]:
    """One that fits, one whose model is elsewhere, one that does not fit, one that is wrong."""
    texts = [
        GOOD.format(model=tiny_llama, size=32),
        GOOD.format(model="org/name", size=32),
        GOOD.format(model=tiny_llama, size=48),
        GOOD.format(model=tiny_llama, size=32).replace("group_size", "group_szie"),
    ]
    paths = [tmp_path / f"{number}.yaml" for number in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_text(text)
    return list(map(str, paths))


def test_each_is_looked_at_whatever_is_wrong_with_others(recipes: list[str]) -> None:
    found = check(recipes)
    assert [(each.planned, each.exit_code) for each in found] == [(True, 0), (False, 0), (True, 3), (False, 2)]
    assert "48" in found[2].error and "did you mean 'group_size'" in found[3].error


def test_the_hook_is_the_command(recipes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (hook,) = yaml.safe_load(HOOKS.read_text())
    program, *arguments = hook["entry"].split()
    assert (program, hook["language"]) == ("compress", "python")
    assert re.search(hook["files"], "recipes/a.yaml") and not re.search(hook["files"], "values.yaml")
    assert main([*arguments, *recipes[:2]]) == 0
    assert main([*arguments, *recipes]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{recipes[0]}: fits", f"{recipes[1]}: is sound, as far as can be told without its model"]
    assert main(["plan", *recipes[:2], "--quiet"]) == 2
    assert main([*arguments, *recipes[:2], "--max-disk", "1GB"]) == 2  # which a check does not look at
