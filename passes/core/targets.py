"""Passes that are for some linears: which ones, and which number format, be it layer by layer or all at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import AliasChoices, Field

from compress.formats.base import ModelSpec
from compress.formats.errors import RefusedError, UsageError, suggest
from compress.formats.gguf.blocks.substitutes import Substitute
from compress.formats.options import matches, resolve
from compress.kernels.qtensor import NumberFormat
from compress.passes.core.base import Pass
from compress.passes.core.rules import refuse_idle_rules, ruled
from compress.passes.model.anatomy import Anatomy


class Selection(Pass):
    """Linear layers, by default all of the decoder layers."""

    include: tuple[str, ...] | None = Field(
        None,
        description="patterns of module names; by default all linears of the decoder layers, every expert's among "
        "them. Routers of experts (engines keep them dense), `lm_head` and embeddings are included only by name",
    )
    skip: tuple[str, ...] = Field(
        (),
        validation_alias=AliasChoices("skip", "ignore"),  # llm-compressor's word for it
        description="patterns of module names to leave as they are: `lm_head`, `down_proj`, `model.layers.0.*`",
    )

    def chosen(self, anatomy: Anatomy) -> frozenset[str]:
        """The modules that `include` and `skip` leave. Raises UsageError for a pattern that no module matches."""
        known = {name: (name,) for name in (*anatomy.linears, *anatomy.routers)} | anatomy.ends
        for pattern in (*(self.include or ()), *self.skip):
            if not any(_matches(names, (pattern,)) for names in known.values()):
                near = suggest(pattern, {name.rpartition(".")[2] for names in known.values() for name in names})
                raise UsageError(f"no linear layer is named {pattern!r}{near}", f"names look like {anatomy.linears[0]}")
        chosen = anatomy.linears if self.include is None else tuple(known)
        return frozenset(name for name in chosen if self._covers(known[name]))

    def _covers(self, names: tuple[str, ...]) -> bool:
        included = self.include is None or _matches(names, self.include)
        return included and not _matches(names, self.skip)

    def refuse_unknown_stacks(self, anatomy: Anatomy) -> None:
        """What is to be changed by default is changed, or the user knows: nothing is skipped in silence."""
        stacks = [name for layer in anatomy.layers for name in layer.stacks]
        if stacks and self.include is None:
            raise RefusedError(
                f"{self.name}: {stacks[0]} holds several matrices in a form not known here ({len(stacks)} such)",
                "to change the linear layers alone, name them: include: [...]",
            )


class Targets(Selection):
    """Linear layers, by default all of the decoder layers, each with a number format. Authors write `number_format`."""

    spans: ClassVar[bool] = False
    """Whether it can choose codes that stand for several neighbouring columns each (`NumberFormat.span`)."""

    @abstractmethod
    def number_format(self, name: str) -> NumberFormat | None:
        """The number format for a module; None leaves it as it is."""

    def targets(self, anatomy: Anatomy) -> frozenset[str]:
        """The modules (names without `.weight`) that it is for."""
        return frozenset(name for name in self.chosen(anatomy) if self.number_format(name))

    def weighs(self) -> bool:
        """Whether it weighs errors by what the inputs are."""
        return False

    def substitutes(self, model: ModelSpec, wanted: Mapping[str, str]) -> Mapping[str, Substitute]:
        """What modules get in place of types of GGUF's that do not divide their rows. Raises RefusedError."""
        return {}

    def formatted(self, model: ModelSpec, anatomy: Anatomy) -> frozenset[str]:
        """Those of the targets in `model` that get their number format from this step: all of them."""
        return self.targets(anatomy)

    def resolved(self, name: str) -> Self:
        """This pass with every per-tensor option as it is for the module `name`; defaults where no rule speaks."""
        options = {}
        for option, info in type(self).model_fields.items():
            value = resolve(getattr(self, option), name)
            options[option] = info.default if value is None else value
        return self.model_copy(update=options)

    def plan(self, model: ModelSpec, anatomy: Anatomy) -> ModelSpec:
        self.refuse_unknown_stacks(anatomy)
        self._refuse_wrong_rules(anatomy)
        tensors = dict(model.tensors)
        for module in sorted(self.formatted(model, anatomy)):
            name, number_format = f"{module}.weight", self.number_format(module)
            assert number_format is not None
            if misfit := number_format.misfit(tensors[name].shape):
                raise RefusedError(f"{module}: {misfit}", f"choose another group size, or skip it: skip: [{module}]")
            if number_format.span > 1 and not self.spans:
                raise RefusedError(
                    f"{self.name} chooses codes column by column, and {number_format.name} has one code for "
                    f"{number_format.span} columns",
                    "round to nearest, or choose another number format",
                )
            if module in model.pruned and not number_format.holds_zero:
                raise RefusedError(
                    f"{self.name}: {module} was pruned, and {number_format.name} has no value that is exactly 0",
                    "choose a number format that has: integers with symmetric: true or zero: integer, nf4, fp8",
                )
            tensors[name] = replace(tensors[name], format=number_format)
        return replace(model, tensors=tensors)

    def _refuse_wrong_rules(self, anatomy: Anatomy) -> None:
        """No rule decides for nothing, and no module stays as it is because no rule speaks of it."""
        modules = self.chosen(anatomy)
        refuse_idle_rules(self, self.name, modules, {*anatomy.linears, *anatomy.routers, *anatomy.ends} - modules)
        silent = sorted(name for name in modules if self.number_format(name) is None)
        if silent:
            more = f" and {len(silent) - 1} more layers" if len(silent) > 1 else ""
            raise UsageError(
                f"{self.name}: no rule of {self._silent_option(silent[0])} speaks of {silent[0]}{more}",
                "say what holds for all others: {value: 4} as the last rule, or `default: 4`; "
                "or leave these layers as they are: `skip`",
            )

    def _silent_option(self, name: str) -> str:
        """The option for want of whose rule the module has no number format."""
        silent = {option: rules[0].value for option, rules in ruled(self) if resolve(rules, name) is None}
        for option in silent:
            others = {other: value for other, value in silent.items() if other != option}
            if self.model_copy(update=others).number_format(name) is None:
                return option
        return ", ".join(silent)


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(matches(pattern, name) for name in names for pattern in patterns)
