"""How a model calls its layers: recorded once for all sequences of one shape, anew for every padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.formats import open_checkpoint
from compress.passes.model.sequences import Sequences
from compress.passes.model.skeleton import Skeleton
from compress.passes.model.tracing.calls import Calls, inputs_of, stand_ins

CPU = torch.device("cpu")


@pytest.fixture
def calls(tiny_llama: Path) -> Calls:
    _, skeleton = Skeleton.open(open_checkpoint(tiny_llama), CPU)
    return skeleton._calls


def rows(count: int, length: int, padded: int = 0) -> Sequences:
    mask = torch.arange(length).expand(count, -1) < length - padded
    return Sequences(torch.ones(count, length, dtype=torch.int64), mask if padded else None)


def test_sequences_of_one_shape_are_called_alike(calls: Calls) -> None:
    first = calls.of(rows(2, 5), cached=False)
    assert len(first) == 2 and calls.of(rows(2, 5), cached=False) is first
    assert calls.of(rows(2, 6), cached=False) is not first
    assert [tuple(call.kwargs["position_embeddings"][0].shape[1:]) for call in first] == [(5, 16)] * 2


def test_a_cache_and_padding_are_other_calls(calls: Calls) -> None:
    plain, cached = (calls.of(rows(2, 5), cached) for cached in (False, True))
    assert plain[0].kwargs["past_key_values"] is None and cached[0].kwargs["past_key_values"] is not None
    padded, other = (calls.of(rows(2, 5, padding), cached=False)[0].kwargs["attention_mask"] for padding in (1, 3))
    assert not torch.equal(padded, other)


def test_every_layer_shows_what_it_is(calls: Calls) -> None:
    assert len(calls.traced()) == len(calls.probed(3, cached=False)) == 2


def test_tokens_and_padding_go_in_as_models_take_them() -> None:
    ids, mask = inputs_of(rows(1, 4, padded=2), CPU)
    assert ids.shape == (1, 4) and mask is not None and mask.tolist() == [[1, 1, 0, 0]]
    assert inputs_of(rows(1, 4), CPU)[1] is None
    assert stand_ins(torch.nn.Linear(1, 1)) == []
