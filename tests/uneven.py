"""A model whose layers should not be treated alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def uneven(make_model: Callable[..., Path], path: Path) -> Path:
    """Channels of the last layer's inputs dwarf the others: as many bits, or zeros, as elsewhere lose much there."""
    source = make_model(path, "llama", layers=3)
    tensors = load_file(source / "model.safetensors")
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.2.{name}.weight"][::16] *= 12
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source
