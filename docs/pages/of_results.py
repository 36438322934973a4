"""Figures on the site are those of benchmarks/RESULTS*.md, quoted by the name of their row: none is written again.

<!-- rows of RESULTS.md: compress gptq; compress gptq correct -->     rows of a table, by what their first cell says
<!-- says RESULTS-prune.md: `gqa: {kv_heads: 1}` -->                  the paragraph or point that begins like that
"""

from __future__ import annotations

import re
from pathlib import Path

_MARK = re.compile(r"<!-- (rows of|says) (?P<file>[\w.-]+): (?P<what>.+?) -->", re.DOTALL)


def quoted(markdown: str, folder: Path) -> str:
    """`markdown` with its marks filled in from the files in `folder`. Raises ValueError for what is not there."""
    return _MARK.sub(lambda mark: _quotation(mark, folder), markdown)


def _quotation(mark: re.Match[str], folder: Path) -> str:
    text = (folder / mark["file"]).read_text()
    source = f"From [{mark['file']}](../results/{mark['file']})"
    if mark[1] == "says":
        return "\n".join([*(f"> {line}" for line in _paragraph(text, mark["what"])), "", f"{source}."])
    return f"{_rows(text, [name.strip() for name in mark['what'].split(';')])}\n\n{source}."


def _paragraph(text: str, begin: str) -> list[str]:
    found = re.search(rf"^(?:- )?{re.escape(begin)}.*?(?=\n\n|\n- |\n#|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"no paragraph of the results begins with {begin!r}")
    return [line.removeprefix("- ").strip() for line in found[0].splitlines()]


def _rows(text: str, names: list[str]) -> str:
    """The rows of the first table that has the first of `names`."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line[1:].split("|")] for line in table.splitlines())
        known = {row[0].partition(" (")[0]: row for row in reversed(rows)}
        if names[0] in known:
            return _table(head, [_row(known, name) for name in names])
    raise ValueError(f"no table of the results has a row {names[0]!r}")


def _row(known: dict[str, list[str]], name: str) -> list[str]:
    if name not in known:
        raise ValueError(f"no row {name!r} beside the others in the results")
    return known[name]


def _table(head: list[str], rows: list[list[str]]) -> str:
    """Without columns of ratios, which are of rows that are not quoted, and without those that are empty."""
    full = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    shown = [number for number, name in enumerate(head) if "×" not in name and any(row[number] for row in full)]
    lines = [[row[number] for number in shown] for row in (head, *full)]
    lines.insert(1, ["---"] * len(shown))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
