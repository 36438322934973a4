"""Mixes, against what llama.cpp's loader prints of files that its own quantizer made, and the choices of its tests.

Those are `tests/snapshots/*.schema` in ggml-org/llama.cpp (commits a45da44, a3ff194): the type of every tensor of a
model by file type, without an importance matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import gguf
import pytest

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import RefusedError
from compress.formats.gguf.blocks.substitutes import fitting
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.mixes import (
    FILE_TYPES,
    HEEDING,
    Mix,
    Traits,
    base_of,
    is_mix,
    label_of,
    mixed,
    mixed_modules,
    told_apart,
    twin_of,
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
# The snapshots of Qwen 3 0.6B (28 layers, 2 query heads a key head) with its output, and of gpt-oss 120B (36 layers,
# 8 query heads a key head, 128 experts) without.
QWEN3 = {
    "Q4_0": {"q4_0": 197, "q6_k": 1},
    "Q5_1": {"q5_1": 197, "q6_k": 1},
    "Q8_0": {"q8_0": 198},
    "Q2_K_S": {"q2_k": 194, "q4_k": 3, "q6_k": 1},
    "Q2_K": {"q2_k": 113, "q3_k": 84, "q6_k": 1},
    "Q3_K_M": {"q3_k": 113, "q4_k": 81, "q5_k": 3, "q6_k": 1},
    "Q4_K_S": {"q4_k": 190, "q5_k": 7, "q6_k": 1},
    "Q6_K": {"q6_k": 198},
    "IQ4_NL": {"iq4_nl": 194, "q5_k": 3, "q6_k": 1},
    "IQ4_XS": {"iq4_xs": 194, "q5_k": 3, "q6_k": 1},
    "TQ1_0": {"tq1_0": 196, "q4_k": 1, "q6_k": 1},
    "MXFP4_MOE": {"q8_0": 198},
}
GPT_OSS = {
    "Q2_K_S": {"q2_k": 213, "q4_k": 40},
    "Q2_K": {"q2_k": 145, "q3_k": 72, "q4_k": 36},
    "Q4_K_M": {"q4_k": 217, "q6_k": 36},
    "IQ4_NL": {"iq4_nl": 213, "q5_k": 40},
    "TQ2_0": {"tq2_0": 252, "q4_k": 1},
    "MXFP4_MOE": {"mxfp4": 108, "q8_0": 145},
}
# Gemma 3 270M, "Q4_K_M": 18 layers, 640 columns but for ffn_down's 2048 and attn_output's 1024; the embedding is tied.
GEMMA = {"attn_q": 640, "attn_k": 640, "attn_v": 640, "attn_output": 1024, "ffn_gate": 640, "ffn_up": 640} | {
    "ffn_down": 2048
}
GEMMA_FINER = {0, 1, 4, 7, 10, 13, 15, 16, 17}


def counted(mix: str, traits: Traits, stems: Iterable[str], *ends: str) -> Counter[str]:
    """How many matrices have each type: so many layers of `stems`, and what is not in a layer; all of 1024 columns."""
    assert is_mix(mix)
    names = [f"blk.{layer}.{stem}" for layer in range(traits.layers) for stem in stems]
    return Counter(mixed(mix, f"{name}.weight", 1024, traits) for name in (*names, *ends))


@pytest.mark.parametrize("mix", LLAMA3_8B)
def test_types_are_as_many_as_in_files_of_llama_3(mix: str) -> None:
    assert counted(mix, Traits(32, 4, False), SHAPES, "output", "token_embd") == LLAMA3_8B[mix]


def test_types_are_as_many_as_in_llama_cpps_own_tests() -> None:
    for mix, kinds in QWEN3.items():
        assert counted(mix, Traits(28, 2, False), SHAPES, "output", "token_embd") == kinds, mix
    stems = [f"{stem}_exps" if stem.startswith("ffn") else stem for stem in SHAPES]
    for mix, kinds in GPT_OSS.items():
        assert counted(mix, Traits(36, 8, False, 128), stems, "token_embd") == kinds, mix


def test_eight_experts_have_keys_and_values_in_8_bits() -> None:
    """ggml-org/llama.cpp#4495 prints Mixtral 8x7B's layers."""
    mixtral = Traits(32, 4, False, 8)
    kinds = {stem: mixed("Q3_K_M", f"blk.31.{stem}.weight", 4096, mixtral) for stem in ("attn_k", "attn_v", "attn_q")}
    assert kinds == {"attn_k": "q8_0", "attn_v": "q8_0", "attn_q": "q3_k"}
    assert mixed("Q4_K_M", "blk.3.attn_output.weight", 4096, mixtral) == "q5_k"
    assert mixed("Q5_K_M", "blk.3.attn_output.weight", 4096, mixtral) == "q5_k"
    assert mixed("Q3_K_L", "blk.3.attn_output.weight", 4096, mixtral) == "q3_k"


