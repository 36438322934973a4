"""Which tensors are weights of linear layers, by their names."""

from __future__ import annotations


def is_linear(name: str) -> bool:
    """Whether a quantized weight is a linear layer's; the only others that people quantize are embeddings."""
    module, _, kind = name.rpartition(".")
    leaf = module.rpartition(".")[2]
    return kind == "weight" and leaf not in ("wte", "wpe") and ("emb" not in leaf or leaf == "embed_out")
