"""Options that may differ from module to module: one value, or a list of `{match, value}` rules.

    bits: 4
    bits: [{match: "*.down_proj", value: 8}, {value: 4}]

`match` is a shell pattern over the module's name (`model.layers.0.mlp.down_proj`); the first rule that
matches decides, and a rule without `match` matches everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeAliasType

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Match(BaseModel, Generic[T_co]):
    """One rule of a per-module option."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    match: str | None = None
    value: T_co

    def covers(self, name: str) -> bool:
        """Whether this rule speaks of the module `name`."""
        return self.match is None or fnmatchcase(name, self.match)


class Among(Match[T_co]):
    """A rule for modules by their full names, however many: what a run has chosen for them."""

    names: frozenset[str]

    def covers(self, name: str) -> bool:
        return name in self.names


PerTensor = TypeAliasType("PerTensor", T | tuple[Match[T], ...], type_params=(T,))


def resolve(option: PerTensor[T], name: str) -> T | None:
    """What `option` says for the module `name`; None if no rule matches."""
    if not (isinstance(option, tuple) and all(isinstance(rule, Match) for rule in option)):
        return cast(T, option)
    rules = cast(tuple[Match[T], ...], option)
    return next((rule.value for rule in rules if rule.covers(name)), None)


def with_chosen(option: PerTensor[T], chosen: Mapping[str, T]) -> PerTensor[T]:
    """`option` with these values for these modules, by full name, before its own rules."""
    named: dict[T, set[str]] = {}
    for name, value in chosen.items():
        named.setdefault(value, set()).add(name)
    first: tuple[Match[T], ...] = tuple(Among(value=value, names=frozenset(names)) for value, names in named.items())
    own = option if isinstance(option, tuple) else (Match(value=option),)
    return (*first, *cast(tuple[Match[T], ...], own))


def plain(option: PerTensor[T]) -> T:
    """An option that holds one value, as those of a pass that was resolved for a module do."""
    if isinstance(option, tuple) and option and all(isinstance(rule, Match) for rule in option):
        raise ValueError("the option still holds rules: resolve it for a module first")
    return cast(T, option)
