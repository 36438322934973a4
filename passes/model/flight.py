"""Forwards that pause: a layer's forward stops at all siblings and goes on when told.

With every batch of the calibration set in flight, the statistics of siblings are complete before any batch has
passed it; its weights can be rewritten and the forward goes on with the new ones. So true-sequential
quantization costs one forward per layer, where peers run one to gather and one to propagate.

A paused forward is a greenlet (https://greenlet.readthedocs.io): it keeps the Python stack of transformers'
own code where it stands, on one thread and in a fixed order, so results do not depend on scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from types import TracebackType

import greenlet
import torch
from torch import Tensor, nn

from compress.kernels.laps import lap

Forward = Callable[[], Tensor]


class PausePoints:
    """Marks modules (the first linear of all siblings): a flight pauses there and yields the module's input."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._hooks = [module.register_forward_pre_hook(self._pause) for module in modules]

    def note(self, name: str, module: nn.Module) -> None:
        """Keep what arrives at `module` in the flight's notes, under `name`."""

        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            current = greenlet.getcurrent()
            if isinstance(current, Flight):
                current.notes[name] = args[0]

        self._hooks.append(module.register_forward_pre_hook(keep))

    def __enter__(self) -> PausePoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    @staticmethod
    def _pause(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        current = greenlet.getcurrent()
        if isinstance(current, Flight) and module not in current.met:
            current.ground.switch(args[0])

    @staticmethod
    def meet(module: nn.Module, x: Tensor) -> None:
        """Pause at `module` now if it is marked, and not when it is called with `x`: so several may be met before."""
        current = greenlet.getcurrent()
        if isinstance(current, Flight) and PausePoints._pause in module._forward_pre_hooks.values():
            current.ground.switch(x)
            current.met.add(module)


class Flight(greenlet.greenlet):
    """One batch's forward. `next()` runs it to its next pause, and in the end to its result."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        self.ground = greenlet.getcurrent()
        self.gr_context = copy_context()  # a greenlet would begin with an empty one
        self.notes: dict[str, Tensor] = {}
        self.met: set[nn.Module] = set()
        """Where it has paused before their time (`PausePoints.meet`)."""
        self.tokens: Tensor | None = None
        """Which of the batch's tokens [sequences · length] the paused input holds, int64; None: all, in order."""

    def next(self) -> Tensor:
        """The input [batch, tokens, in] of the next siblings; after the last, the forward's result."""
        with lap("forward"):
            result: Tensor = self.switch()
        return result

    def drop(self) -> None:
        """Go no further. Its stack refers to itself, so what it holds would never be freed otherwise."""
        if self:  # it has begun, and not ended
            self.throw()


class Formation:
    """One batch's forward in parts of so many tokens, which fly one after the other: to others it is one flight."""

    def __init__(self, parts: Sequence[tuple[Flight, int]]) -> None:
        self._parts = parts

    def next(self) -> Tensor:
        """See `Flight`."""
        return _whole([flight.next() for flight, _ in self._parts])

    def drop(self) -> None:
        """See `Flight`."""
        for flight, _ in self._parts:
            flight.drop()

    def note(self, name: str) -> Tensor:
        """What was noted under `name`, which is noted no longer."""
        return _whole([flight.notes.pop(name) for flight, _ in self._parts])

    @property
    def tokens(self) -> Tensor | None:
        """See `Flight`."""
        found, before = list[Tensor](), 0
        for flight, count in self._parts:
            if flight.tokens is None:
                return None
            found.append(flight.tokens + before)
            before += count
        return _whole(found)


@contextmanager
def dropped(flights: Sequence[Sequence[Formation]]) -> Iterator[None]:
    """At the end of it none of `flights` holds anything any more."""
    try:
        yield
    finally:
        for flight in (each for flying in flights for each in flying):
            flight.drop()


@contextmanager
def dropped_on_error(flights: Sequence[Sequence[Formation]]) -> Iterator[None]:
    """`dropped` if it ends so."""
    try:
        yield
    except BaseException:
        with dropped(flights):
            raise


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@contextmanager
def routed(tokens: Tensor | None) -> Iterator[None]:
    """Within, the forward deals with these of the batch's tokens only: an expert's."""
    flight = greenlet.getcurrent()
    if isinstance(flight, Flight):
        flight.tokens = tokens
    yield
    if isinstance(flight, Flight):
        flight.tokens = None
