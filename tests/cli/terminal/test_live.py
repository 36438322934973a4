"""Progress on a terminal, which is left as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest

from compress.cli.terminal.live import LiveReporter


def test_the_live_reporter_tells_what_it_is_at(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with LiveReporter() as reporter:
        reporter.tell("loading libraries")
        reporter.tell("tracing the model")
        reporter.start("gptq", 4, "layer")
        reporter.tell("embedding the sequences")
        reporter.finish()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    for label in ("loading libraries", "tracing the model", "gptq .* 0/4 layers .*embedding the sequences"):
        assert re.search(label, shown)


def test_the_live_reporter_leaves_the_terminal_as_it_was(
    clock: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(RuntimeError), LiveReporter(clock) as reporter:
        reporter.start("gptq", 4, "layer", done=1)
        clock.now += 7
        reporter.advance("layer 1", error=0.5)
        raise RuntimeError
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("\x1b[?25l") == shown.err.count("\x1b[?25h") == 1  # cursor hidden, cursor shown
    assert re.search(
        r"gptq .* 2/4 layers .*14 s left.*layer 1, error 0\.5",
        re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.err),
    )


def test_the_live_reporter_sums_up(clock: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with LiveReporter(clock) as reporter:
        reporter.start("gptq", 2, "layer")
        clock.now += 12
        reporter.finish()
        reporter.advance()
        reporter.note("[bold]as it is[/bold]")
    assert [line for line in capfd.readouterr().err.splitlines() if line.strip()][-2:] == [
        "gptq: 2 layers in 12 s",
        "[bold]as it is[/bold]",
    ]
