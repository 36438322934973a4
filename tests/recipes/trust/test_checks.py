"""The checks of an artifact by themselves: one that fails leaves the others to be done. `verify` is tested beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.passes.core.report import Reporter
from compress.recipes.jobs.verify import read_record
from compress.recipes.recipe import from_data
from compress.recipes.run import run
from compress.recipes.trust.checks import Checks


@pytest.fixture
def artifact(tiny_llama: Path, tmp_path: Path) -> Path:
    recipe = {"model": str(tiny_llama), "passes": [{"rtn": {"group_size": 32}}, {"export": {"dialect": "gptq"}}]}
    return Path(run(from_data(recipe), tmp_path / "out").artifacts[0].path)


def checked(artifact: Path) -> Checks:
    checks = Checks(artifact, read_record(artifact), Reporter(), asks=False)
    checks.run()
    return checks


def test_what_is_whole_is_compared_and_found_so(artifact: Path) -> None:
    checks = checked(artifact)
    assert checks.problems == []
    assert all(checks.checked[name] for name in ("files", "settings", "tensors", "tokenizer", "logits"))


def test_a_setting_that_was_changed_keeps_libraries_from_it_and_the_rest_is_checked(artifact: Path) -> None:
    """The logits are not asked for: a library would read the setting."""
    config = artifact / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', '"rms_norm_epsilon"'))
    checks = checked(artifact)
    assert {problem.check for problem in checks.problems} >= {"files", "settings"}
    assert checks.checked["tensors"] and "logits" not in checks.checked
    assert not any(problem.check == "tensors" for problem in checks.problems)
