"""Names: of tensors as gguf-py has them, of files and folders after model and type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.gguf.file import gguf_file
from compress.formats.gguf.names import Dims, Place
from compress.formats.gguf.placed import join, sources
from compress.kernels.numbers.int import IntFormat
from compress.passes.export import Export
from compress.recipes.engines.verdicts import loading_lines

Write = Callable[..., Path]
Quantize = Callable[[Checkpoint, IntFormat], Checkpoint]


@pytest.mark.parametrize(
    ("said", "called", "expected"),
    [
        ({}, "", "model-F16.gguf"),
        ({"_name_or_path": "org/SmolLM2-135M"}, "", "SmolLM2-135M-F16.gguf"),
        ({"_name_or_path": "org/other"}, "SmolLM2-135M", "SmolLM2-135M-F16.gguf"),
        ({"_name_or_path": "a model: näme"}, "", "a-model-n-me-F16.gguf"),
        ({"_name_or_path": "../.."}, "", "model-F16.gguf"),
    ],
)
def test_a_file_is_named_after_model_and_type(
    write: Write, make: Callable[[str], Path], tmp_path: Path, said: Any, called: str, expected: str
) -> None:
    model = open_checkpoint(make("llama"))
    model.spec = replace(model.spec, config={**model.spec.config, **said}, name=called)
    directory = write(model, tmp_path / "out")
    assert [file.name for file in directory.iterdir()] == [expected]
    assert open_checkpoint(directory).dialect == "gguf"


def test_a_file_is_named_after_the_type_of_most_weights(
    write: Write, make: Callable[[str], Path], quantized_decoder: Quantize, tmp_path: Path
) -> None:
    model = open_checkpoint(make("llama"))
    rules = ({"match": "*.mlp.*", "value": "q8_0"}, {"value": "f32"})
    assert gguf_file(write(model, tmp_path / "rules", type=rules)).name == "model-Q8_0.gguf"
    assert (
        gguf_file(write(quantized_decoder(model, IntFormat(8, 32)), tmp_path / "int8", type="f32")).name
        == "model-Q8_0.gguf"
    )


def test_the_lines_that_load_it_name_the_file(write: Write, make: Callable[[str], Path], tmp_path: Path) -> None:
    lines = loading_lines(open_checkpoint(write(open_checkpoint(make("llama")), tmp_path / "out")))
    assert lines["llama.cpp"] == "llama-cli -m {path}/model-F16.gguf"


@pytest.mark.parametrize(
    ("option", "folder"), [({}, "gguf"), ({"type": "q8_0"}, "gguf-q8_0"), ({"type": "f16"}, "gguf-f16")]
)
def test_exports_of_different_types_go_to_different_folders(option: Any, folder: str) -> None:
    assert Export(dialect="gguf", **option).folder == folder
    assert Export(dialect="gguf", path="mine", **option).folder == "mine"


def test_an_export_of_mixed_types_says_so() -> None:
    rules = [{"match": "*.down_proj", "value": "q8_0"}, {"value": "q4_0"}]
    assert Export(dialect="gguf", type=rules).folder == "gguf-mixed"


def test_a_place_knows_every_name_that_fills_it() -> None:
    place = Place("blk.0.ffn_up_exps.weight", ("a.{expert}.up",), (8, 4), part="last", experts=2, stack="a.up")
    assert list(place.known) == ["a.0.up", "a.1.up", "a.up"]
    assert place.stored == (2, 4, 4)


def test_halves_of_an_expert_come_back_as_one_matrix() -> None:
    dims, names = Dims(1, 4, 4, 1, 1, 4, 8, experts=2, expert=2), ("experts.{expert}.gate_up",)
    halves = [Place(f"blk.0.{half}.weight", names, (4, 4), part=half, experts=2) for half in ("even", "odd")]
    found = sources(halves)
    assert list(found) == ["experts.0.gate_up", "experts.1.gate_up"] and found["experts.1.gate_up"].expert == 1
    rows = torch.arange(16.0).view(4, 4)
    assert torch.equal(join(found["experts.0.gate_up"], [rows[::2], rows[1::2]], dims), rows)
