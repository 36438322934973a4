"""Whose heads can be fewer, what changes with them, and what one head for several is worth, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError
from compress.kernels.solve.align import How
from compress.passes.model.anatomy import Anatomy, Heads
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.heads import tensors_of
from compress.passes.narrow.sharing import cached_bytes, find_sharing, pool, with_kept

Opened = Callable[[str], tuple[ModelSpec, Anatomy]]


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Opened:
    def build(family: str) -> tuple[ModelSpec, Anatomy]:
        model, skeleton = Skeleton.open(open_checkpoint(make_model(tmp_path / family, family)), torch.device("cpu"))
        return model.spec, skeleton.anatomy

    return build


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mixtral", "gpt_oss"])
def test_what_changes_with_the_heads(opened: Opened, family: str) -> None:
    model, anatomy = opened(family)
    sharing = find_sharing(model, anatomy)
    smaller = with_kept(model, sharing, 1)
    assert smaller.config["num_key_value_heads"] == 1
    width, changed = sharing[0].width, {name for name, spec in model.tensors.items() if smaller.tensors[name] != spec}
    assert all(smaller.tensors[name].shape[0] == width and ("k_proj" in name or "v_proj" in name) for name in changed)
    assert len(changed) == 2 * 2 * (2 if family in ("qwen2", "gpt_oss") else 1)  # biases
    assert changed < {name for heads in sharing for name in tensors_of(model, heads)}
    assert cached_bytes(sharing, 2) == 2 * cached_bytes(sharing, 1) == 2 * 2 * 2 * 2 * width


REFUSED = {
    "phi3": "no linears q, k and v",
    "gpt2": "no linears q, k and v",
    "gptj": "no num_key_value_heads",
    "olmo2": "all heads together",
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_share_is_refused(opened: Opened, family: str) -> None:
    with pytest.raises(RefusedError, match=REFUSED[family]) as refused:
        find_sharing(*opened(family))
    assert "leave gqa out" in str(refused.value.hint)


def test_old_configurations_that_do_not_say_how_many_are_told(opened: Opened) -> None:
    """As Llama's of 2023, which is MHA if nothing is said."""
    model, anatomy = opened("llama")
    (first, *_) = heads = [replace(each, kept=4) for each in anatomy.heads() if each]
    config = {key: value for key, value in model.config.items() if key != "num_key_value_heads"}
    spec = replace(model, config=config)
    assert find_sharing(spec, replace(anatomy, heads=lambda: tuple(heads)))[0] == first
    with pytest.raises(RefusedError, match="which have"):
        find_sharing(spec, anatomy)


def test_latent_attention_has_no_such_heads(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        first_k_dense_replace=2, max_position_embeddings=256, n_routed_experts=4, n_group=1, topk_group=1,
    )  # fmt: skip
    files = open_checkpoint(make_model(tmp_path / "mla", "mla", config=config))
    model, skeleton = Skeleton.open(files, torch.device("cpu"))
    with pytest.raises(RefusedError, match="no linears q, k and v"):
        find_sharing(model.spec, skeleton.anatomy)


HEADS = Heads("q", "k", "v", "o", 4, 4, 4, free=(0, 1, 2, 3))
TOKENS, HIDDEN = 200, 12


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"{name}.weight": (16, HIDDEN) for name in "qkv"} | {f"{name}.bias": (16,) for name in "qkv"}
    return {
        name: torch.randn(shape, generator=generator) for name, shape in {**shapes, "o.weight": (HIDDEN, 16)}.items()
    }


def per_head(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [heads, tokens, tokens] without positions, and what each head's values add to outputs, fp64."""
    made = {n: x @ weights[f"{n}.weight"].double().T + weights[f"{n}.bias"].double() for n in "qkv"}
    q, k, v = (made[name].view(len(x), -1, 4).transpose(0, 1) for name in "qkv")
    k, v = (each.repeat_interleave(4 // len(each), 0) for each in (k, v))
    output = weights["o.weight"].double().view(HIDDEN, 4, 4).movedim(1, 0)
    return q @ k.mT, v @ output.mT


@pytest.mark.parametrize("how", ["mean", "aligned", "shared"])
def test_what_is_lost_is_what_it_says_and_shared_heads_lose_least(how: How) -> None:
    mixing = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ mixing
    x -= x.mean(0)  # so that biases go with no input
    whole, hessian = weights(), (x.T @ x).float()
    scores, outputs = per_head(whole, x)

    def lost(which: How) -> tuple[float, float]:
        pooled = pool(HEADS, 2, which, whole, hessian, TOKENS)
        assert {name: tensor.shape[0] for name, tensor in pooled.tensors.items() if name[0] in "kv"} == {
            f"{name}.{leaf}": 8 for name in "kv" for leaf in ("weight", "bias")
        }
        assert 0 < pooled.errors["k"] < 1 and 0 < pooled.errors["v"] < 1
        found = per_head(dict(pooled.tensors), x)
        return tuple(float((a - b).square().sum() / b.square().sum()) for a, b in zip(found, (scores, outputs)))  # type: ignore[return-value]

    best, found = lost("shared"), lost(how)
    assert best[0] <= found[0] * 1.001 and best[1] <= found[1] * 1.001
    if how == "mean":
        assert best[0] < 0.8 * found[0] and best[1] < 0.8 * found[1]
