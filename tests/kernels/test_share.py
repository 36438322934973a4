"""What is shared is done once and known to all: what two processes make of it is shown in tests/recipes."""

from __future__ import annotations

import pickle

import pytest
import torch

from compress.kernels.share import ALONE, WHOLE, Crew, Share, _Packed, _Taken


def test_one_process_does_all_of_it() -> None:
    done: list[int] = []
    assert WHOLE.each([lambda n=n: done.append(n) or n for n in range(3)]) == done == [0, 1, 2]  # type: ignore[misc]
    value = torch.ones(2)
    assert WHOLE.given(value) is value and WHOLE.main and all(map(WHOLE.mine, range(3)))
    WHOLE.wait()
    assert Crew() == ALONE
    with pytest.raises(torch.OutOfMemoryError, match="mine"), WHOLE.together():
        raise torch.OutOfMemoryError("mine")


def test_every_part_has_one_owner() -> None:
    for count in (2, 3):
        shares = [Share(index, count) for index in range(count)]
        assert [sum(share.mine(part) for share in shares) for part in range(7)] == [1] * 7
        assert [share.main for share in shares] == [True] + [False] * (count - 1)


def test_tensors_travel_beside_what_holds_them_bit_for_bit() -> None:
    tensors = [
        torch.tensor([[1.0, float("nan")], [-0.0, 3.0]]).T,  # not contiguous
        torch.tensor(7, dtype=torch.int16),
        torch.tensor([True, False]),
        torch.randn(5).to(torch.float8_e4m3fn),
        torch.empty(0, 3),
    ]
    packed = _Packed({"which": tensors, "said": "so"})
    taken = _Taken(packed.head, "cpu")
    assert len(packed.head) < len(pickle.dumps(tensors))
    for there, here in zip(taken.tensors, packed.tensors, strict=True):
        there.copy_(here)
    assert taken.value["said"] == "so"
    for found, sent in zip(taken.value["which"], tensors, strict=True):
        assert (found.shape, found.dtype) == (sent.shape, sent.dtype)
        assert found.contiguous().view(-1).view(torch.uint8).equal(sent.contiguous().view(-1).view(torch.uint8))
