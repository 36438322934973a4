"""Tensor by tensor: what is counted is what torch counts of weights that were changed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.formats import open_checkpoint
from compress.passes.artifact.differences import Distance, TensorDifference, differences

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def compare(a: Path, b: Path) -> list[TensorDifference]:
    names: list[str] = []
    one, other = open_checkpoint(a), open_checkpoint(b)
    found = list(differences(one, other, names.append))
    assert sorted(names) == sorted(one.spec.tensors.keys() | other.spec.tensors.keys())
    return found


def changed(source: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a model with other tensors, None to leave one out; dots in names are two underscores."""
    shutil.copytree(source, target)
    weights = load_file(source / "model.safetensors")
    weights |= {name.replace("__", "."): value for name, value in tensors.items() if value is not None}
    gone = {name.replace("__", ".") for name, value in tensors.items() if value is None}
    kept = {name: value.contiguous() for name, value in weights.items() if name not in gone}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def test_a_model_is_like_itself(tiny_llama: Path, tmp_path: Path) -> None:
    assert compare(tiny_llama, changed(tiny_llama, tmp_path / "copy")) == []


def test_values_types_shapes_and_what_is_missing(tiny_llama: Path, tmp_path: Path) -> None:
    before = load_file(tiny_llama / "model.safetensors")
    after = before[UP] + torch.randn(before[UP].shape, generator=torch.Generator().manual_seed(1))
    key = UP.replace(".", "__")
    found = compare(tiny_llama, changed(tiny_llama, tmp_path / "values", **{key: after}))
    apart = (after - before[UP]).double()
    assert [each.name for each in found] == [UP]
    assert found[0].values is not None
    assert found[0].values.largest == pytest.approx(float(apart.abs().max()))
    assert found[0].values.mean == pytest.approx(float(apart.abs().mean()), rel=1e-6)
    assert found[0].values.relative == pytest.approx(float(apart.norm() / before[UP].double().norm()), rel=1e-6)
    other = {key: before[UP][:64].clone(), NORM.replace(".", "__"): before[NORM].double()}
    shape, kind = sorted(compare(tiny_llama, changed(tiny_llama, tmp_path / "other", **other)), key=lambda it: it.name)
    assert shape.a and shape.b and (shape.a.shape, shape.b.shape, shape.values) == ((128, 64), (64, 64), None)
    assert kind.a and kind.b and (kind.a.format, kind.b.format) == ("float32", "float64")
    assert kind.values == Distance(largest=0, mean=0, relative=0)
    (missing,) = compare(tiny_llama, changed(tiny_llama, tmp_path / "less", **{key: None}))
    assert missing.name == UP and missing.a and missing.b is None
