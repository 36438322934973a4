"""The conformance table as Markdown: cells are numbers, what engines say stands below."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cells import is_green

NAMES = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "llama_cpp": "llama.cpp",
    "gptqmodel": "GPTQModel",
    "auto_gptq": "AutoGPTQ",
    "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors",
}
START, END = "<!-- conformance -->", "<!-- /conformance -->"
_LONGEST = 160


def render(results: Mapping[str, Any]) -> str:
    """Method × container × engine; a number is the largest difference of any log-probability, in nats."""
    engines = engines_of(results)
    notes: dict[str, int] = {}
    lines = [
        f"| method | container | {' | '.join(NAMES[engine] for engine in engines)} |",
        f"|{'---|' * (len(engines) + 2)}",
    ]
    for key, row in results["rows"].items():
        cells = [_cell(row["cells"].get(engine), notes) for engine in engines]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    said = [f"{number}. {message}" for message, number in notes.items()]
    return "\n".join([*lines, "", *said, "", _versions(results, engines)])


def engines_of(results: Mapping[str, Any]) -> list[str]:
    """Those that were asked for anything, in the table's order."""
    return [engine for engine in NAMES if any(engine in row["cells"] for row in results["rows"].values())]


def insert(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises ValueError if they are not there."""
    start, end = text.find(START), text.find(END)
    if not 0 <= start < end:
        raise ValueError(f"no {START} … {END}")
    return f"{text[: start + len(START)]}\n{table}\n{text[end:]}"


def _cell(found: Mapping[str, Any] | None, notes: dict[str, int]) -> str:
    if found is None:
        return ""
    if is_green(found):
        return f"within {_rounded_up(found['difference'])}"
    if "not_here" in found:
        return f"not here ({notes.setdefault(found['not_here'], len(notes) + 1)})"
    message = _short(found["message"]) if "message" in found else "it loads, and computes something else"
    number = notes.setdefault(message, len(notes) + 1)
    return f"no ({number})" if "message" in found else f"**off by {found['difference']:.1f}** ({number})"


def _rounded_up(value: float) -> str:
    """To one significant digit, never below `value`."""
    for exponent in range(-6, 3):
        for digit in range(1, 10):
            if value <= digit * 10.0**exponent:
                return f"{digit * 10.0**exponent:.{max(0, -exponent)}f}"
    return f"{value:.0f}"


def _short(message: str) -> str:
    """An engine's message in one line of a list: no paths, no Markdown of its own."""
    plain = re.sub(r"(/[\w.-]+){2,}/?", "…", message).replace("|", "/").replace("<", "‹").replace(">", "›")
    return f"`{plain[:_LONGEST].replace('`', chr(39))}{'…' if len(plain) > _LONGEST else ''}`"


def _versions(results: Mapping[str, Any], engines: list[str]) -> str:
    """Which versions answered."""
    said = {}
    for row in results["rows"].values():
        for engine in engines:
            said.setdefault(engine, row["cells"].get(engine, {}).get("versions", {}))
            said[engine] = said[engine] or row["cells"].get(engine, {}).get("versions", {})
    each = [
        f"{NAMES[engine]} ({', '.join(f'{name} {version}' for name, version in versions.items())})"
        for engine, versions in said.items()
        if versions
    ]
    return f"{results['model']}; {'; '.join(each)}."
