"""What is to be left: counted in parameters, refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.ffn import layers_size
from compress.passes.narrow.sizes import Aim

NOTHING: dict[str, Any] = {
    "to": None, "axes": ("ffn",), "ffn": None, "kv_heads": None, "layers": None, "hidden": None, "multiple": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Anatomy]:
    files = open_checkpoint(make_model(tmp_path_factory.mktemp("sizes") / "llama", "llama", layers=4))
    model, skeleton = Skeleton.open(files, torch.device("cpu"))
    return model.spec, skeleton.anatomy


@pytest.mark.parametrize("axes", [("ffn",), ("ffn", "kv_heads"), ("layers",), ("hidden",)])
def test_a_part_is_reached_by_every_axis_and_not_by_much_more(llama: tuple[ModelSpec, Anatomy], axes: Any) -> None:
    model, anatomy = llama
    left = Aim(**{**NOTHING, "to": 0.75, "axes": axes}).planned(model, anatomy)
    assert 0.6 < layers_size(left, anatomy) / layers_size(model, anatomy) <= 0.75


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layers": 4}, "there are 4 layers, and 4"),
        ({"kv_heads": 2}, "attention has 2 heads of keys and values, and is to have 2"),
        ({"ffn": 72}, "ffn: 72 is no multiple of 16"),
        ({"hidden": 64}, "the residual stream: there are 64 channels, and 64"),
        ({"to": 0.01}, "to: 0.01 leaves feed-forward layers no 16 channels"),
    ],
)
def test_what_cannot_be_is_refused(llama: tuple[ModelSpec, Anatomy], said: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        Aim(**{**NOTHING, **said}).planned(*llama)
