"""The size calculator, against the figures that the seeds print and against the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError
from compress.recipes.jobs.memory import memory_of, precision

GiB = 1024**3
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "num_attention_heads": 32,
    "hidden_size": 4096, "max_position_embeddings": 4096,
}  # fmt: skip

# The course's formula for LLaMA2-70B, worked out by hand: bits, model, inference, training, in units of 1024³
# bytes. (The output printed there, 260.10 for FP32, is not what its code computes.)
COURSE = [
    (32, 260.77, 312.92, 1043.08), (16, 130.39, 156.46, 521.54), (8, 65.19, 78.23, 260.77),
    (4, 32.60, 39.12, 130.39),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "weights", "inference", "training"), COURSE)
def test_seventy_billion_parameters(bits: int, weights: float, inference: float, training: float) -> None:
    sizes = precision("x", 70 * 10**9, bits)
    assert sizes.weights / GiB == pytest.approx(weights, abs=0.006)
    assert sizes.inference / GiB == pytest.approx(inference, abs=0.006)
    assert sizes.training / GiB == pytest.approx(training, abs=0.006)


@given(st.integers(0, 10**12), st.sampled_from([32, 16, 8, 4]))
def test_the_course_formula(parameters: int, bits: int) -> None:
    size_gb = (parameters * (bits / 8)) / 1024**3
    sizes = precision("x", parameters, bits)
    assert sizes.weights / GiB == pytest.approx(size_gb, abs=1 / GiB)
    assert sizes.inference / GiB == pytest.approx(size_gb * 1.2, abs=2 / GiB)
    assert sizes.training / GiB == pytest.approx(size_gb * 4, abs=4 / GiB)


def memory(**config: Any) -> Any:
    tensors = {"a.weight": TensorSpec((10, 3), "bfloat16"), "b.weight": TensorSpec((5,), "float32")}
    return memory_of("tiny", ModelSpec({**LLAMA2_7B, **config}, tensors), 100)


def test_a_model_is_read_from_its_headers() -> None:
    table = memory()
    assert (table.model, table.architecture, table.parameters, table.stored) == (
        "tiny",
        "LlamaForCausalLM",
        35,
        100,
    )
    assert {p.name: p.weights for p in table.precisions} == {
        "FP32": 140,
        "FP16/BF16": 70,
        "INT8": 35,
        "INT4": 18,
    }
    assert table.notes == ()


@pytest.mark.parametrize(("kv_heads", "kind", "ratios"), [
    (None, "MHA", {"MHA": 1.0, "MQA": 1 / 32}), (32, "MHA", {"MHA": 1.0, "MQA": 1 / 32}),
    (8, "GQA", {"MHA": 1.0, "GQA": 0.25, "MQA": 1 / 32}), (1, "MQA", {"MHA": 1.0, "MQA": 1 / 32}),
])  # fmt: skip
def test_kinds_of_attention(kv_heads: int | None, kind: str, ratios: dict[str, float]) -> None:
    cache = memory(num_key_value_heads=kv_heads).cache
    assert cache.kind == kind
    assert {way.name: way.ratio for way in cache.sharing} == ratios
    heads = kv_heads or 32
    assert cache.bytes_per_token == {
        "FP32": 2 * 32 * heads * 128 * 4,
        "FP16/BF16": 2 * 32 * heads * 128 * 2,
        "INT8/FP8": 2 * 32 * heads * 128,
    }
    for size in cache.sizes:
        assert size.nbytes == cache.bytes_per_token["FP16/BF16"] * size.context * size.batch
        assert size.context <= 4096


def test_gpt_names_and_an_own_head_dim() -> None:
    config = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 128}
    cache = memory_of("gpt", ModelSpec(config, {}), 0).cache
    assert cache is not None
    assert (cache.layers, cache.heads, cache.kv_heads, cache.head_dim) == (2, 4, 4, 16)
    assert memory(head_dim=256).cache.head_dim == 256
    assert memory_of("vlm", ModelSpec({"text_config": LLAMA2_7B}, {}), 0).cache is not None


def test_where_the_formula_does_not_hold() -> None:
    assert memory(kv_lora_rank=512).cache is None
    assert memory(num_attention_heads=None).cache is None
    assert "heads" in memory(num_attention_heads=None).notes[0]
    (note,) = memory(layer_types=["full_attention", "sliding_attention"]).notes
    assert "at most" in note


@pytest.mark.parametrize("bad", [0, -1, 1.5, "32", True, 2**60])
def test_impossible_values(bad: Any) -> None:
    with pytest.raises(InputError, match="num_attention_heads"):
        memory(num_attention_heads=bad)
