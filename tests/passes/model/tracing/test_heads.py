"""Whose rows a layer's heads are and how its keys may turn, in every family: as their code in transformers says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.formats import open_checkpoint
from compress.passes.model.anatomy import Heads
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tracing.heads import find_heads
from compress.passes.model.tracing.told import Seen

HALVES = tuple((i, i + 8) for i in range(8))
WIDE = tuple((i, i + 16) for i in range(16))
NEXT = tuple((i, i + 1) for i in range(0, 8, 2))
TURNS: dict[str, tuple[tuple[tuple[int, int], ...], tuple[int, ...]]] = {
    "llama": (HALVES, ()),
    "qwen2": (HALVES, ()),
    "gemma2": (WIDE, ()),
    "gpt_oss": (WIDE, ()),  # its angles are stretched (YaRN)
    "smollm3": ((), tuple(range(16))),  # layer 1 has no positions
    "gptj": (NEXT, tuple(range(8, 16))),  # neighbours, and half of a head
    "gpt_neo": ((), tuple(range(16))),  # positions are learned
    "qwen3": ((), ()),  # a norm follows
    "gemma3_text": ((), ()),
    "llama4_text": ((), tuple(range(16))),
}
FUSED = ("phi3", "falcon", "gpt2", "codegen", "gpt_neox")


@pytest.fixture
def heads(make_model: Callable[..., Path], tmp_path: Path) -> Callable[[str], tuple[Heads | None, ...]]:
    def find(family: str) -> tuple[Heads | None, ...]:
        files = open_checkpoint(make_model(tmp_path / "model", family))
        return Skeleton.open(files, torch.device("cpu"))[1].anatomy.heads()

    return find


@pytest.mark.parametrize("family", TURNS)
def test_linears_and_turns_are_found(heads: Callable[[str], tuple[Heads | None, ...]], family: str) -> None:
    found = heads(family)[1]
    assert found is not None and (found.pairs, found.free) == TURNS[family]
    leaves = [name.rpartition(".")[2] for name in (found.queries, found.keys, found.values, found.output)]
    assert leaves[:3] == ["q_proj", "k_proj", "v_proj"] and leaves[3] in ("o_proj", "out_proj")
    assert found.alike == (family != "gpt_oss")  # its heads have sinks, each its own
    assert (found.count, found.kept) == (4, 4 if family.startswith("gpt") and family != "gpt_oss" else 2)


@pytest.mark.parametrize("family", FUSED)
def test_fused_matrices_have_no_such_heads(heads: Callable[[str], tuple[Heads | None, ...]], family: str) -> None:
    assert heads(family) == (None, None)


LINEARS = {"k": (8, 4), "v": (8, 4), "q": (8, 8), "o": (8, 8)}


def toy(order: Callable[[Tensor], Tensor], scored: Callable[[Tensor], Tensor]) -> Callable[..., Seen]:
    """4 heads of width 2 on 2 of keys; `order` puts values in the heads' order, `scored` changes keys."""

    def tell(given: Mapping[str, Tensor]) -> Seen:
        keys, values = (given[name].unflatten(-1, (2, 2)).transpose(1, 2) for name in ("k", "v"))
        keys = scored(keys)
        queries = given["q"].unflatten(-1, (4, 2)).transpose(1, 2)
        weights = (queries @ keys.repeat_interleave(2, 1).mT).softmax(-1)
        return Seen(keys, values, "o", (weights @ order(values)).transpose(1, 2).flatten(2))

    return tell


def test_heads_in_another_order_are_none() -> None:
    neighbours = toy(lambda values: values.repeat_interleave(2, 1), lambda keys: keys)
    assert find_heads(neighbours, LINEARS) == Heads("q", "k", "v", "o", 4, 2, 2, (), (0, 1), alike=True)
    assert find_heads(toy(lambda values: values.repeat(1, 2, 1, 1), lambda keys: keys), LINEARS) is None


def test_keys_that_a_square_changes_do_not_turn() -> None:
    found = find_heads(toy(lambda values: values.repeat_interleave(2, 1), lambda keys: keys * keys.abs()), LINEARS)
    assert found == Heads("q", "k", "v", "o", 4, 2, 2, alike=True)


def test_a_layer_that_caches_nothing_has_none() -> None:
    assert find_heads(lambda given: None, LINEARS) is None
