"""Who reports: nobody, lines, or a live display."""

from __future__ import annotations

import pytest

from compress.cli.terminal.plain import PlainReporter
from compress.cli.terminal.progress import reporter_for
from compress.cli.terminal.work import TerminalReporter


def test_which_reporter(capfd: pytest.CaptureFixture[str]) -> None:
    assert type(reporter_for(quiet=True)) is TerminalReporter
    assert type(reporter_for(quiet=False)) is PlainReporter
    with reporter_for(quiet=True) as reporter:
        reporter.start("x", 1, "y")
        reporter.note("z")
    assert capfd.readouterr() == ("", "")
