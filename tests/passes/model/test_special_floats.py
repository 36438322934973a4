"""Configurations with floats that JSON has no words for, as transformers 5 saves those of state-space models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from compress.formats.files.hf_config import read_config
from compress.passes.model.config import config_of


@pytest.mark.parametrize("kind", ["mamba2", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid"])
def test_an_infinite_limit_is_no_error_of_validation(kind: str, tmp_path: Path) -> None:
    saved = CONFIG_MAPPING[kind]()
    saved.save_pretrained(tmp_path)
    assert '"__float__": "Infinity"' in (tmp_path / "config.json").read_text()
    found = config_of(read_config(tmp_path), tmp_path)
    assert list(found.time_step_limit) == [0.0, math.inf] == list(saved.time_step_limit)
