"""GGUF's own types, from a recipe to the file: gguf-py's values are ours, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from conftest import MakeModel
from gguf.quants import dequantize
from torch import Tensor
from transformers import LlamaConfig

from compress.formats import open_checkpoint
from compress.formats.gguf.file import gguf_file
from compress.kernels.qtensor import QTensor
from compress.recipes.recipe import build
from compress.recipes.run import run
from compress.recipes.yaml import Document

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl", "mxfp4")


@pytest.fixture(scope="module")
def wide_llama(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows divide into super-blocks."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    return make_model(tmp_path_factory.mktemp("wide"), "llama", config=config)


def exported(model: Path, out: Path, *passes: dict[str, Any], **export: Any) -> Path:
    """The one GGUF file of a run."""
    steps = [*passes, {"export": {"dialect": "gguf", **export}}]
    report = run(build(Document("types", {"model": str(model), "passes": steps}, {})), out)
    found = gguf_file(Path(report.artifacts[0].path))
    assert found is not None
    return found


def library_values(file: Path) -> dict[str, tuple[str, Tensor]]:
    """Type and values of every matrix, as gguf-py reads it."""
    return {
        tensor.name: (tensor.tensor_type.name.lower(), torch.tensor(dequantize(tensor.data, tensor.tensor_type)))
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_was_quantized_onto_a_type_is_what_the_file_holds(
    method: str, name: str, wide_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    data = [{"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}] if method == "gptq" else []
    file = exported(wide_llama, tmp_path, *data, {method: {"format": name}})
    values = library_values(file)
    checkpoint = open_checkpoint(file)
    for module, gguf_name in {"mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v"}.items():
        tensor = checkpoint.read(f"model.layers.0.{module}.weight")
        assert isinstance(tensor, QTensor) and tensor.format.name == name
        kind, expected = values[f"blk.0.{gguf_name}.weight"]
        assert kind == name and torch.equal(tensor.dequantize(), expected)
    assert values["token_embd.weight"][0] == "f16"


@pytest.mark.parametrize("name", TYPES)
def test_export_rounds_what_is_not_quantized_onto_its_type(name: str, wide_llama: Path, tmp_path: Path) -> None:
    rules = [{"match": "down_proj", "value": name}, {"value": "q8_0"}]
    values = library_values(exported(wide_llama, tmp_path, type=rules))
    dense = open_checkpoint(wide_llama)
    source = dense.read("model.layers.0.mlp.down_proj.weight")
    assert isinstance(source, Tensor)
    kind, found = values["blk.0.ffn_down.weight"]
    assert kind == name and values["blk.0.attn_q.weight"][0] == "q8_0"
    relative = float((found - source).square().sum() / source.square().sum())
    assert relative < {"q2_k": 0.08, "q3_k": 0.025, "mxfp4": 0.015}.get(name, 0.006)


def test_a_file_of_k_quants_keeps_its_blocks(wide_llama: Path, tmp_path: Path) -> None:
    first = exported(wide_llama, tmp_path / "a", type=[{"match": "down_proj", "value": "q6_k"}, {"value": "q4_k"}])
    again = exported(first, tmp_path / "b")
    before, after = library_values(first), library_values(again)
    assert before.keys() == after.keys()
    assert all(kind == after[name][0] and torch.equal(value, after[name][1]) for name, (kind, value) in before.items())


@pytest.mark.parametrize("passes", [
    [{"gptq": {"format": "q4_k", "correct": True, "tune": True}}],
    [{"awq": {"format": "q4_k"}}, {"gptq": {"format": "q6_k"}}],
    [{"rtn": {"format": "q3_k", "search": "inputs"}}],
])  # fmt: skip
def test_every_solver_runs_on_them(
    passes: list[dict[str, Any]], wide_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    data = {"calibrate": {"data": str(corpus), "samples": 4, "seq_len": 32}}
    kinds = {kind for kind, _ in library_values(exported(wide_llama, tmp_path, data, *passes)).values()}
    assert next(iter(passes[-1].values()))["format"] in kinds
