"""Work shared by several processes, each of which has all results in the end: bit for bit those of one alone.

What is divided is cut the same way however many there are, so no number of processes decides how anything is rounded.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Crew:
    """How many processes work together, and how many of them share the memory that they compute in."""

    count: int = 1
    sharing: int = 1


ALONE = Crew()


class Share:
    """The part of process `index` of `count`, which computes on `device`; of one alone it is all.

    All of them call the same methods in the same order. Raises RuntimeError if another one is gone, and
    torch.OutOfMemoryError if another one's memory ran out `together` with it.
    """

    def __init__(self, index: int = 0, count: int = 1, device: str = "cpu") -> None:
        self.index, self.count, self._device = index, count, device
        self._told = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def mine(self, number: int) -> bool:
        """Whether part `number` of the work falls to this process."""
        return number % self.count == self.index

    def each(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What `works` give, in their order; each is done by one process."""
        own = [work() for number, work in enumerate(works) if self.mine(number)]
        found = [iter(self.given(own, owner)) for owner in range(min(self.count, len(works)))]
        return [next(found[number % self.count]) for number in range(len(works))]

    def given(self, value: T, owner: int = 0) -> T:
        """What process `owner` has for `value`, whatever others have; tensors come to the device of each."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        packed = _Packed(value) if self.index == owner else None
        self.wait()
        head = [packed.head if packed else b""]
        dist.broadcast_object_list(head, src=owner, device=torch.device("cpu"))
        known = packed or _Taken(head[0], self._device)
        self.wait()  # until there is room for what comes
        for tensor in known.tensors:
            dist.broadcast(tensor, owner)
        found: T = known.value
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        self._meet(short=False)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where memory runs out in one process within, it does in all: here, or where they next wait for each other."""
        if self.count == 1:
            yield
            return
        import torch

        self._told = False
        try:
            yield
            self.wait()
        except torch.OutOfMemoryError:
            if not self._told:
                self._meet(short=True)
            raise

    def _meet(self, short: bool) -> None:
        """Wait for all, and tell them whether this one is `short` of memory; it raises if another one is."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        many = torch.tensor(float(short))
        dist.all_reduce(many)
        self._told = bool(many)
        if self._told and not short:
            raise torch.OutOfMemoryError("memory ran out in another one of the processes")


WHOLE = Share()


class _Packed(pickle.Pickler):
    """A value on its way out: `head` has all but the contents of its tensors, which are views of bytes [n] uint8."""

    def __init__(self, value: object) -> None:
        buffer = io.BytesIO()
        super().__init__(buffer)
        self.tensors: list[Tensor] = []
        self.value: Any = value
        self.dump(value)
        self.head = buffer.getvalue()

    def persistent_id(self, given: Any) -> tuple[object, ...] | None:
        import torch

        if not isinstance(given, torch.Tensor):
            return None
        if given.numel():
            self.tensors.append(_bytes(given.detach().contiguous()))
        return given.shape, given.dtype, given.device.type


class _Taken(pickle.Unpickler):
    """The same on its way in: `tensors` are the places of those contents."""

    def __init__(self, head: bytes, device: str) -> None:
        super().__init__(io.BytesIO(head))
        self.tensors: list[Tensor] = []
        self._device = device
        self.value: Any = self.load()

    def persistent_load(self, given: Any) -> Tensor:
        import torch

        shape, dtype, kind = given
        tensor = torch.empty(shape, dtype=dtype, device="cpu" if kind == "cpu" else self._device)
        if tensor.numel():
            self.tensors.append(_bytes(tensor))
        return tensor


def _bytes(tensor: Tensor) -> Tensor:
    """The bytes [n] uint8 of a contiguous tensor: of any dtype, whatever a backend knows."""
    import torch

    return tensor.view(-1).view(torch.uint8)
