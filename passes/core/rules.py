"""Rules of per-module options: one that decides for nothing, and modules that no rule speaks of, are mistakes.

Taken in silence, either would leave layers as they are that the user means to quantize.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel

from compress.formats.errors import UsageError, suggest
from compress.formats.options import Match

Rules = tuple[Match[Any], ...]


def ruled(options: BaseModel) -> Iterator[tuple[str, Rules]]:
    """The options that hold rules, by name."""
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, tuple) and value and all(isinstance(rule, Match) for rule in value):
            yield name, value


def refuse_idle_rules(options: BaseModel, who: str, modules: Collection[str], others: Collection[str]) -> None:
    """Raise UsageError for a rule that decides for none of `modules`.

    `others` are the modules of the model that `who`, a pass or a container, leaves as they are.
    """
    for option, rules in ruled(options):
        left = set(modules)
        for rule in rules:
            mine = {name for name in left if rule.covers(name)}
            if rule.match is not None and not mine:
                raise _idle(f"{who}: {option}: the rule for {rule.match!r} decides for nothing", rule, modules, others)
            left -= mine


def _idle(what: str, rule: Match[Any], modules: Collection[str], others: Collection[str]) -> UsageError:
    assert rule.match is not None
    if any(rule.covers(name) for name in modules):
        return UsageError(f"{what}: rules before it do", "the first rule that matches decides: put it before them")
    if kept := next((name for name in sorted(others) if rule.covers(name)), None):
        return UsageError(f"{what}: {kept} is not among what it is to change", "take the rule out, or `include` it")
    leaves = {name.rpartition(".")[2] for name in (*modules, *others)}
    near = suggest(rule.match.rpartition(".")[2], leaves)
    return UsageError(f"{what}: no layer is named so{near}", f"names look like {min(modules, default='nothing')}")
