"""Progress in plain lines: what is printed, and that nothing is older than a few seconds."""

from __future__ import annotations

import io
import threading
from typing import Any

from compress.cli.terminal.plain import PlainReporter


def test_plain_lines(clock: Any) -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream, every=10, clock=clock)
    reporter.note("hello")
    reporter.start("gptq", 30, "layer", done=20)
    for _ in range(10):
        clock.now += 4
        reporter.advance("layer", error=0.01234)
    reporter.finish()
    assert stream.getvalue().splitlines() == [
        "hello",
        "gptq: 30 layers, 20 of them done before",
        "gptq: 23/30 layers, 12 s, about 28 s left, error 0.0123",
        "gptq: 26/30 layers, 24 s, about 16 s left, error 0.0123",
        "gptq: 29/30 layers, 36 s, about 4.0 s left, error 0.0123",
        "gptq: done in 40 s",
    ]


def test_plain_lines_while_nothing_ends(clock: Any) -> None:
    """What was said last is never older than `every` seconds, whatever it hangs in."""
    stream = io.StringIO()
    reporter = PlainReporter(stream, every=10, clock=clock)
    reporter.tell("loading libraries")
    for _ in range(4):
        clock.now += 6
        reporter.beat()
    reporter.start("gptq", 30, "layer")
    clock.now += 10
    reporter.beat()
    reporter.tell("running to mlp.down_proj, batch 3 of 8")
    clock.now += 10
    reporter.beat()
    reporter.advance("model.layers.0", error=0.5)
    clock.now += 10
    reporter.beat()
    reporter.finish()
    clock.now += 20
    reporter.beat()
    assert stream.getvalue().splitlines() == [
        "still loading libraries, 12 s",
        "still loading libraries, 24 s",
        "gptq: 30 layers",
        "gptq: 0/30 layers, 10 s, still at it",
        "gptq: 0/30 layers, 20 s, still running to mlp.down_proj, batch 3 of 8",
        "gptq: 1/30 layers, 30 s, about 14 min 30 s left, still at it",
        "gptq: done in 30 s",
        "still at it, 20 s",
    ]


class Heard(io.StringIO):
    """A stream that says when it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


def test_plain_lines_come_by_themselves() -> None:
    stream = Heard()
    with PlainReporter(stream, every=0.01) as reporter:
        reporter.tell("loading libraries")
        for _ in range(2):  # the first line may have been begun before that
            stream.written.clear()
            assert stream.written.wait(60)
    assert "still loading libraries, " in stream.getvalue()
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_steps_outside_of_any_work_are_harmless() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.advance()
    reporter.finish()
    assert stream.getvalue() == ""
