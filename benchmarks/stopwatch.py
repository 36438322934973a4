"""Where time goes: seconds of named functions, each without those that it calls. A GPU is waited for at both ends."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

import torch

Place = tuple[str, object, str]
"""What the table calls it, the module or class that holds the function, and its name there."""


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """`seconds` and `calls` by label."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._device = device
        self._inner = [0.0]

    @contextmanager
    def watching(self, places: Sequence[Place]) -> Iterator[None]:
        """Within, every call of these functions is timed."""
        before = [(owner, name, vars(owner).get(name)) for _, owner, name in places]
        try:
            for label, owner, name in places:
                found = getattr_static(owner, name)
                timed = self._timed(label, getattr(owner, name))
                setattr(owner, name, staticmethod(timed) if isinstance(found, staticmethod) else timed)
            yield
        finally:
            for owner, name, own in reversed(before):
                delattr(owner, name) if own is None else setattr(owner, name, own)

    def rows(self, total: float) -> list[str]:
        """Markdown rows, the longest first, and what is left of `total` seconds."""
        longest = sorted(self.seconds.items(), key=lambda item: -item[1])
        shown = [(label, each, self.calls[label]) for label, each in longest]
        rest = total - sum(self.seconds.values())
        return [
            f"| {label} | {calls} | {each:.2f} | {100 * each / total:.0f} % |"
            for label, each, calls in [*shown, ("everything else", rest, 1)]
        ]

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self._device)
            started = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                wait(self._device)
                taken = time.perf_counter() - started
                self.seconds[label] += taken - self._inner.pop()
                self.calls[label] += 1
                self._inner[-1] += taken

        return timed
