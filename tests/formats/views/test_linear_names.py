"""Which weights are those of linear layers, by their names."""

import pytest

from compress.formats.views.linear_names import is_linear


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight", "embed_out.weight", "h.0.attn.c_attn.weight"]
)
def test_linear_layers(name):
    assert is_linear(name)


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "transformer.wte.weight", "wpe.weight", "word_embeddings.weight", "x.up_proj.bias"],
)
def test_embeddings_and_biases_are_none(name):
    assert not is_linear(name)
