"""llama.cpp's mixes as choices: those that the candidates can make, and no others."""

from __future__ import annotations

from compress.formats.base import ModelSpec, TensorSpec
from compress.passes.choice.known_mixes import known_mixes
from compress.passes.choice.menu import menu_of_types
from compress.passes.model.anatomy import Anatomy, LayerAnatomy
from compress.passes.rtn import RTN

LEAVES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LAYERS = tuple(
    LayerAnatomy(f"model.layers.{n}", tuple((f"model.layers.{n}.{leaf}",) for leaf in LEAVES), {}) for n in range(8)
)
ANATOMY = Anatomy(LAYERS, "model.embed_tokens.weight", "lm_head.weight", True, lambda: (None,) * 8)
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 320,
    "intermediate_size": 512, "tie_word_embeddings": True,
}  # fmt: skip


def model(columns: int) -> ModelSpec:
    return ModelSpec(CONFIG, {f"{name}.weight": TensorSpec((64, columns), "float32") for name in ANATOMY.linears})


def test_mixes_are_found_whose_types_are_candidates() -> None:
    menu = menu_of_types(RTN(), model(256), ANATOMY, ["q4_k", "q5_k", "q6_k"])
    found = known_mixes(menu, model(256), False)
    assert set(found) == {"Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"}
    given = menu.given(found["Q4_K_M"])
    assert given["model.layers.0.mlp.down_proj"] == "q6_k" and given["model.layers.1.mlp.up_proj"] == "q4_k"
    assert [kind for name, kind in given.items() if name.endswith("v_proj")].count("q6_k") == 4


def test_substitutes_count_as_what_they_are() -> None:
    menu = menu_of_types(RTN(), model(64), ANATOMY, ["q4_0", "iq4_nl", "q5_0", "q5_1", "q8_0"])
    assert {"Q4_0", "Q3_K_M", "Q4_K_M", "IQ4_NL", "IQ4_XS", "Q8_0"} <= set(known_mixes(menu, model(64), False))
