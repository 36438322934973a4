"""Asking an engine: its script (see scripts/) in a process and an interpreter of its own, started by launch.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.formats.errors import CompressError, RefusedError, UsageError, suggest

LAUNCH = Path(__file__).with_name("launch.py")
"""What the engine's interpreter runs."""
_SCRIPTS = LAUNCH.parent / "scripts"
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Refused|Exit)\b.*", re.MULTILINE)
_TRACEBACK = "Traceback (most recent call last)"
_MODULE = "ModuleNotFoundError: "
_TERMINATED = re.compile(r"^  what\(\):  (.*)", re.MULTILINE)  # C++'s own last words
_RANK = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)  # what vLLM puts before every line of it


class MissingPackageError(CompressError):
    """An engine ended for want of a package: it is not installed for that interpreter."""


@dataclass(frozen=True)
class Answer:
    """What an engine said: the versions of its packages, and log-probabilities [sequences, vocabulary] fp32.

    NaN where it kept quiet about a token.
    """

    versions: Mapping[str, str]
    log_probs: Tensor


@dataclass(frozen=True)
class Service:
    """The command line that serves an artifact, and what requests call it."""

    command: tuple[str, ...]
    model: str


def engines() -> tuple[str, ...]:
    """The engines that there is a script for."""
    return tuple(sorted(path.stem for path in _SCRIPTS.glob("[a-z]*.py")))


def engines_with(function: str) -> tuple[str, ...]:
    """Those of them whose script holds such a function, read from the files: nothing is imported."""
    holds = re.compile(rf"^def {function}\(", re.MULTILINE)
    return tuple(name for name in engines() if holds.search((_SCRIPTS / f"{name}.py").read_text()))


def script_name(target: str) -> str:
    """What the script of a target would be called, if there is one."""
    return target.replace(".", "_").replace("-", "_")


def script_of(engine: str) -> str:
    """The name of an engine's script. Raises UsageError for an engine that there is none for."""
    name = script_name(engine)
    if name not in engines():
        raise UsageError(f"there is no engine {engine!r}{suggest(name, engines())}")
    return name


def not_installed(engine: str, python: Path, error: MissingPackageError) -> RefusedError:
    """The same as a refusal, with what to install for `python`."""
    message = str(error)
    module = message.rpartition("No module named ")[2].strip("'\"").partition(".")[0]
    hint = f"{python} -m pip install {shlex.quote(module)}, or name an interpreter that has it: --python PATH"
    return RefusedError(f"{engine} is not installed for {python}: {message.rpartition(_MODULE)[2]}", hint)


def ask(engine: str, python: Path, path: Path, sequences: Sequence[Sequence[int]], timeout: float) -> Answer:
    """Let `engine`, installed for the interpreter `python`, load `path` and tell of the token after each sequence.

    `timeout` is in seconds. Raises CompressError with the engine's own last words if it does not answer.
    """
    found = _reply(engine, python, {"path": str(path.absolute()), "sequences": list(map(list, sequences))}, timeout)
    return Answer(found["versions"], _matrix(found["log_probs"]))


def serving(
    engine: str, python: Path, path: Path, port: int, options: Mapping[str, Any] | None = None, timeout: float = 300
) -> Service:
    """How to serve `path` with `engine`, installed for `python`, on that port, as OpenAI's API does.

    `options` are keywords of its script's `command`; `timeout` is in seconds. Raises RefusedError naming the options
    that the engine lacks, CompressError with its own last words if it does not serve.
    """
    request = {"path": str(path.absolute()), "port": port, "options": dict(options or {})}
    found = _reply(engine, python, request, timeout)
    if lacks := found.get("lacks"):
        raise RefusedError(f"{engine} has no {', '.join(f'--{name}' for name in lacks)}", "leave it out")
    return Service(tuple(map(str, found["command"])), str(found["model"]))


def build_of(engine: str, python: Path, timeout: float = 300) -> str:
    """The target that `engine`, as it is installed for `python`, is: its own name, or that of a build of it.

    `timeout` is in seconds. Raises CompressError with the engine's own last words if it is not there.
    """
    return str(_reply(engine, python, {}, timeout)["build"])


def _reply(engine: str, python: Path, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """What launch.py says to a request."""
    try:
        done = _run([str(python), "-P", str(LAUNCH), engine], json.dumps(request), timeout)
    except subprocess.TimeoutExpired as error:
        raise CompressError(f"{engine} did not answer within {timeout:.0f} s") from error
    except OSError as error:
        raise CompressError(f"{engine}: {python} does not start: {error.strerror}") from error
    if done.returncode != 0:
        raise ended(engine, done.returncode, done.stderr)
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


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


def ended(engine: str, status: int, said: str) -> CompressError:
    """The error of an engine whose process ended with that exit status, with its own last words."""
    words = last_words(status, said)
    kind = MissingPackageError if _MODULE in words else CompressError
    return kind(f"{engine}: {words}")


def last_words(status: int, said: str) -> str:
    """The exception that ended a process, out of what it `said`, on one line; else its last line, or its signal."""
    if status < 0:
        told = _TERMINATED.search(said)
        return f"killed by {signal.Signals(-status).name}" + (f": {told[1]}" if told else "")
    trace = _RANK.sub("", said).rpartition(_TRACEBACK)[2] if _TRACEBACK in said else ""
    if raised := _RAISED.search(trace):
        return " ".join(trace[raised.start() :].split())
    lines = said.strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {status}"
