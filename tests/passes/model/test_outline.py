"""An outline knows of a model what its skeleton knows, and builds none once it was kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.errors import InputError
from compress.passes.model.outline import Known, outline_of
from compress.passes.model.skeleton import Skeleton

CPU = torch.device("cpu")


@pytest.fixture
def no_skeleton(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """no_skeleton() → from then on no model may be built."""
    return lambda: monkeypatch.setattr(Skeleton, "open", lambda *_: pytest.fail("built again"))


def told(known: Known) -> tuple[object, ...]:
    anatomy = known.anatomy
    return anatomy.layers, anatomy.embedding, anatomy.head, anatomy.tied, known.positions


def test_a_kept_outline_of_every_family_is_what_its_skeleton_tells(
    every_family: str, make_model: Callable[..., Path], tmp_path: Path, no_skeleton: Callable[[], None]
) -> None:
    files = open_checkpoint(make_model(tmp_path / "model", every_family))
    view, skeleton = Skeleton.open(files, CPU)
    first = outline_of(files, tmp_path / "kept")
    assert first.anatomy.attentions() == skeleton.anatomy.attentions()
    no_skeleton()
    assert first.anatomy.attentions() == skeleton.anatomy.attentions()  # built once for it
    again = outline_of(open_checkpoint(tmp_path / "model"), tmp_path / "kept")
    assert told(again) == told(first) == told(skeleton)
    assert again.source.spec == view.spec and again.of_spec(again.source.spec, view.path) is again


def test_other_shapes_and_settings_are_built(tiny_llama: Path, tmp_path: Path) -> None:
    outline = outline_of(open_checkpoint(tiny_llama), tmp_path)
    spec = outline.source.spec
    narrow = {
        name: replace(found, shape=tuple(96 if extent == 128 else extent for extent in found.shape))
        for name, found in spec.tensors.items()
    }
    config = {**spec.config, "intermediate_size": 96}
    other = outline.of_spec(replace(spec, tensors=narrow, config=config), tiny_llama)
    assert other is not outline and other.anatomy.layers == outline.anatomy.layers
    with pytest.raises(InputError, match=r"has shape \[96, 64\], config.json asks for \[128, 64\]"):
        outline.of_spec(replace(spec, tensors=narrow), tiny_llama)


def test_another_configuration_is_another_model(tiny_llama: Path, tmp_path: Path) -> None:
    before = outline_of(open_checkpoint(tiny_llama), tmp_path)
    file = tiny_llama / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 512}))
    after = outline_of(open_checkpoint(tiny_llama), tmp_path)
    assert before.positions is not None and after.positions is not None
    assert (before.positions.count, after.positions.count) == (256, 512)


def test_a_model_that_cannot_be_is_refused_every_time(tiny_llama: Path, tmp_path: Path) -> None:
    file = tiny_llama / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "intermediate_size": 96}))
    for _ in range(2):
        with pytest.raises(InputError, match=r"config\.json asks for"):
            outline_of(open_checkpoint(tiny_llama), tmp_path)
