"""Options that may differ from module to module: one value, rules, or their short form.

    bits: 4
    bits: {"*.down_proj": 8, default: 4}
    bits: [{match: "*.down_proj", value: 8}, {value: 4}]

The first rule that matches decides; `default`, or a rule without `match`, speaks of all the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Generic, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeAliasType

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DEFAULT = "default"


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` means the module `name` (`model.layers.0.mlp.down_proj`).

    A shell pattern (`*`, `?`, `[`) speaks of the whole name, a plain one of the whole name or the end of it:
    `down_proj`, `mlp.down_proj`.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}")


class Match(BaseModel, Generic[T_co]):
    """One rule of a per-module option."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    match: str | None = None
    value: T_co

    def covers(self, name: str) -> bool:
        """Whether this rule speaks of the module `name`."""
        return self.match is None or matches(self.match, name)


class Among(Match[T_co]):
    """A rule for modules by their full names, however many: what a run has chosen for them."""

    names: frozenset[str]

    def covers(self, name: str) -> bool:
        return name in self.names


class _ShortForm:
    """Lets rules be written as a map from pattern to value, too. Values that are maps themselves cannot have it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kind: type[Match[Any]] = get_args(source)[0]
        (value,) = kind.__pydantic_generic_metadata__["args"]
        written = core_schema.dict_schema(core_schema.str_schema(), handler.generate_schema(value), min_length=1)
        read = core_schema.no_info_after_validator_function(lambda values: _rules(kind, values), written)
        return core_schema.union_schema([handler(source), read])


def _rules(kind: type[Match[T]], values: Mapping[str, T]) -> tuple[Match[T], ...]:
    """The rules that a short form stands for: the default last, wherever it was written."""
    named = sorted(values.items(), key=lambda item: item[0] == DEFAULT)
    return tuple(kind(match=None if pattern == DEFAULT else pattern, value=value) for pattern, value in named)


def in_small_letters(said: Any, names: Collection[str]) -> Any:
    """What is said of an option, as it was written, where that is one of these `names` but for its capitals."""
    if isinstance(said, str):
        return said.lower() if said.isupper() and said.lower() in names else said
    if isinstance(said, Mapping):
        # A rule keeps its pattern, and the short form its patterns.
        return {key: value if key == "match" else in_small_letters(value, names) for key, value in said.items()}
    return [in_small_letters(rule, names) for rule in said] if isinstance(said, list | tuple) else said


PerTensor = TypeAliasType("PerTensor", T | Annotated[tuple[Match[T], ...], _ShortForm()], type_params=(T,))


def _rules_in(option: PerTensor[T]) -> tuple[Match[T], ...] | None:
    """The rules of an option; None for one that is a value."""
    holds = isinstance(option, tuple) and all(isinstance(rule, Match) for rule in option)
    return cast(tuple[Match[T], ...], option) if holds else None


def resolve(option: PerTensor[T], name: str) -> T | None:
    """What `option` says for the module `name`; None if no rule matches."""
    rules = _rules_in(option)
    if rules is None:
        return cast(T, option)
    return next((rule.value for rule in rules if rule.covers(name)), None)


def with_chosen(option: PerTensor[T], chosen: Mapping[str, T]) -> PerTensor[T]:
    """`option` with these values for these modules, by full name, before its own rules."""
    named: dict[T, set[str]] = {}
    for name, value in chosen.items():
        named.setdefault(value, set()).add(name)
    first: tuple[Match[T], ...] = tuple(Among(value=value, names=frozenset(names)) for value, names in named.items())
    own = _rules_in(option)
    return (*first, *((Match(value=cast(T, option)),) if own is None else own))


def plain(option: PerTensor[T]) -> T:
    """An option that holds one value, as those of a pass that was resolved for a module do."""
    if _rules_in(option):
        raise ValueError("the option still holds rules: resolve it for a module first")
    return cast(T, option)


def may_be(option: object, value: object) -> bool:
    """Whether a per-module option has this value for any module."""
    rules = option if isinstance(option, tuple) else (option,)
    return any(getattr(rule, "value", rule) == value for rule in rules)


def replaced(option: PerTensor[T], old: T, new: T) -> PerTensor[T]:
    """`option` with `new` wherever it says `old`."""
    if (rules := _rules_in(option)) is not None:
        return tuple(rule.model_copy(update={"value": new}) if rule.value == old else rule for rule in rules)
    return new if option == old else option
