"""The key/value cache: scales against what transformers' own cache holds, codes really stored, loss measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig

from compress.formats import open_checkpoint
from compress.formats.errors import CompressError, RefusedError
from compress.kernels.numbers.activations import CacheFormat
from compress.passes.kv_cache import KVCache
from compress.passes.model.cache import Peaks, cache_argument
from compress.passes.model.quantized_cache import Codec, QuantizedCache, cache_for
from compress.passes.model.sequences import Sequences
from compress.passes.model.weights import cached_as, dense

TOP = {"int8": 127, "fp8": 448}


def transformers_cache(source, ids):
    """(keys, values) [batch, heads, tokens, width] of every layer, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model(ids, **{cache_argument(model.forward): cache}, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


@pytest.fixture
def calibrated(begin, carry_out):
    return lambda source, work, step: carry_out(begin(source, work), step)


def attention_of(name, family):
    return f"gpt_neox.layers.{name}.attention" if family == "gpt_neox" else f"model.layers.{name}.self_attn"


@pytest.mark.parametrize(
    "family, dtype, per", [("llama", "fp8", "tensor"), ("qwen3", "int8", "head"), ("gpt_neox", "fp8", "head")]
)
def test_scales_are_the_extremes_of_the_real_cache(family, dtype, per, tmp_path, make_model, rows, calibrated):
    source = make_model(tmp_path / family, family)
    step = KVCache(dtype=dtype, per=per)
    run = calibrated(source, tmp_path / "work", step)
    assert run.model.spec.kv_cache == CacheFormat(dtype, per)
    assert run.model.spec == step.plan(run.source.spec, run.skeleton.anatomy)
    for index, states in enumerate(transformers_cache(source, rows.ids)):
        for side, state in zip("kv", states):
            scale = run.model.read(f"{attention_of(index, family)}.{side}_scale")
            peak = state.abs().amax((0, 2, 3)) if per == "head" else state.abs().max().reshape(1)
            torch.testing.assert_close(scale, peak / TOP[dtype], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype, per", [("int8", "head"), ("fp8", "token")])
def test_the_measured_loss_is_that_of_generating_with_the_codes(
    dtype, per, tmp_path, tiny_llama, begin, scores, rows, carry_out
):
    """Token by token through transformers with the stored codes: the same KL as the evaluation's one forward."""
    run = begin(tiny_llama, tmp_path / "work")
    if per != "token":
        carry_out(run, KVCache(dtype=dtype, per=per))
    run.model.spec = cached_spec(run.model.spec, CacheFormat(dtype, per))
    measured = scores(run, run.model, run.source).kl_divergence
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    cache = cache_for(model, run.model, None)
    plain = DynamicCache()
    divergences = []
    with torch.no_grad():
        for position in range(rows.length - 1):
            token = rows.ids[:, position : position + 1]
            log_p = model(token, **{cache_argument(model.forward): cache}, use_cache=True).logits[:, -1].log_softmax(-1)
            log_q = model(token, **{cache_argument(model.forward): plain}, use_cache=True).logits[:, -1].log_softmax(-1)
            divergences.append((log_q.exp() * (log_q - log_p)).sum(-1).mean())
    assert measured == pytest.approx(float(torch.stack(divergences).mean()), rel=0.02)
    assert 1e-7 < measured < 0.02


def cached_spec(spec, number_format):
    from dataclasses import replace

    return replace(spec, kv_cache=number_format)


@pytest.mark.parametrize("grid", ["int8", "fp8"])
@pytest.mark.parametrize("scale", [None, torch.tensor([0.02]), torch.tensor([0.01, 0.02])])
def test_codes_take_a_byte_each(grid, scale):
    states = torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    codec = Codec(grid, scale)
    stored = codec.encode(states)
    assert stored.dtype == torch.uint8 and stored.shape == (3, 2, 5, 16 + (4 if scale is None else 0))
    values = codec.decode(stored, torch.float32)
    step = states.float().abs().amax(-1, keepdim=True) / TOP[grid] if scale is None else scale.view(-1, 1, 1)
    inside = states.float().abs() <= TOP[grid] * step
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


def test_a_sliding_window_keeps_its_window(tmp_path):
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
        for position in range(12):
            last = model(
                ids[:, position : position + 1], **{cache_argument(model.forward): cache}, use_cache=True
            ).logits[:, -1]
    assert cache.layers[0].keys.shape[-2] == 3
    torch.testing.assert_close(last, whole, rtol=0.1, atol=0.01)


def test_generate_goes_by_the_cache_of_the_checkpoint(tmp_path, tiny_llama, calibrated):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    run = calibrated(tiny_llama, tmp_path / "work", KVCache(per="head"))
    assert cache_for(model, run.source, None) is None
    cache = cache_for(model, run.model, None)
    assert cache.layers[1].codecs[0].scale.shape == (2,)
    assert cache_for(model, run.model, "int8").layers[1].codecs[0].scale is None


def test_a_resumed_calibration_gives_the_same_scales(tmp_path, tiny_llama, calibrated):
    first = calibrated(tiny_llama, tmp_path / "work", KVCache())
    name = "model.layers.1.self_attn.v_scale"
    scale = first.model.read(name)
    again = calibrated(tiny_llama, tmp_path / "work", KVCache())
    assert torch.equal(again.model.read(name), scale)
    assert len(again.journal.records) == 2


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_scales_that_were_not_measured_are_an_error(value, tmp_path, tiny_llama, begin, monkeypatch, carry_out):
    run = begin(tiny_llama, tmp_path / "work")
    read = run.model.read

    def spoiled(name):
        return torch.full_like(read(name), value) if name == "model.layers.1.self_attn.k_proj.weight" else read(name)

    monkeypatch.setattr(run.model, "read", spoiled)
    with pytest.raises(CompressError, match=r"model\.layers\.1\.self_attn\.k_scale came out"):
        carry_out(run, KVCache())


def test_padding_does_not_count():
    peaks = Peaks()
    mask = torch.tensor([[True, True, False]])
    states = torch.tensor([1.0, -2.0, 9.0]).view(1, 1, 3, 1)
    peaks.watch(Sequences(torch.zeros(1, 3, dtype=torch.int64), mask))(states, -states)
    assert peaks.keys.tolist() == [2] and peaks.values.tolist() == [2]


def test_an_option_of_the_evaluation_rounds_per_token(tmp_path, tiny_llama, begin):
    run = begin(tiny_llama, tmp_path / "work")
    weights = cached_as("int8", dense(run.model))
    keys = torch.randn(1, 2, 3, 16)
    seen, _ = run.skeleton.watch(0, weights)(keys, keys)
    scale = keys.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(seen, (keys / scale).round() * scale)


def test_a_model_without_a_cache_is_refused(tmp_path, tiny_llama, begin):
    from dataclasses import replace

    run = begin(tiny_llama, tmp_path / "work")
    with pytest.raises(RefusedError, match="no layer keeps keys"):
        KVCache().plan(run.model.spec, replace(run.skeleton.anatomy, attentions=lambda: (None, None)))
