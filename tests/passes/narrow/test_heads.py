"""Which heads go together, in every family whose heads can; what config.json then says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.base import Checkpoint
from compress.formats.errors import RefusedError
from compress.passes.model.skeleton import Skeleton
from compress.passes.narrow.heads import find_groups, with_groups

Opened = Callable[..., tuple[Checkpoint, Skeleton]]


@pytest.fixture
def opened(make_model: Callable[..., Path], tmp_path: Path) -> Opened:
    def build(family: str, **options: object) -> tuple[Checkpoint, Skeleton]:
        files = open_checkpoint(make_model(tmp_path / family, family, **options))
        return Skeleton.open(files, torch.device("cpu"))

    return build


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "mistral", "gemma2", "starcoder2"])
def test_headers_with_fewer_groups_are_those_that_transformers_wants(opened: Opened, family: str) -> None:
    view, skeleton = opened(family)
    model = view.spec
    groups = find_groups(model, skeleton.anatomy)
    prefix = "model.layers.1.self_attn"
    names = tuple(f"{prefix}.{kind}_proj" for kind in "qkv")
    assert (groups[1].writers, groups[1].reader, groups[1].units) == (names, f"{prefix}.o_proj", 2)
    smaller = with_groups(model, skeleton.anatomy, groups, 1)
    assert (smaller.config["num_attention_heads"], smaller.config["num_key_value_heads"]) == (2, 1)
    again = skeleton.of_spec(smaller, view.path)  # it would refuse shapes that the configuration does not ask for
    heads = again.anatomy.heads()[1]
    before = skeleton.anatomy.heads()[1]
    assert heads and before and (heads.count, heads.kept, heads.width) == (2, 1, before.width)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3", "olmo2", "falcon"])
def test_heads_that_cannot_go_are_refused(opened: Opened, family: str) -> None:
    view, skeleton = opened(family)
    with pytest.raises(RefusedError) as refused:
        find_groups(view.spec, skeleton.anatomy)
    assert "leave kv_heads out" in str(refused.value.hint)


def test_a_number_that_config_json_does_not_know_is_refused(opened: Opened) -> None:
    view, skeleton = opened("llama")
    config = {**view.spec.config, "num_attention_heads": 8}
    with pytest.raises(RefusedError, match=r"which have \[4\] heads"):
        find_groups(replace(view.spec, config=config), skeleton.anatomy)


def test_what_the_models_code_refuses_is_refused_by_the_plan(opened: Opened) -> None:
    """Llama's hidden width is to be a multiple of its heads; six heads of keys, two of queries each, width 96."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=320, hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=12,
        num_key_value_heads=6, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    view, skeleton = opened("llama", config=config)
    groups = find_groups(view.spec, skeleton.anatomy)
    assert with_groups(view.spec, skeleton.anatomy, groups, 4).config["head_dim"] == 8
    with pytest.raises(RefusedError, match="10 heads") as refused:
        with_groups(view.spec, skeleton.anatomy, groups, 5)
    assert "say kv_heads: 1 or 2 or 3 or 4" in str(refused.value.hint)
