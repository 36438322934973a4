"""A planned file: NVFP4's blocks and the scales beside them, written, read by gguf-py and by us, and written again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.file import GGUFFile, NewTensor, write_gguf
from compress.formats.gguf.plan import Plan
from compress.formats.gguf.witness import read_with_library
from compress.kernels.numbers.float4 import Float4Format
from compress.kernels.qtensor import NumberFormat, QTensor

InMemory = Callable[[Checkpoint, dict[str, NumberFormat]], Checkpoint]
NVFP4 = Float4Format("nvfp4")
ONE = b"\0\0\x80\x3f"
RULES = [{"match": "*q_proj", "value": "nvfp4"}, {"value": "q8_0"}]


@pytest.fixture(scope="module")
def moe(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Experts and an output of its own; rows of one expert ten times as large."""
    config = MixtralConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, num_local_experts=3, tie_word_embeddings=False,
    )  # fmt: skip
    return open_checkpoint(make_model(tmp_path_factory.mktemp("moe"), "mixtral", config=config))


def write(model: Checkpoint, directory: Path, **options: Any) -> Path:
    directory.mkdir()
    GGUF(**options).write(model, directory, lambda name: None)
    return directory


def stored(directory: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(next(directory.iterdir())).tensors}


def values(model: Checkpoint, name: str) -> Tensor:
    tensor = model.read(name)
    return tensor.dequantize() if isinstance(tensor, QTensor) else tensor.float()


def test_scales_lie_beside_blocks(moe: Checkpoint, tmp_path: Path) -> None:
    out = write(moe, tmp_path / "a", type="nvfp4")
    tensors, again = stored(out), open_checkpoint(out)
    assert [name for name in tensors if "attn_q" in name] == ["blk.0.attn_q.weight", "blk.0.attn_q.scale"]
    assert {str(tensors[f"blk.0.{stem}_exps.scale"].shape.tolist()) for stem in ("ffn_gate", "ffn_down")} == {"[3]"}
    assert tensors["output.weight"].tensor_type.name == "NVFP4" and "output.scale" in tensors
    assert next(out.iterdir()).name.endswith("-NVFP4.gguf")
    witness = read_with_library(next(out.iterdir()))
    for name, spec in again.spec.tensors.items():
        found = again.read(name)
        assert torch.equal(witness(name), values(again, name))
        if isinstance(found, QTensor) and spec.format == NVFP4:
            codes = values(again, name) - moe.read(name) if name in moe.spec.tensors else None
            assert codes is None or float(codes.norm() / moe.read(name).norm()) < 0.11
    twice = write(again, tmp_path / "b")
    assert next(twice.iterdir()).read_bytes() == next(out.iterdir()).read_bytes()
    parts = write(again, tmp_path / "c", max_shard_size=8192)
    whole = open_checkpoint(next(iter(sorted(parts.iterdir()))))
    assert all(torch.equal(values(whole, name), values(again, name)) for name in again.spec.tensors)


def test_any_scale_of_a_tensor_comes_back(
    moe: Checkpoint, in_memory: InMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of others have scales that are no powers of two."""
    name = "model.layers.0.self_attn.q_proj.weight"
    model = in_memory(moe, {name: NVFP4})
    tensor, read = model.read(name), model.read
    assert isinstance(tensor, QTensor)
    tensor.params["tensor_scale"].fill_(0.0123)
    monkeypatch.setattr(model, "read", lambda asked: tensor if asked == name else read(asked))
    again = open_checkpoint(write(model, tmp_path / "a"))
    found = again.read(name)
    assert isinstance(found, QTensor) and torch.equal(found.dequantize(), tensor.dequantize())
    witness = read_with_library(next((tmp_path / "a").iterdir()))
    torch.testing.assert_close(witness(name), tensor.dequantize(), rtol=1e-6, atol=0)


def test_scales_of_inputs_are_not_read(moe: Checkpoint, tmp_path: Path) -> None:
    """They are in files made of ModelOpt's; beside other types there is none."""
    file = GGUFFile(next(write(moe, tmp_path / "a", type=RULES).iterdir()))
    tensors: list[NewTensor] = [(name, info.shape, info.type) for name, info in file.header.tensors.items()]
    for stem, found in (("attn_q", True), ("attn_k", False)):
        more: NewTensor = (f"blk.0.{stem}.input_scale", (1,), BLOCKS["f32"])
        path = tmp_path / f"{stem}.gguf"
        write_gguf(
            path, file.header.metadata, [*tensors, more], lambda name: ONE if "input" in name else file.read_raw(name)
        )
        if found:
            name = "model.layers.0.self_attn.q_proj.weight"
            assert torch.equal(values(open_checkpoint(path), name), values(open_checkpoint(file.path), name))
        else:
            with pytest.raises(InputError, match=r"no tensor blk\.0\.attn_k\.input_scale"):
                open_checkpoint(path)


def test_no_embedding_has_a_scale(moe: Checkpoint) -> None:
    spec = replace(moe.spec, files=moe.files())
    (told,) = GGUF(type="nvfp4").layout(spec).substitutes
    assert told.startswith("1 matrix in q8_0, not nvfp4: llama.cpp multiplies it by no scale of the whole tensor")
    with pytest.raises(RefusedError, match=r"embed_tokens\.weight: no nvfp4"):
        GGUF(type="nvfp4", strict=True).layout(spec)
    name = "model.embed_tokens.weight"
    quantized = {**spec.tensors, name: replace(spec.tensors[name], format=NVFP4)}
    with pytest.raises(RefusedError, match=r"embed_tokens\.weight: llama\.cpp multiplies it by no scale"):
        GGUF().layout(replace(spec, tensors=quantized))
    assert Plan.__dataclass_fields__.keys() >= {"entries", "metadata"}
