"""A layer whose linears give what they are told, against transformers' layer with weights that give the same."""

from __future__ import annotations

import copy

import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from compress.passes.model.anatomy import Call
from compress.passes.model.cache import cache_argument, placeholder
from compress.passes.model.tracing.told import Told

CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1,
    attn_implementation="eager",
)  # fmt: skip
NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def positions() -> tuple[torch.Tensor, torch.Tensor]:
    cosines, sines = LlamaRotaryEmbedding(CONFIG)(torch.zeros(1, 3, 16), torch.arange(3)[None])
    return cosines, sines


def test_it_is_the_layer_up_to_what_follows_its_cache() -> None:
    layer = LlamaDecoderLayer(CONFIG, 0).eval()
    torch.nn.init.ones_(layer.input_layernorm.weight)
    hidden = torch.randn(1, 3, 16)
    given, arrived = {}, list[torch.Tensor]()
    for name in NAMES:
        layer.get_submodule(name).register_forward_hook(lambda _, args, out, name=name: given.update({name: out}))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args: arrived.append(args[0]))
    cache = DynamicCache(config=CONFIG)
    with torch.no_grad():
        layer(hidden, **{cache_argument(layer.forward): cache}, position_embeddings=positions())
    weightless = copy.deepcopy(layer).to("meta")
    weightless.self_attn.o_proj._forward_pre_hooks.clear()
    call = Call((), {cache_argument(layer.forward): placeholder(CONFIG), "position_embeddings": positions()})
    told = Told(weightless, lambda count: call, 16, CONFIG, torch.device("cpu"))
    assert told.linears["self_attn.k_proj"] == (16, 8) and told.linears["mlp.down_proj"] == (24, 16)
    seen = told(given)
    assert seen is not None and seen.output == "self_attn.o_proj"
    torch.testing.assert_close(seen.arrived, arrived[0])
    torch.testing.assert_close(seen.keys, cache.layers[0].keys)
    torch.testing.assert_close(seen.values, cache.layers[0].values)


def test_a_layer_that_caches_nothing_shows_nothing() -> None:
    layer = LlamaDecoderLayer(CONFIG, 0)
    layer.self_attn.forward = lambda hidden_states, **_: (layer.self_attn.o_proj(hidden_states), None)
    told = Told(layer, lambda count: Call((), {}), 16, CONFIG, torch.device("cpu"))
    assert told({NAMES[0]: torch.ones(1, 3, 16)}) is None