@pytest.mark.parametrize(
    ("mix", "layer", "down"),
    [("Q3_K_M", 0, "q5_k"), ("Q3_K_M", 4, "q3_k"), ("Q3_K_M", 6, "q4_k"), ("Q3_K_L", 9, "q4_k"), ("Q4_K_S", 0, "q4_k"),
     ("Q4_K_M", 1, "q6_k"), ("Q4_K_M", 2, "q5_k"), ("Q4_K_M", 4, "q4_k"), ("Q5_K_M", 2, "q6_k")],
)  # fmt: skip
def test_falcon_spends_less_on_its_second_projection(mix: Mix, layer: int, down: str) -> None:
    """llama-quant.cpp's rules for LLM_ARCH_FALCON; Falcon 7B has 32 layers, and 71 query heads for one key head."""
    falcon = Traits(32, 71, True, falcon=True)
    assert mixed(mix, f"blk.{layer}.ffn_down.weight", 18176, falcon) == down
    assert mixed(mix, "token_embd.weight", 4608, falcon) == "q8_0"
    assert mixed(mix, "blk.9.attn_output.weight", 4608, falcon) == ("q4_k" if mix == "Q3_K_L" else base_of(mix))


def test_an_importance_matrix_moves_the_guard_of_the_first_layers() -> None:
    plain, weighed = Traits(32, 4, False), Traits(32, 4, False, weighed=True)
    for mix, without, with_one in (("Q4_0", "q4_0", "q4_1"), ("Q5_0", "q5_0", "q5_1"), ("IQ4_XS", "q5_k", "iq4_xs")):
        assert is_mix(mix)
        kinds = [mixed(mix, "blk.3.ffn_down.weight", 4096, traits) for traits in (plain, weighed)]
        assert kinds == [without, with_one]
        assert mixed(mix, "blk.4.ffn_down.weight", 4096, weighed) == base_of(mix)


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


def test_file_types_are_those_of_llama_h() -> None:
    mixes: tuple[Mix, ...] = get_args(Mix)
    assert {label_of(mix) for mix in mixes} == set(FILE_TYPES)
    for mix in mixes:
        label = label_of(mix)
        assert gguf.LlamaFileType[f"MOSTLY_{label}"] == FILE_TYPES[label]
        assert BLOCKS[base_of(mix)].writable


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


def test_mixes_that_heed_an_importance_matrix() -> None:
    """Only their choices differ, and only theirs does an export say where calibration ran."""
    traits = Traits(32, 4, False)
    for label in FILE_TYPES:
        stems = [f"blk.{layer}.{stem}.weight" for layer in range(32) for stem in SHAPES]
        with_one, without = (
            [mixed(label, stem, 4096, traits._replace(weighed=weighed)) for stem in stems]  # type: ignore[arg-type]
            for weighed in (True, False)
        )
        assert (with_one != without) == (label in HEEDING)
    assert GGUF(type="IQ4_NL").weighing() == {"weighed": True} and not GGUF(type="q4_k_m").weighing()


@pytest.mark.parametrize(
    ("kind", "twin"),
    [("q4_0", "Q4_0"), ("Q4_0", "q4_0"), ("q2_k", "Q2_K"), ("Q6_K", "q6_k"), ("q4_k", None), ("q4_k_m", None),
     ("Q4_K_M", None), ("f16", None), ("mxfp4", None), ("MXFP4_MOE", None)],
)  # fmt: skip
def test_names_that_differ_by_their_letters_alone(kind: str, twin: str | None) -> None:
    assert twin_of(kind) == twin
    if is_mix(kind) and twin is None:  # either spelling means the same file
        assert label_of(kind) == label_of(kind.upper())  # type: ignore[arg-type]


def test_what_other_letters_would_mean_is_told_where_it_differs() -> None:
    types, others = {"a": "q4_0", "b": "q4_0"}, {"a": "q4_0", "b": "q6_k"}
    assert told_apart("q4_0", types, others) == (
        "q4_0 is one type for all; in capitals it is llama.cpp's mix Q4_0, in which b is q6_k (1 of 2 matrices are not "
        "q4_0)"
    )
    assert told_apart("Q4_0", others, types) == (
        "Q4_0 is llama.cpp's mix: b is q6_k (1 of 2 matrices are not q4_0); in small letters it is the type q4_0 for "
        "all"
    )
    assert told_apart("q4_0", types, types) is None
