"""Bits, or types of GGUF's, per tensor, chosen from what each would cost: the fewest, or the least loss.

Every linear is tried at every candidate with the pass that follows: choice/allocation.py says how they compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import ByteSize, Field, field_validator, model_validator

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError
from compress.formats.gguf.header import DEFAULT_ALIGNMENT
from compress.passes.choice.allocation import PROBES, Allocation
from compress.passes.choice.bit_budget import average, cached, largest_choices, spent
from compress.passes.choice.chooser import Choice, Nbytes
from compress.passes.choice.decision import BISECTIONS, decided, fullest
from compress.passes.choice.known_mixes import known_mixes
from compress.passes.choice.menu import Menu, menu_of_bits, menu_of_types
from compress.passes.choice.sensitivity import Trials
from compress.passes.core.base import LayerPass, Pass, Rung, Setting
from compress.passes.core.journal import Committed
from compress.passes.core.linear import LinearPass
from compress.passes.core.outcome import Outcome
from compress.passes.core.run import Run
from compress.passes.core.stage import Stage
from compress.passes.forward.cost.base import Cost
from compress.passes.model.anatomy import Anatomy
from compress.passes.options.any_format import FormatOptions, GGMLType
from compress.passes.options.integers import Bits

_MOST_BITS = 16
_PROBES_OF_TYPES = 2 * 11 + 3  # seven kinds of linears and three thirds, twice; a mix, and what is best at its bytes


class Chosen(Committed):
    """The choice: bits or types by module, their average with scales, what it costs on the calibration sequences.

    `compared`: how it stands beside llama.cpp's own mixes.
    """

    bits: Mapping[str, Rung]
    average_bits: float
    kl_divergence: float
    compared: str = ""


class Mixed(Allocation):
    """Choose the bits of each linear layer for the pass right after it (`gptq`, `rtn`, `awq`), by measured loss.

    It takes the place of that pass's `bits`; modules that a rule there matches keep theirs, and do not count.
    Layers that engines join get the same bits: q/k/v, gate/up, the experts of a layer.
    With `formats` it chooses among types of GGUF's, in place of that pass's `format`: for each tensor of the file.
    """

    average_bits: float | None = Field(
        None, gt=0, le=_MOST_BITS, description="bits per weight, scales included, on average at most"
    )
    max_bytes: ByteSize | None = Field(
        None, gt=0, description="bytes of the artifact at most, as 80MB: with embeddings and all; for `formats`"
    )
    max_kl: float | None = Field(
        None, gt=0, description="take the fewest bits whose KL divergence on calibration sequences is at most this"
    )
    bits: tuple[Bits, ...] = Field((2, 3, 4, 8), min_length=2, description="the candidates, ascending")
    formats: tuple[GGMLType | Literal["mxfp4"], ...] | None = Field(
        None, min_length=2, description="the candidates, if not bits: GGUF's types, as [iq4_nl, q5_0, q8_0]"
    )

    @field_validator("bits")
    @classmethod
    def _ascending(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if list(bits) != sorted(set(bits)):
            raise ValueError("the candidates must ascend, as in [2, 3, 4, 8]")
        return bits

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if self.average_bits is None and self.max_kl is None and self.max_bytes is None:
            raise ValueError("say average_bits (as 3.5), max_bytes (as 80MB), or max_kl (as 0.05), or several")
        if self.max_bytes is not None and self.formats is None:
            raise ValueError("max_bytes counts what GGUF's types take: name the candidates, as formats: [iq4_nl, q5_0]")
        return self

    def checks(self) -> int:
        probes = PROBES if self.formats is None else _PROBES_OF_TYPES
        return probes + 2 if self.max_kl is None else probes + 1 + BISECTIONS

    def cost(self, setting: Setting) -> Cost:
        notes = self._menu(setting.following, setting.model, setting.anatomy).notes
        return replace(super().cost(setting), notes=tuple(f"mixed: {line}" for line in notes))

    def attempts(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[LayerPass]:
        menu = self._menu(steps, model, anatomy)
        return [menu.steps[rung] for rung in menu.candidates]

    def largest(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        menu = self._menu(steps, model, anatomy)
        most = self._most(menu)
        if self.formats is None:
            return [menu.given(chosen) for chosen in largest_choices(menu.units, most)]
        mixes = known_mixes(menu, model, self._solver(steps).weighs())
        return [menu.given(fullest(menu, most, mixes))]

    def even(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> list[Choice]:
        menu = self._menu(steps, model, anatomy)
        return [menu.given([at] * len(menu.units)) for at in range(len(menu.candidates))]

    def budgeted(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy, nbytes: Nbytes) -> Self:
        if self.max_bytes is None:
            return self
        units = (menu := self._menu(steps, model, anatomy)).units
        least, most = ([at] * len(units) for at in (0, len(menu.candidates) - 1))
        smallest, largest = (nbytes(menu.given(chosen)) for chosen in (least, most))
        padding = sum(max(-cost // 8 % DEFAULT_ALIGNMENT for cost in unit.costs) for unit in units)
        if abs(8 * (largest - smallest) - (spent(units, most) - spent(units, least))) > 8 * padding:
            raise UsageError("mixed: max_bytes counts what types take in GGUF, and the largest artifact is no GGUF",
                             "export to gguf alone, or say average_bits")  # fmt: skip
        if smallest > self.max_bytes:
            raise RefusedError(
                f"mixed: with {menu.candidates[0]} everywhere the artifact takes {smallest:,} bytes already, and "
                f"max_bytes is {self.max_bytes:,}",
                "raise it, give smaller candidates, or a smaller type for the embeddings: `export: {type: q4_0}`",
            )
        room = spent(units, least) + 8 * max(0, self.max_bytes - smallest - padding)
        average_bits = min(room / sum(unit.weights for unit in units), self.average_bits or _MOST_BITS)
        return self.model_copy(update={"average_bits": average_bits, "max_bytes": None})

    def most_bytes(self) -> int | None:
        return self.max_bytes

    def model(self, run: Run, stage: Stage) -> Outcome:
        menu = self._menu(stage.following, run.model.spec, run.skeleton.anatomy)
        trials = Trials(run, stage, menu.steps, menu.modules)
        if not run.journal.of(Chosen, stage.key):
            with torch.no_grad():
                trials.measure()
                run.journal.append(self._choose(menu, self._solver(stage.following), trials))
        trials.clear()
        (choice,) = run.journal.of(Chosen, stage.key)
        measured = f"{choice.average_bits:.3f} bits per weight, KL {choice.kl_divergence:.4g} on calibration sequences"
        run.reporter.note(f"mixed: {_counted(choice.bits)}: {measured}")
        if choice.compared:
            run.reporter.note(f"mixed: {choice.compared}")
        return Outcome(
            bits=choice.bits, manifest={"mixed": choice.model_dump(exclude={"stage"}, exclude_defaults=True)}
        )

    def overrides(self, step: Pass) -> bool:
        return self.formats is not None and isinstance(step, FormatOptions) and not isinstance(step.format, tuple)

    def _menu(self, steps: Sequence[LayerPass], model: ModelSpec, anatomy: Anatomy) -> Menu:
        solver = self._solver(steps)
        if self.formats is None:
            return menu_of_bits(solver, model, anatomy, self.bits)
        return menu_of_types(solver, model, anatomy, self.formats)

    def _solver(self, steps: Sequence[LayerPass]) -> LinearPass:
        """The pass that decides the codes: the last of `steps` that takes what is chosen."""
        option = "bits" if self.formats is None else "format"
        found = [step for step in steps if isinstance(step, LinearPass) and option in type(step).model_fields]
        if not found:
            raise UsageError(f"mixed chooses for the pass right after it, and none there takes {option}",
                             "put the pass behind it, as `- gptq: {group_size: 64}`")  # fmt: skip
        return found[-1]

    def _most(self, menu: Menu) -> int:
        """The bits that all modules may take together."""
        totals: list[int] = [sum(costs) for costs in zip(*(unit.costs for unit in menu.units))]
        weights = sum(unit.weights for unit in menu.units)
        if self.average_bits is None:
            return totals[-1]
        most = int(self.average_bits * weights)
        if most < totals[0]:
            first = menu.candidates[0]
            raise RefusedError(
                f"mixed: {f'{first} bits' if self.formats is None else first} everywhere already take "
                f"{totals[0] / weights:.3f} bits per weight with their scales, and average_bits is "
                f"{self.average_bits:g}",
                "raise average_bits, use larger groups, or give fewer bits among the candidates",
            )
        return most

    def _choose(self, menu: Menu, solver: LinearPass, trials: Trials) -> Chosen:
        judge = cached(trials.judge(menu.units, menu.candidates, self.samples))
        mixes = None if self.formats is None else known_mixes(menu, trials.run.model.spec, solver.weighs())
        found = decided(menu, trials.errors(menu.units), judge, self._most(menu), self.max_kl, mixes)
        return Chosen(
            stage=trials.stage.key,
            bits=menu.given(found.chosen),
            average_bits=average(menu.units, found.chosen),
            kl_divergence=found.divergence,
            compared=found.compared,
        )


def _counted(bits: Mapping[str, Rung]) -> str:
    """How many modules have what, that of most first: "90 q4_k, 14 q6_k", "12 with 4 bits"."""
    counts = Counter(bits.values()).most_common()
    return ", ".join(
        f"{count} {rung}" if isinstance(rung, str) else f"{count} with {rung} bits" for rung, count in counts
    )
