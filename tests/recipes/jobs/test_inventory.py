"""The inventory in compress.json: what became of every source tensor, with digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from compress.passes.artifact.inventory import digests
from compress.recipes.jobs.verify import verify

MODULE = "model.layers.1.mlp.up_proj"


def entries(artifact: Path) -> dict[str, Any]:
    inventory: dict[str, Any] = json.loads((artifact / "compress.json").read_text())["inventory"]
    return inventory


def test_every_source_tensor_is_accounted_for(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    path = tiny_llama / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"][:8].clone()
    save_file(tensors, path, {"format": "pt"})
    found = entries(written_as("gguf", tiny_llama, tmp_path / "gguf"))
    assert set(found) == set(tensors)
    states = {name: (entry["state"], entry["by"], entry["format"]) for name, entry in found.items()}
    assert states[f"{MODULE}.weight"] == ("quantized", "rtn", "int4 g32 sym")
    assert states["model.norm.weight"] == ("copied", "export to gguf", "float32")
    assert states["model.embed_tokens.weight"] == ("converted", "export to gguf", "float16")
    assert states["lm_head.weight"][:2] == ("tied", "export to gguf")
    assert states["model.layers.0.self_attn.rotary_emb.inv_freq"][:2] == ("dropped", "export to gguf")
    again = written_as("dense", tiny_llama, tmp_path / "dense")
    assert entries(again)[f"{MODULE}.weight"]["state"] == "rewritten"
    assert entries(again)["lm_head.weight"]["state"] == "copied"
    assert verify(again).passed


def test_digests_are_of_the_tensors_and_not_of_their_packing(
    tiny_llama: Path, tmp_path: Path, written_as: Callable[..., Path]
) -> None:
    first, second = (entries(written_as(name, tiny_llama, tmp_path / name)) for name in ("gguf", "gptq"))
    assert first[f"{MODULE}.weight"]["sha256"] == second[f"{MODULE}.weight"]["sha256"]
    weight = load_file(tiny_llama / "model.safetensors")["model.norm.weight"]
    assert first["model.norm.weight"]["sha256"] == digests(weight)
