"""A stage that chooses bits, or shares of zeros, for the layer-wise stage after it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from compress.formats.base import ModelSpec
from compress.passes.core.base import LayerPass, ModelPass, Pass
from compress.passes.model.anatomy import Anatomy

Choice = Mapping[str, Any]
"""Bits, types, or the part that becomes zero, by module."""
Nbytes = Callable[[Choice], int]
"""The bytes of the largest artifact with a choice."""


class Chooser(ModelPass):
    """Leaves what `Stage.following`, the passes of the next stage, are to take: `Outcome.bits`, or `Outcome.shares`."""

    chooses_bits: ClassVar[bool] = True
    """Whether it leaves bits, not shares of zeros."""

    @abstractmethod
    def largest(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        """Choices of which one takes at least as many bytes, in any container, as what the run will choose.

        `steps` are the passes that follow. Raises UsageError if none of them leaves bits to choose, RefusedError
        if there is nothing that can be chosen.
        """

    @abstractmethod
    def even(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        """Every candidate for all modules: what cannot be done with one of them is refused beforehand."""

    def budgeted(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy, nbytes: Nbytes) -> Self:
        """The step with its limit on an artifact's bytes, if any, as one on what it chooses. Raises RefusedError."""
        return self

    def overrides(self, step: Pass) -> bool:
        """Whether nothing is left of the number format that `step`, which follows, would have by itself."""
        return False

    def most_bytes(self) -> int | None:
        """The bytes that its own options allow an artifact, if they do."""
        return None

    def give(self, step: LayerPass, choice: Choice) -> LayerPass:
        """The following pass `step` with what was chosen."""
        return step.with_bits(choice)
