"""A cache for transformers that stores codes: their size, their window, and what transformers does to a cache."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig

from compress.formats import open_checkpoint
from compress.kernels.numbers.activations import LARGEST, CacheFormat
from compress.kernels.product.attend_codes import attend_codes
from compress.passes.model.cache import cache_argument
from compress.passes.model.whole import quantized_cache as module
from compress.passes.model.whole.quantized_cache import Codec, QuantizedCache, cache_for


@pytest.mark.parametrize("grid", ["int8", "fp8"])
@pytest.mark.parametrize("scale", [None, torch.tensor([0.02]), torch.tensor([0.01, 0.02])])
def test_codes_take_a_byte_each(grid, scale):
    states = torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    codec = Codec(grid, scale)
    stored = codec.encode(states)
    assert stored.dtype == torch.uint8 and stored.shape == (3, 2, 5, 16 + (4 if scale is None else 0))
    values = codec.decode(stored, torch.float32)
    step = states.float().abs().amax(-1, keepdim=True) / LARGEST[grid] if scale is None else scale.view(-1, 1, 1)
    inside = states.float().abs() <= LARGEST[grid] * step
    limit = step * 0.51 if grid == "int8" else states.float().abs() / 16 + step * 2**-9
    assert bool(((values - states.float()).abs() <= limit)[inside].all())
    assert torch.equal(codec.decode(codec.encode(values), torch.float32), values) or scale is None


def test_the_cache_is_smaller_and_can_be_cropped_and_reordered(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    ids = torch.arange(20).view(2, 10)
    checkpoint = open_checkpoint(tiny_llama)
    plain, codes = DynamicCache(config=model.config), cache_for(model, checkpoint, "int8")
    with torch.no_grad():
        for cache in (plain, codes):
            model(ids, **{cache_argument(model.forward): cache}, use_cache=True)
    full = sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers)
    assert codes.nbytes == 2 * 2 * 2 * 2 * 10 * (16 + 4) and codes.nbytes < 0.32 * full
    assert codes.get_seq_length() == 10
    codes.crop(-4)
    assert codes.get_seq_length() == 6
    before = codes.layers[0].keys.clone()
    codes.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(codes.layers[0].keys, before.flip(0))


@pytest.mark.parametrize("number_format", [CacheFormat("int8", "token"), CacheFormat("fp8", "head")])
def test_attention_reads_codes_as_it_would_what_they_stand_for(tiny_llama, number_format, monkeypatch):
    """Two sequences of which one is padded; a prompt, then single tokens."""
    calls = []
    monkeypatch.setattr(module, "attend_codes", lambda *given: calls.append(given) or attend_codes(*given))
    ids = torch.arange(24).view(2, 12)
    seen = torch.ones_like(ids)
    seen[1, :3] = 0
    found = []
    for reading in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
        heads = model.config.num_key_value_heads
        scale = torch.full((heads,), 0.01)
        cache = QuantizedCache(model.config, number_format, {} if number_format.per == "token" else {0: (scale, scale)})
        if reading:
            module.read_codes(model, cache)
        with torch.no_grad():
            for start, end in ((0, 9), (9, 10), (10, 11), (11, 12)):
                given = {cache_argument(model.forward): cache, "attention_mask": seen[:, :end], "use_cache": True}
                found.append(model(ids[:, start:end], **given).logits[:, -1])
    assert len(calls) == 3 * model.config.num_hidden_layers
    for one, other in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reading", [False, True])
def test_a_sliding_window_keeps_its_window(tmp_path, reading):
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, 64, (1, 12))
    cache = QuantizedCache(model.config, CacheFormat("int8", "token"), {})
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[:, -1]
        if reading:
            module.read_codes(model, cache)
        for position in range(12):
            last = model(
                ids[:, position : position + 1], **{cache_argument(model.forward): cache}, use_cache=True
            ).logits[:, -1]
    assert cache.layers[0].keys.shape[-2] == 3
    torch.testing.assert_close(last, whole, rtol=0.1, atol=0.01)
