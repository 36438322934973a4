"""Progress on standard error: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from compress.cli.terminal.live import LiveReporter
from compress.cli.terminal.plain import PlainReporter
from compress.cli.terminal.work import TerminalReporter


def reporter_for(quiet: bool) -> TerminalReporter:
    """The reporter that suits standard error."""
    if quiet:
        return TerminalReporter()
    return LiveReporter() if sys.stderr.isatty() else PlainReporter(sys.stderr)
