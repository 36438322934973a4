"""`-q`: libraries are not heard, errors are."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from compress.cli.app import main
from compress.cli.terminal.silence import silenced
from compress.formats.errors import RefusedError


def chatter() -> None:
    """As libraries speak: by Python, by a logger of their own, from C."""
    print("said", file=sys.stderr)
    logging.StreamHandler().handle(logging.makeLogRecord({"msg": "logged"}))
    os.write(2, b"written\n")


def test_quiet_silences_libraries(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        chatter()
        print("printed")
    print("after", file=sys.stderr)
    assert capfd.readouterr() == ("printed\n", "after\n")
    chatter()
    assert capfd.readouterr().err == "said\nlogged\nwritten\n"


def test_a_handler_made_meanwhile_works_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced():
        handler = logging.StreamHandler()
    handler.handle(logging.makeLogRecord({"msg": "later"}))
    assert capfd.readouterr().err == "later\n"


def test_quiet_shows_errors(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        chatter()
        raise RefusedError("it does not fit", "take less")

    monkeypatch.setattr("compress.recipes.jobs.verify.verify", refuse)
    capfd.readouterr()
    assert main(["verify", str(tiny_llama), "-q"]) == 3
    assert capfd.readouterr() == ("", "error: it does not fit\n  take less\n")
