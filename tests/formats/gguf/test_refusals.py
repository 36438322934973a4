"""What GGUF or llama.cpp cannot hold is refused before any weight is read, with the reason and what works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.config import write_config
from compress.formats.gguf.dialect import GGUF
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import NumberFormat

Headers = Callable[[str], ModelSpec]
UP = "model.layers.0.mlp.up_proj.weight"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture
def headers(make_model: Callable[..., Path], tmp_path: Path) -> Headers:
    """The headers and files of a tiny model."""

    def read(family: str) -> ModelSpec:
        model = open_checkpoint(make_model(tmp_path / family, family))
        return replace(model.spec, files=model.files())

    return read


@pytest.mark.parametrize(
    ("number_format", "said"),
    [
        (IntFormat(4, 16), "multiple of 32"),
        (IntFormat(8, 32, "integer"), "7 with a whole zero point"),
        (IntFormat(8, 32, "real"), "5 with a minimum"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_no_block_holds_is_refused_with_what_does(
    number_format: NumberFormat, said: str, headers: Headers
) -> None:
    model = headers("llama")
    spec = replace(model.tensors[UP], format=number_format)
    assert said in str(GGUF().misfit(UP, spec, model))
    with pytest.raises(RefusedError, match=said):
        GGUF().layout(replace(model, tensors={**model.tensors, UP: spec}))


def test_columns_that_blocks_do_not_divide_are_refused(headers: Headers) -> None:
    spec = TensorSpec((64, 48), "float32")
    model = headers("llama")
    spec = replace(spec, format=IntFormat(4, 48))
    assert "no GGUF block" in str(GGUF().misfit(UP, spec, model))
    spec = replace(spec, format=IntFormat(4, -1))
    assert "f16" in str(GGUF().misfit(UP, spec, model))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"model_type": "mamba"}, "known: llama, mistral"),
        ("llama", {"hidden_act": "gelu"}, "it has silu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "whole heads"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 2.0}}}, "layers differ"),
        ("llama", {"rope_parameters": {**YARN, "attention_factor": 3.0}}, "attention factor"),
        ("llama", {"rope_parameters": {**YARN, "beta_slow": 4.0}}, "beta_slow = 1.0 only"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"rope_parameters": LLAMA3}, "Llama 3 scaling"),
        ("smollm3", {"no_rope_layers": [0, 1]}, "no_rope_layers = [1, 1] only"),
        ("gemma", {"hidden_act": "silu"}, "gelu_pytorch_tanh"),
        ("falcon, old", {}, "with alibi = False only"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias"),
        ("gpt_neox", {"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    name: str, changes: dict[str, Any], said: str, headers: Headers
) -> None:
    model = headers(name)
    spec = replace(model, config={**model.config, **changes})
    with pytest.raises(RefusedError) as error:
        GGUF().layout(spec)
    assert said in f"{error.value} {error.value.hint}"


def test_a_window_that_llama_cpp_does_not_know_is_where_the_context_ends(headers: Headers) -> None:
    """And it is said; nothing is where the window is as long as the context, or not used."""
    model = headers("mistral")
    window, context = model.config["sliding_window"], model.config["max_position_embeddings"]
    assert write_config(model.config)[0]["llama.context_length"].value == window < context
    (said,) = GGUF().layout(model).substitutes
    assert "no sliding window in llama" in said and f"{window:,} tokens" in said
    for wide in (None, context):
        spec = replace(model, config={**model.config, "sliding_window": wide})
        assert not GGUF().layout(spec).substitutes
        assert write_config(spec.config)[0]["llama.context_length"].value == context
    with pytest.raises(InputError, match="sliding_window is 'wide'"):
        GGUF().layout(replace(model, config={**model.config, "sliding_window": "wide"}))


def test_a_type_that_most_weights_do_not_get_is_said(headers: Headers) -> None:
    """They are quantized already: `type` is for the others, and the file is not called after a mix."""
    model = headers("llama")
    matrices = {name: spec for name, spec in model.tensors.items() if "layers" in name and len(spec.shape) == 2}
    kept = {name: replace(spec, format=IntFormat(4, 32, "real")) for name, spec in matrices.items()}
    spec = replace(model, tensors={**model.tensors, **kept})
    for kind in ("f16", "q4_k_m"):
        layout = GGUF(type=kind).layout(spec)
        assert f"{len(kept)} tensors are quantized already and stay q4_1: `type: {kind}`" in layout.substitutes[-1]
        assert layout.files[0].name.endswith("Q4_1.gguf")
    for usual in (GGUF(type="q4_1"), GGUF()):
        assert not any("quantized already" in said for said in usual.layout(spec).substitutes)
    # What a solver put onto a mix's types for it is no other.
    names = {name for name, kind in GGUF(type="q4_k_m").roundings(model).items() if name in matrices}
    solved = {n: replace(matrices[n], format=GGUF(type="q4_k_m").roundings(model)[n]) for n in names}
    layout = GGUF(type="q4_k_m").layout(replace(model, tensors={**model.tensors, **solved}))
    assert layout.files[0].name.endswith("Q4_K_M.gguf")
    assert not any("quantized already" in said for said in layout.substitutes)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": None},
        {"hidden_size": 1 << 18},
        {"num_hidden_layers": 10**8},
        {"num_hidden_layers": "2"},
        {"num_key_value_heads": 3},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_theta": -1.0}},
        {"rope_parameters": "default"},
        {"rope_parameters": {"rope_theta": 10**400}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
    ],
    ids=str,
)
def test_an_absurd_config_json_is_an_input_error(changes: dict[str, Any], headers: Headers) -> None:
    model = headers("llama")
    spec = replace(model, config={**model.config, **changes})
    with pytest.raises(InputError):
        GGUF().layout(spec)


def test_tensors_that_do_not_make_the_model_are_named(headers: Headers) -> None:
    spec = headers("llama")
    extra = {**spec.tensors, "model.layers.0.mlp.router.weight": TensorSpec((4, 64), "float32")}
    with pytest.raises(RefusedError, match="router"):
        GGUF().layout(replace(spec, tensors=extra))
    buffer = {**spec.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": TensorSpec((8,), "float32")}
    assert GGUF().layout(replace(spec, tensors=buffer)) == GGUF().layout(spec)
    norm = "model.norm.weight"
    without = {name: tensor for name, tensor in spec.tensors.items() if name != norm}
    with pytest.raises(InputError, match=r"model\.norm\.weight is missing"):
        GGUF().layout(replace(spec, tensors=without))
    with pytest.raises(InputError, match=r"model\.norm\.weight has the shape"):
        GGUF().layout(replace(spec, tensors={**without, norm: TensorSpec((63,), "float32")}))


def test_other_letters_mean_another_file_and_that_is_said(headers: Headers) -> None:
    """Q4_0 gives the output matrix, here the embedding, Q8_0 (rows of 64); q4_0 is one type for all."""
    model = headers("llama")
    (small,) = GGUF(type="q4_0").layout(model).substitutes
    assert small.startswith(
        "type: q4_0 is one type for all; in capitals it is llama.cpp's mix Q4_0, in which token_embd"
    )
    (capital,) = GGUF(type="Q4_0").layout(model).substitutes
    assert capital.startswith("type: Q4_0 is llama.cpp's mix: token_embd.weight is q8_0 (1 of 15 matrices")
    for kind in ("q8_0", "Q8_0", "f16"):  # mean the same file
        assert not GGUF(type=kind).layout(model).substitutes


def test_types_that_no_mix_differs_from_may_be_said_in_capitals(headers: Headers) -> None:
    model = headers("llama")
    assert GGUF(type="BF16").layout(model) == GGUF(type="bf16").layout(model)
    rules = [{"match": "*EMBED*", "value": "F32"}, {"value": "MXFP4"}]
    assert GGUF.model_validate({"type": rules}).type[0].match == "*EMBED*"  # type: ignore[union-attr]
    assert [rule.value for rule in GGUF.model_validate({"type": rules}).type] == ["f32", "mxfp4"]  # type: ignore[union-attr]
    assert GGUF.model_validate({"type": {"*embed*": "F32", "default": "Q4_0"}}).type[1].value == "Q4_0"  # type: ignore[union-attr]
    with pytest.raises(ValueError):
        GGUF(type="Bf16")
