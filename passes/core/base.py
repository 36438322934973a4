"""What a pass is: one step of a recipe. One file in `passes/`; the file's name is the recipe key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from compress.formats.base import Checkpoint, Layout, ModelSpec
from compress.kernels.effort import Effort
from compress.kernels.qtensor import NumberFormat
from compress.kernels.share import ALONE, Crew
from compress.passes.core.change import Change
from compress.passes.forward.cost.base import Cost
from compress.passes.forward.cost.passage import Passage
from compress.passes.forward.cost.shapes import Extent
from compress.passes.forward.linear_stats import LinearStats
from compress.passes.forward.statistics import Statistic
from compress.passes.model.anatomy import Anatomy
from compress.passes.model.sequences import Sequences

if TYPE_CHECKING:
    from compress.passes.core.outcome import Outcome
    from compress.passes.core.run import Run
    from compress.passes.core.stage import Stage

Place = tuple[str | int, ...]
"""Where something stands in the options of a pass: their names, and numbers within lists."""
Rung = int | str
"""Bits of an integer grid, or the name of a type of GGUF's."""
Tie = Callable[[Tensor], Tensor]
"""The nearest scale of siblings' inputs ([in] → [in], fp32 > 0) that the op before can take (passes/sweep/fold.py)."""


@dataclass(frozen=True)
class Product:
    """An artifact that a pass will write: its dialect, with options as they will be, its folder and exact files.

    `model` are the headers as they will be written, but for what the container rounds by itself: `rounded`.
    """

    dialect: str
    folder: str
    model: ModelSpec
    options: Mapping[str, Any]
    layout: Layout
    rounded: Mapping[str, NumberFormat] = field(default_factory=dict)


