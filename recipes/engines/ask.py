"""Asking an engine what comes next: its script (engines/scripts/) in a process and an interpreter of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.formats.errors import CompressError

_SCRIPTS = Path(__file__).parent / "scripts"
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Refused|Exit)\b.*", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last)"
_TERMINATED = re.compile(r"^  what\(\):  (.*)", re.MULTILINE)  # C++'s own last words
_RANK = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)  # what vLLM puts before every line of it


@dataclass(frozen=True)
class Answer:
    """What an engine said: the versions of its packages, and log-probabilities [sequences, vocabulary] fp32.

    NaN where it kept quiet about a token.
    """

    versions: Mapping[str, str]
    log_probs: Tensor


def engines() -> tuple[str, ...]:
    """The engines that there is a script for."""
    return tuple(sorted(path.stem for path in _SCRIPTS.glob("[a-z]*.py")))


def ask(engine: str, python: Path, path: Path, sequences: Sequence[Sequence[int]], timeout: float) -> Answer:
    """Let `engine`, installed for the interpreter `python`, load `path` and tell of the token after each sequence.

    `timeout` is in seconds. Raises CompressError with the engine's own last words if it does not answer.
    """
    # -P: the script's directory, whose files are named like the packages that they import, stays off the path.
    command = [str(python), "-P", str(_SCRIPTS / f"{engine}.py")]
    request = json.dumps({"path": str(path.absolute()), "sequences": [list(sequence) for sequence in sequences]})
    try:
        done = _run(command, request, timeout)
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"{engine} did not answer within {timeout:.0f} s") from error
    except OSError as error:
        raise CompressError(f"{engine}: {python} does not start: {error.strerror}") from error
    if done.returncode != 0:
        raise CompressError(f"{engine}: {_last_words(done)}")
    found = json.loads(done.stdout)
    return Answer(found["versions"], _matrix(found["log_probs"]))


def _run(command: list[str], request: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """subprocess.run, but what the process started ends with it. Raises TimeoutExpired and OSError."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(request, timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _matrix(rows: Sequence[Sequence[float | None]]) -> Tensor:
    """[rows, vocabulary] fp32; NaN for null and for what a row leaves out at its end."""
    matrix = torch.full((len(rows), max(map(len, rows))), float("nan"))
    for values, row in zip(matrix, rows):
        values[: len(row)] = torch.tensor([float("nan") if value is None else value for value in row])
    return matrix


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The exception that ended the process, on one line; else its last line, or the signal that killed it."""
    if done.returncode < 0:
        told = _TERMINATED.search(done.stderr)
        return f"killed by {signal.Signals(-done.returncode).name}" + (f": {told[1]}" if told else "")
    trace = _RANK.sub("", done.stderr).rpartition(_TRACEBACK)[2] if _TRACEBACK in done.stderr else ""
    if raised := _RAISED.search(trace):
        return " ".join(trace[raised.start() :].split())
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {done.returncode}"
