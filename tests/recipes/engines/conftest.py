"""Models as facts see them: headers only, nothing on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.qtensor import NumberFormat
from compress.recipes.engines.subject import Subject

SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip


@pytest.fixture
def subject() -> Callable[..., Subject]:
    """subject(format, leaf=other format, …): one layer, all of whose linears are in `format` but for those named.

    `shapes`, `options`, `config`, `activations` and `kv_cache` are the artifact's.
    """

    def build(
        format: NumberFormat | None,
        *,
        shapes: Mapping[str, tuple[int, ...]] = SHAPES,
        options: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        activations: Mapping[str, Any] | None = None,
        kv_cache: Any = None,
        **leaves: NumberFormat | None,
    ) -> Subject:
        formats = {leaf: leaves.get(leaf.rpartition(".")[2], format) for leaf in shapes}
        tensors = {
            f"model.layers.0.{leaf}.weight": TensorSpec(shapes[leaf], "float32", formats[leaf]) for leaf in shapes
        }
        tensors["lm_head.weight"] = TensorSpec((320, 64), "float16", leaves.get("lm_head"))
        inputs = {f"model.layers.0.{leaf}": value for leaf, value in (activations or {}).items()}
        model = ModelSpec({"model_type": "llama", **(config or {})}, tensors, activations=inputs, kv_cache=kv_cache)
        return Subject("gptq", model, options or {})

    return build
