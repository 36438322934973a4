"""Mixes, against what llama.cpp's loader prints of files that its own quantizer made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import gguf
import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.mixes import (
    FILE_TYPES,
    LABELS,
    Substitute,
    Traits,
    base_of,
    fitting,
    is_mix,
    mixed,
    mixed_modules,
    substitutes_told,
)

SHAPES = {
    "attn_q": 4096, "attn_k": 4096, "attn_v": 4096, "attn_output": 4096, "ffn_gate": 4096, "ffn_up": 4096,
    "ffn_down": 14336,
}  # fmt: skip
# "llama_model_loader: - type q4_K: 193 tensors" and so on: files of Llama 3 8B (32 layers, 4 query heads a key head).
LLAMA3_8B = {
    "q2_k_m": {"q2_k": 129, "q3_k": 64, "q4_k": 32, "q6_k": 1},
    "q3_k_s": {"q3_k": 225, "q6_k": 1},
    "q3_k_m": {"q3_k": 129, "q4_k": 92, "q5_k": 4, "q6_k": 1},
    "q3_k_l": {"q3_k": 129, "q5_k": 96, "q6_k": 1},
    "q4_k_s": {"q4_k": 217, "q5_k": 8, "q6_k": 1},
    "q4_k_m": {"q4_k": 193, "q6_k": 33},
    "q5_k_s": {"q5_k": 225, "q6_k": 1},
    "q5_k_m": {"q5_k": 193, "q6_k": 33},
}
# Gemma 3 270M, "Q4_K_M": 18 layers, 640 columns but for ffn_down's 2048 and attn_output's 1024; the embedding is tied.
GEMMA = {"attn_q": 640, "attn_k": 640, "attn_v": 640, "attn_output": 1024, "ffn_gate": 640, "ffn_up": 640} | {
    "ffn_down": 2048
}
GEMMA_FINER = {0, 1, 4, 7, 10, 13, 15, 16, 17}


@pytest.mark.parametrize("mix", LLAMA3_8B)
def test_types_are_as_many_as_in_files_of_llama_3(mix: str) -> None:
    assert is_mix(mix)
    traits = Traits(32, 4, False)
    names = [(f"blk.{layer}.{stem}.weight", columns) for layer in range(32) for stem, columns in SHAPES.items()]
    found = Counter(mixed(mix, name, columns, traits) for name, columns in names)
    found.update(mixed(mix, name, 4096, traits) for name in ("output.weight", "token_embd.weight"))
    assert found == LLAMA3_8B[mix]


def test_types_of_gemma_with_their_substitutes() -> None:
    traits = Traits(18, 4, True)
    for layer in range(18):
        kinds = {
            stem: fitting(mixed("q4_k_m", f"blk.{layer}.{stem}.weight", columns, traits), columns)
            for stem, columns in GEMMA.items()
        }
        finer = layer in GEMMA_FINER
        assert kinds["attn_q"] == kinds["attn_k"] == kinds["ffn_gate"] == kinds["ffn_up"] == "q5_0"
        assert kinds["attn_v"] == ("q8_0" if finer else "q5_0") and kinds["attn_output"] == "q4_k"
        assert kinds["ffn_down"] == ("q6_k" if finer else "q4_k")
    assert mixed("q4_k_m", "token_embd.weight", 640, traits) == "q8_0"


def test_a_large_model_spends_more_on_its_few_values() -> None:
    large, small = Traits(80, 8, False), Traits(79, 8, False)
    assert mixed("q3_k_s", "blk.40.attn_v.weight", 8192, large) == "q5_k"
    assert mixed("q3_k_s", "blk.40.attn_v.weight", 8192, small) == "q3_k"
    assert mixed("q4_k_m", "blk.0.attn_qkv.weight", 8192, small) == "q6_k"


@pytest.mark.parametrize(
    ("kind", "substitute"),
    [("q2_k", "q4_0"), ("q3_k", "q4_0"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0"), ("iq4_xs", "iq4_nl"),
     ("tq1_0", "q4_0"), ("tq2_0", "q4_0"), ("q4_1", "q4_1"), ("mxfp4", "mxfp4")],
)  # fmt: skip
def test_substitutes(kind: str, substitute: str) -> None:
    assert (fitting(kind, 512), fitting(kind, 576)) == (kind, substitute)
    if kind != substitute:
        assert fitting(kind, 48) == "f16"


def test_file_types_are_those_of_llama_h() -> None:
    for mix, number in FILE_TYPES.items():
        label = LABELS.get(mix, mix).upper()
        assert gguf.LlamaFileType[f"MOSTLY_{label}"] == number and base_of(mix) in mix  # type: ignore[arg-type]


def test_what_is_said_counts() -> None:
    counts = Counter([Substitute("q4_k", "q5_0", 576)] * 3 + [Substitute("q6_k", "q8_0", 576)])
    assert substitutes_told(counts) == (
        "3 matrices in q5_0, not q4_k: 576 columns are no super-blocks",
        "1 matrix in q8_0, not q6_k: 576 columns are no super-blocks",
    )


def test_modules_by_their_own_names() -> None:
    config = {
        "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 8,
        "intermediate_size": 512, "vocab_size": 320, "tie_word_embeddings": True,
    }  # fmt: skip
    down = "model.layers.7.mlp.down_proj"
    model = ModelSpec(config, {f"{down}.weight": TensorSpec((256, 512), "float32")}, {})
    asked = dict.fromkeys((down, "model.layers.3.mlp.up_proj", "model.embed_tokens"), "q4_k_m")
    assert list(mixed_modules(model, asked).values()) == ["q6_k", "q4_k", "q6_k"]
    assert mixed_modules(replace(model, config={}), {}) == {}
    with pytest.raises(RefusedError, match=r"says nothing of model\.layers\.9"):
        mixed_modules(model, {"model.layers.9.mlp.up_proj": "q4_k_m"})
    with pytest.raises(RefusedError, match="not known here"):
        mixed_modules(replace(model, config={"model_type": "mamba"}), asked)
