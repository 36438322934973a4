"""The table in short, for the README: container × engine, how many of the methods load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cells import DECODERS, is_green
from render import NAMES, engines_of


def matrix(results: Mapping[str, Any], containers: Mapping[str, Mapping[str, Any]]) -> str:
    """As Markdown. `containers` are those of combinations.yaml: names of rows → options of `export`."""
    engines = [engine for engine in engines_of(results) if engine not in DECODERS]
    named = [f"{NAMES[engine]}{' (on a CPU)' if engine == 'vllm' else ''}" for engine in engines]
    lines = [f"| container | {' | '.join(named)} |", f"|{'---|' * (len(engines) + 1)}"]
    for dialect in dict.fromkeys(options["dialect"] for options in containers.values()):
        cells = (_cell(results["rows"], engine, dialect, containers) for engine in engines)
        lines.append(f"| `{dialect}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Mapping[str, Any], engine: str, dialect: str, containers: Mapping[str, Mapping[str, Any]]) -> str:
    """What an engine does with a container as it is, and with which option with more of it."""
    ways = [(name, options) for name, options in containers.items() if options["dialect"] == dialect]
    (plain, _), *others = ways
    asked = dict(_answers(rows, engine, plain))
    loaded = {method for method, green in asked.items() if green}
    said = ["no" if not loaded else "loads" if len(loaded) == len(asked) else f"{len(loaded)} of {len(asked)}"]
    for name, options in others:
        more = {method for method, green in _answers(rows, engine, name) if green} - loaded
        if more:
            said.append(f"{len(more)} more with {_option(options)}" if loaded else f"with {_option(options)}")
    return ", ".join(said[1:] if said[0] == "no" and said[1:] else said)


def _answers(rows: Mapping[str, Any], engine: str, container: str) -> Iterator[tuple[str, bool]]:
    """Every method of a container that an engine could be asked for, and whether it computes it."""
    for key, row in rows.items():
        method, _, name = key.partition(" | ")
        found = row["cells"].get(engine)
        if name == container and found and "not_here" not in found:
            yield method, is_green(found)


def _option(options: Mapping[str, Any]) -> str:
    told = {key: value for key, value in options.items() if key not in ("dialect", "only")}
    return " ".join(f"`{key}: {str(value).lower()}`" for key, value in told.items())
