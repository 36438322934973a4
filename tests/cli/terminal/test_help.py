"""Help in colours, on a terminal only."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping

import pytest

from compress.cli.terminal.help import coloured

TEXT = """\
Usage: compress run [OPTIONS] {RECIPE}

  where it stopped, -o and --set stay as they are

Options:
  -o, --output DIR  Default: out/
  --no-such-thing
Commands:
  run       Run a recipe.
"""


def test_headings_options_and_commands_stand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    bold, cyan, end = "\x1b[1m", "\x1b[36m", "\x1b[0m"
    assert coloured(TEXT).splitlines() == [
        f"{bold}Usage:{end} compress run [OPTIONS] {{RECIPE}}",
        *TEXT.splitlines()[1:4],
        f"{bold}Options:{end}",
        f"  {cyan}-o, --output{end} DIR  Default: out/",
        f"  {cyan}--no-such-thing{end}",
        f"{bold}Commands:{end}",
        f"  {cyan}run{end}       Run a recipe.",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert coloured(TEXT) == TEXT


def helped(stdout: int, environment: Mapping[str, str]) -> int:
    """Run `compress --help` with that file descriptor as its standard output."""
    coloured = {**environment, "TERM": "xterm"}
    coloured.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "compress.cli", "--help"]
    return subprocess.run(command, env=coloured, stdout=stdout, check=False).returncode


def test_a_terminal_gets_colours_and_a_pipe_none(environment: Mapping[str, str]) -> None:
    ours, theirs = pty.openpty()
    assert helped(theirs, environment) == 0
    assert b"\x1b[1mUsage:\x1b[0m" in os.read(ours, 1 << 16)
    ours, theirs = os.pipe()
    assert helped(theirs, environment) == 0
    shown = os.read(ours, 1 << 16)
    assert b"Usage:" in shown and b"\x1b" not in shown