class Pass(BaseModel, ABC):
    """One step of a recipe. Its fields are its YAML options; it holds no state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alters: ClassVar[bool] = True
    """Whether what stages after it compute depends on it."""

    @property
    def name(self) -> str:
        """The recipe key: the name of the file that the pass is written in."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def changes(self) -> bool:
        """Whether the model is another after it: what was measured before says nothing of it then."""
        return self.alters

    @property
    def wants_change(self) -> bool:
        """Whether there is nothing for it to do unless a pass before it has changed the model."""
        return False

    def unfolded(self) -> Sequence[tuple[Place, Pass]]:
        """The passes that it stands for, each with the place of its own options in those of this one: itself alone."""
        return [((), self)]

    def located(self, folder: Path) -> Self:
        """The step with paths as they are from where the shell stands; relative ones begin at `folder`.

        `read` is told where texts begin, so this is of models.
        """
        return self

    def settled(self, model: ModelSpec, anatomy: Anatomy, note: Callable[[str], None]) -> Self:
        """The step with the options that are left open decided for this model; `note` what the user should know."""
        return self

    def calibrated_by(self) -> Self:
        """The step as it is where an earlier one chose what to calibrate by."""
        return self

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        """What the step makes of the model's headers: shapes, formats, configuration. Raises RefusedError.

        Where shapes or the configuration change, stages after it get a skeleton and an anatomy of their own.
        """
        return model

    def products(self, model: ModelSpec) -> Sequence[Product]:
        """The artifacts that it will write of a model with these headers. Raises RefusedError for what cannot be."""
        return ()

    def depends(self, sequences: Sequences | None) -> Mapping[str, Any]:
        """Which options its bytes depend on; `sequences` are those that it has read (`ModelPass.read`)."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Setting:
    """Where a step is to work: a model's headers, the text that goes through it, and what else decides about its cost.

    `sequences` are those for calibration, or those that the step has read. `budget` in bytes. `following` are the
    layer-wise passes of the next stage; `crew` are the processes that train, if it does.
    """

    model: ModelSpec
    anatomy: Anatomy
    sequences: Extent
    budget: int
    following: Sequence[LayerPass] = ()
    crew: Crew = ALONE


class ModelPass(Pass):
    """A step on the whole model at once: it is a stage of its own."""

    calibrated: ClassVar[bool] = False
    """Whether it runs the calibration sequences through the model."""
    calibrates: ClassVar[bool] = False
    """Whether it chooses the calibration sequences for the stages after it."""
    measures: ClassVar[frozenset[str]] = frozenset()
    """The figures (fields of `Scores`) that it measures of the model as it stands."""
    writes: ClassVar[bool] = False
    """Whether it writes an artifact."""
    decodes: ClassVar[bool] = False
    """Whether it makes dense weights anew: a model that comes quantized is then decoded, as for a `LayerPass`."""
    reshapes: ClassVar[bool] = True
    """Whether `plan` may change a shape or the configuration: passes after it are then settled for another model."""

    @property
    def changes(self) -> bool:
        return self.alters and not self.calibrates

    @property
    def heeds_calibration(self) -> bool:
        """Whether what it does depends on what was chosen to calibrate by; it may do without, if not `calibrated`."""
        return self.calibrated

    @property
    def energies_alone(self) -> bool:
        """Whether what it chooses to calibrate by is no text, but Σx² of the inputs of every linear layer."""
        return False

    @property
    def together(self) -> bool:
        """Whether all processes of a run do it at once; else the main one does, and the others find it committed."""
        return False

    def extent(self) -> Extent | None:
        """How much text it chooses or runs by its options, where that is known before it is there."""
        return None

    def texts(self, folder: Path) -> Mapping[tuple[str | int, ...], str]:
        """Which texts `read` reads, by where they stand in the options; the same text has the same name.

        What is made for the purpose is not among them.
        """
        return {}

    def read(self, source: Checkpoint, folder: Path, note: Callable[[str], None]) -> Sequences | None:
        """The text that it needs, before anything is computed; `folder` is where relative paths begin.

        `note` takes what the user should know. Raises InputError, which names the option, for a file that has none.
        """
        return None

    def basis(self, source: Checkpoint, folder: Path) -> Mapping[str, Any] | None:
        """All that the sequences which `read` gives depend on; None where that cannot be told without reading."""
        return None

    def prepare(self, run: Run, stage: Stage) -> None:
        """What can fail for want of a place is done here, before any stage computes anything."""

    def cost(self, setting: Setting) -> Cost:
        """What it takes."""
        sequences = setting.sequences if self.calibrated else (0, 0)
        return Passage(setting.model, setting.anatomy, sequences).cost(setting.budget)

    @abstractmethod
    def model(self, run: Run, stage: Stage) -> Outcome:
        """Do the step, or what is left of it when `run.journal` shows that it was begun."""


class LayerPass(Pass):
    """A step on linear layers. Neighbouring ones share one sweep over the decoder layers."""

    @abstractmethod
    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        """The modules (names without `.weight`) that this pass rewrites."""

    def needs(self) -> frozenset[type[Statistic]]:
        """The statistics it wants of the inputs of its targets."""
        return frozenset()

    def beyond_energy(self) -> frozenset[type[Statistic]]:
        """Those of what it needs that the Hessian's diagonal, all that an imatrix holds, does not give."""
        return frozenset(kind for kind in self.needs() if not kind.of_energy)

    def row_parts(self) -> int:
        """Into how many parts it cuts the rows of a weight, each to be solved with statistics of its own.

        Where it is not 0, what it `needs` of linears in decoder layers it gets for each part of their rows, tokens
        weighted by what they count for in the end loss (`LinearStats.parts`).
        """
        return 0

    def token_share(self) -> float:
        """How much of those weights of tokens it takes, above 0 to 1; for the rest all tokens count alike."""
        return 1.0

    def scales(self) -> bool:
        """Whether it chooses a scale of its inputs, to be folded into the op before them."""
        return False

    def input_scale(self, weights: Mapping[str, Tensor], stats: LinearStats, tie: Tie) -> Tensor | None:
        """The scale s [in] fp32 > 0 of the inputs of these linears: `siblings` then gets W·diag(s) and x/s.

        What comes out of `tie`, or 1 everywhere (None), is a scale that the op before can take. Only asked for
        where one was proved to take it.
        """
        return None

    def prepares(self) -> bool:
        """Whether a pass after it in the same stage may quantize the same weights, from this one's targets."""
        return False

    def with_bits(self, chosen: Mapping[str, Rung]) -> Self:
        """This pass with the bits, or types, that were chosen for modules by name; as it is, if it has none to say."""
        return self

    def with_shares(self, chosen: Mapping[str, float]) -> Self:
        """This pass with the part that becomes zero as it was chosen for modules; as it is, if it makes no zeros."""
        return self

    def leaves_open(self, name: str, option: str) -> bool:
        """Whether `with_bits` would decide the `option` for the module `name`, and none of its own rules does."""
        return False

    def effort(self, weights: Mapping[str, tuple[int, ...]]) -> Effort:
        """What `siblings` takes for weights of these shapes [out, in], by module name."""
        return Effort()

    @abstractmethod
    def siblings(self, weights: Mapping[str, Tensor], stats: LinearStats) -> dict[str, Change]:
        """Rewrite the weights ([out, in] fp32, by module name) of linears that share one input."""
