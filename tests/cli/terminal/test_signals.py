"""Ctrl-C and SIGTERM: the first ends the work in order, the second ends the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest

from compress.cli.app import main
from compress.cli.terminal.signals import Interrupted, forwarded, interruptible

WAITING = """
import sys, time
from compress.cli.app import app, main

@app.command("run")
def wait(json: bool = False) -> None:
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)

sys.exit(main(["run", "--json"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_no_error_and_says_how_to_go_on(
    number: int, code: int, environment: Mapping[str, str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        error = json.loads(process.stdout.read())["error"]
        assert (process.wait(), error["exit_code"]) == (code, code)
        shown = process.stderr.read()
    assert shown == f"{error['message']}\n" == "interrupted; the same command goes on where it stopped\n"


FORCED = """
import os, signal
from compress.cli.terminal.signals import Interrupted, interruptible
with interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except Interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("not reached")
"""


def test_the_second_signal_ends_the_process_at_once(
    python: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = python(FORCED)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_an_exception_that_no_handler_of_errors_catches(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped, interruptible(), suppress(Exception):
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_another_thread_than_the_main_one_has_no_handlers_to_set() -> None:
    before, reached = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interruptible():
            reached.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == [before]


def test_signal_handlers_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capsys.readouterr().out


def test_forwarded_signals_interrupt_nothing() -> None:
    received: list[int] = []
    with interruptible():
        before = signal.getsignal(signal.SIGTERM)
        with forwarded(received.append):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGTERM) is before
    assert received == [signal.SIGINT, signal.SIGTERM, signal.SIGTERM]
