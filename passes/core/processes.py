"""The processes that carry out one run together, and which of them does what.

All of them train, and share what is said to be shared (kernels/share.py). The rest is done by one, the main process,
which alone writes; the others wait for it, however long it takes, and take over from the journal what it has committed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from compress.kernels.share import WHOLE, Crew, Share

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_POLL_SECONDS = 0.05
_TIMEOUT = timedelta(hours=1)
"""So far may processes that train be apart: one of them writes a state meanwhile."""


class Processes:
    """One process that carries out a run alone; `Joined` is one of several. They are numbered from 0."""

    index = 0
    count = 1
    here = 1
    """How many of them are on this machine."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def on_main(self, work: Callable[[], None]) -> None:
        """Do `work` if this is the main process. The others do not wait for it."""
        if self.main:
            work()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The main process first, the others when it is through. All take the same turns in the same order."""
        yield

    def wait(self) -> None:
        """Until all processes are here."""

    def sum(self, value: float) -> float:
        """The sum of what each process gives."""
        return value

    def crew(self, device: str) -> Crew:
        """Those that work together, on devices of the type `device`: each has a GPU of its own."""
        return Crew(self.count, self.here if device == "cpu" else 1)

    def device(self, name: str) -> str:
        """Where this process computes if the run does on `name`: of several GPUs each process has its own."""
        return name

    def share(self, device: str) -> Share:
        """The part of this process, which computes on `device`, in what all of them do together."""
        return WHOLE

    def speaks(self) -> bool:
        """Whether this process is the first to say how the run ended: one of them does."""
        return True


class Joined(Processes):
    """One of several processes. They know each other by `store`; it is number `local` of the `here` on a machine."""

    def __init__(self, store: Store, index: int, count: int, local: int, here: int) -> None:
        self.index, self.count, self.here = index, count, here
        self._store, self._local, self._turns = store, local, 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        key = f"turn {self._turns}"
        self._turns += 1
        # Asked again and again: no collective operation waits for so long, and none can be interrupted.
        while not (self.main or self._store.check([key])):
            time.sleep(_POLL_SECONDS)
        yield
        self.on_main(lambda: self._store.set(key, ""))

    def wait(self) -> None:
        self.sum(0)

    def sum(self, value: float) -> float:
        import torch
        import torch.distributed as dist

        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def device(self, name: str) -> str:
        return f"cuda:{self._local}" if name == "cuda" else name

    def share(self, device: str) -> Share:
        return Share(self.index, self.count, device)

    def speaks(self) -> bool:
        return claim_voice(self._store)


def claim_voice(store: Store) -> bool:
    """Whether nobody else has said yet how the run of these processes ended, or is going to."""
    return store.add("voice", 1) == 1


def started_together() -> int:
    """How many processes a launcher (`--processes`, torchrun, `accelerate launch`) has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(gpus: bool) -> Iterator[Processes]:
    """This process among those that were started with it; on `gpus` they exchange gradients there."""
    if started_together() == 1:
        yield Processes()
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, index, count = next(rendezvous("env://", timeout=_TIMEOUT))
    local, here = (
        int(os.environ.get(name, value)) for name, value in (("LOCAL_RANK", index), ("LOCAL_WORLD_SIZE", count))
    )
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    group = dist.PrefixStore("group", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=group, rank=index, world_size=count, timeout=_TIMEOUT)
    yield Joined(store, index, count, local, here)
    dist.destroy_process_group()  # not after an error: who failed does not wait for the others
