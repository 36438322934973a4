"""A stage that chooses bits for the layer-wise stage after it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from compress.formats.base import ModelSpec
from compress.passes.core.anatomy import Anatomy
from compress.passes.core.base import LayerPass, ModelPass


class Chooser(ModelPass):
    """Leaves in `run.bits` what `run.following`, the passes of the next stage, are to take."""

    @abstractmethod
    def choices(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Mapping[str, int]]:
        """What a plan must allow for: bits by module. No choice of the run will take more bytes than the first.

        `steps` are the passes that follow. Raises UsageError if none of them leaves bits to choose, RefusedError
        if there is nothing that can be chosen.
        """

    @abstractmethod
    def checks(self) -> tuple[int, int]:
        """How often it runs the changed model at most, and on how many of the calibration rows."""
