"""Sequences of tokens: padding does not count, and a digest names them."""

from __future__ import annotations

import torch

from compress.passes.model.sequences import Sequences

IDS = torch.arange(12).view(3, 4)
MASK = torch.arange(4) < torch.tensor([4, 1, 2])[:, None]


def test_tokens_are_the_real_ones() -> None:
    assert (Sequences(IDS).count, Sequences(IDS).length, Sequences(IDS).tokens) == (3, 4, 12)
    assert Sequences(IDS, MASK).tokens == 7


def test_a_batch_takes_its_part_of_the_mask() -> None:
    batch = Sequences(IDS, MASK).batch(1, 3)
    assert torch.equal(batch.ids, IDS[1:]) and batch.mask is not None and torch.equal(batch.mask, MASK[1:])
    assert Sequences(IDS).batch(0, 1).mask is None


def test_the_digest_is_of_tokens_and_mask() -> None:
    digests = [Sequences(IDS).sha256(), Sequences(IDS + 1).sha256(), Sequences(IDS, MASK).sha256()]
    assert len(set(digests)) == 3
    assert Sequences(IDS.clone(), MASK.clone()).sha256() == digests[2]
    assert Sequences(IDS.int()).sha256() == digests[0]
