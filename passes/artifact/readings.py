"""Every tensor of an artifact, read once by our reader and once by an independent one, and compared on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from compress.formats.base import Checkpoint, Dialect
from compress.formats.errors import CompressError
from compress.formats.views.matrices import Matrices
from compress.kernels.qtensor import QTensor
from compress.passes.artifact.inventory import Reading, digests
from compress.passes.model.weights import Weights, decoded

_EXACT = 1e-6
CONVERTED = 0.5
"""Relative error that a dense tensor may have by its conversion to a container's type."""
_CHUNK = 1 << 22

Side = Literal["meant", "written"]
Tell = Callable[[str], None]


class Readings:
    """The tensors of `artifact`, through our reader and through the witness of its dialect.

    `model` is what was meant, maybe the artifact itself: then both readers must read the same. `check` is told
    each tensor's name and digests before the witness is asked for it, and may raise. `kept` are matrices that
    forwards ask for twice. `tell` gets each tensor's name once.
    """

    def __init__(
        self,
        model: Checkpoint,
        artifact: Checkpoint,
        dialect: type[Dialect],
        *,
        kept: frozenset[str] = frozenset(),
        check: Callable[[str, Mapping[str, str]], None] = lambda name, sha256: None,
        tell: Tell = lambda name: None,
    ) -> None:
        self.seen: dict[str, Reading] = {}
        self.errors: dict[str, float] = {}
        self._model, self._artifact, self._dialect = model, artifact, dialect
        self._kept, self._check, self._tell = kept, check, tell
        self._witness: Callable[[str], Tensor] | None = None
        self._held: dict[str, dict[Side, Tensor]] = {}

    def compare(self, name: str) -> tuple[Tensor, Tensor]:
        """What was meant and what the witness reads, fp32. Raises CompressError, by name, if these are not the same."""
        ours = self._artifact.read(name) if name in self._artifact.spec.tensors else None
        meant = ours if ours is not None and self._model is self._artifact else self._model.read(name)
        if ours is not None:
            self._see(name, ours, meant)
        expected, found = decoded(meant), self._read_again(name).float()
        if found.shape != expected.shape:
            raise CompressError(f"{name} came back as {list(found.shape)}, not {list(expected.shape)}")
        error = self.errors[name] = _relative_error(found, expected)
        dense = self._model is not self._artifact and self._model.spec.tensors[name].format is None
        if not error <= (CONVERTED if dense else _EXACT):
            raise CompressError(f"{name} came back changed: relative error {error:.3g}", "please report this")
        return expected, found

    def compare_rest(self) -> None:
        """All that no forward has asked for; what was not meant (an untied head) is only read."""
        for name in self._artifact.spec.tensors:
            if name not in self.seen and name in self._model.spec.tensors:
                self.compare(name)
            elif name not in self.seen:
                self._see(name, self._artifact.read(name), None)

    def weights(self, *sides: Side) -> list[Weights]:
        """The weights that were meant, or those that the witness reads, for forwards side by side.

        Nothing is rounded at run time. Rounding turns the last bit of a sum into a step of its grid: two right
        forwards of one model then differ as much as the rounding itself does, which hides what is wrong with the
        weights.
        """
        return [Weights(partial(self._take, sides, side)) for side in sides]

    def _take(self, sides: tuple[Side, ...], side: Side, name: str) -> Tensor:
        """One side of a pair; the others are held until they are asked for as well."""
        if side not in self._held.get(name, {}):
            pair: dict[Side, Tensor] = dict(zip(("meant", "written"), self.compare(name)))
            self._held[name] = {side: pair[side] for side in sides}
        held = self._held[name]
        if name in self._kept or held[side].ndim < 2:
            return held[side]
        tensor = held.pop(side)
        if not held:
            del self._held[name]
        return tensor

    def _see(self, name: str, ours: Tensor | QTensor, meant: Tensor | QTensor | None) -> None:
        sha256 = digests(ours)
        self._check(name, sha256)
        if name not in self.seen:
            self._tell(name)
        self.seen[name] = Reading(sha256, _same(ours, meant))

    def _read_again(self, name: str) -> Tensor:
        """The tensor through the witness, by the name that it has in the program."""
        if self._witness is None:
            read = self._dialect.witness(self._artifact.path)
            self._witness = self._artifact.through(read) if isinstance(self._artifact, Matrices) else read
        return self._witness(name)


def _same(ours: Tensor | QTensor, meant: Tensor | QTensor | None) -> bool:
    if not (isinstance(ours, Tensor) and isinstance(meant, Tensor)):
        return False
    return ours.dtype == meant.dtype and torch.equal(ours, meant)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, piece by piece: no third matrix of that size is made."""
    if torch.equal(found, expected):
        return 0.0
    pairs = list(zip(found.flatten().split(_CHUNK), expected.flatten().split(_CHUNK)))
    difference = math.sqrt(sum(float((a - b).square_().sum(dtype=torch.float64)) for a, b in pairs))
    scale = math.sqrt(sum(float(b.square().sum(dtype=torch.float64)) for _, b in pairs))
    return difference / scale if scale > 0 else difference
