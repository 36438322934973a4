"""Quantities and progress: what is printed, with a clock that the test turns."""

from __future__ import annotations

import io
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.cli.terminal.live import LiveReporter
from compress.cli.terminal.plain import PlainReporter
from compress.cli.terminal.progress import reporter_for
from compress.cli.terminal.units import counted, duration, file_size, memory_size, parse_bytes
from compress.cli.terminal.work import TerminalReporter, Work
from compress.formats.errors import UsageError

SIZES = {
    "8GiB": 8 << 30, "8G": 8 << 30, "8g": 8 << 30, "1.5 GiB": 3 << 29,
    "500MB": 5 * 10**8, "500 mb": 5 * 10**8,
    "1kB": 1000, "1KiB": 1024, "4096": 4096, "4096B": 4096, "2TiB": 2 << 40, "2TB": 2 * 10**12,
}  # fmt: skip


@pytest.mark.parametrize("text", SIZES)
def test_sizes_are_read(text: str) -> None:
    assert parse_bytes(text) == SIZES[text]


@pytest.mark.parametrize("text", ["", "x", "-1G", "0", "0GiB", "1PiB", "1 G B", "1e3", "G", "1,5G", "1..5G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


@given(st.integers(1, 10**15))
def test_a_size_reads_back_within_its_digits(nbytes: int) -> None:
    for shown in (file_size(nbytes), memory_size(nbytes)):
        assert parse_bytes(shown) == pytest.approx(nbytes, rel=0.006)


def test_quantities_are_shown() -> None:
    assert [file_size(n) for n in (0, 999, 1000, 98_362_432, 10**12)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "98.4 MB",
        "1.00 TB",
    ]
    assert [memory_size(n) for n in (1023, 1 << 30, 10 << 40)] == ["1023 B", "1.00 GiB", "10.0 TiB"]
    times = [duration(s) for s in (0.04, 8.25, 9.96, 59.4, 60, 185, 3599.6, 7800)]
    assert times == ["0.0 s", "8.2 s", "10 s", "59 s", "1 min 00 s", "3 min 05 s", "1 h 00 min", "2 h 10 min"]


def test_things_are_counted() -> None:
    assert [counted(*found) for found in ((1, "file"), (0, "layer"), (4, "pass"))] == ["1 file", "0 layers", "4 passes"]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_left_counts_only_what_this_process_did() -> None:
    work = Work("gptq", total=30, unit="layer", resumed=20, started=100.0)
    assert work.left(150.0) is None
    work.steps = 2
    assert work.left(110.0) == pytest.approx(8 * 5.0)
    work.steps = 10
    assert work.left(150.0) == 0


def test_plain_lines() -> None:
    clock, stream = Clock(), io.StringIO()
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


def test_plain_lines_while_nothing_ends() -> None:
    """What was said last is never older than `every` seconds, whatever it hangs in."""
    clock, stream = Clock(), io.StringIO()
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


def test_steps_outside_of_any_work_are_harmless() -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.advance()
    reporter.finish()
    assert stream.getvalue() == ""


def test_the_live_reporter_leaves_the_terminal_as_it_was(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
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


def test_the_live_reporter_sums_up(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
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


def test_which_reporter(capfd: pytest.CaptureFixture[str]) -> None:
    assert type(reporter_for(quiet=True)) is TerminalReporter
    assert type(reporter_for(quiet=False)) is PlainReporter
    with reporter_for(quiet=True) as reporter:
        reporter.start("x", 1, "y")
        reporter.note("z")
    assert capfd.readouterr() == ("", "")
