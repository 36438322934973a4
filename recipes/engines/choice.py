"""Which installed engine serves an artifact on this machine, and by which command: decided before one is started.

Asked are the engines that the artifact's dialect names in `loads`, in its order, and of these the ones whose script
holds a `command`. The first that the facts let load it here, that is installed and has every wanted option, serves.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compress.formats import dialects
from compress.formats.base import Checkpoint
from compress.formats.errors import CompressError, RefusedError, UsageError, suggest
from compress.recipes.engines.ask import (
    MissingPackageError,
    Service,
    build_of,
    engines_with,
    not_installed,
    script_name,
    script_of,
    serving,
)
from compress.recipes.engines.machine import Machine, this_machine
from compress.recipes.engines.verdicts import Verdict, builds_of, subject_of, targets, verdict

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Choice:
    """The target that serves, the command that starts it, what requests call the `model`, and `why` it was chosen."""

    engine: str
    command: tuple[str, ...]
    model: str
    why: str


@dataclass(frozen=True)
class Wish:
    """What is to be served and where: `options` are keywords of a script's `command`."""

    artifact: Checkpoint
    port: int
    options: Mapping[str, Any]
    machine: Machine


def check_server(engine: str) -> str:
    """The target that `engine` means. Raises UsageError if it is none, or has no server."""
    return check_holds(engine, "command", "server")


def check_holds(engine: str, function: str, word: str) -> str:
    """The target that `engine` means. Raises UsageError if its script does not hold `function`, which is a `word`."""
    known = {name: target for target in targets() if (name := script_name(target)) in engines_with(function)}
    if script_of(engine) not in known:
        raise UsageError(f"{engine} has no {word}{suggest(engine, known.values())}")
    return known[script_of(engine)]


def named_by(artifact: Checkpoint, function: str) -> list[str]:
    """The engines that the artifact's container is for, in its order, and whose script holds `function`."""
    scripts = engines_with(function)
    return [target for target in dialects()[artifact.dialect].loads if script_name(target) in scripts]


def choose(
    artifact: Checkpoint,
    port: int,
    options: Mapping[str, Any],
    *,
    engine: str | None = None,
    python: Path | None = None,
    machine: Machine | None = None,
) -> Choice:
    """The engine that serves `artifact` on `port`: `engine` if it is given, else the first that can.

    `python` is the interpreter that engines are installed for: by default this one, then that beside a program of
    the engine's name on PATH. `options` that are None are the engine's own affair. Raises RefusedError, saying of
    each engine why not, if none can; UsageError for an `engine` that does not serve.
    """
    wanted = {name: value for name, value in options.items() if value is not None}
    wish = Wish(artifact, port, wanted, machine or this_machine())
    asked = [check_server(engine)] if engine else named_by(artifact, "command")
    errors: list[CompressError] = []
    for target in asked:
        try:
            found = _service(target, wish, python)
        except CompressError as error:
            errors.append(error)
        else:
            return Choice(target, found.command, found.model, _why(artifact, engine, errors))
    raise _refusal(artifact, errors)


def _why(artifact: Checkpoint, engine: str | None, errors: Sequence[CompressError]) -> str:
    if engine:
        return "it was asked for, and no fact stands against it"
    passed = "".join(f"; {error}" for error in errors)
    return f"the first engine for {artifact.dialect} files that can here{passed}"


def _refusal(artifact: Checkpoint, errors: Sequence[CompressError]) -> RefusedError:
    if not errors:
        loads = ", ".join(dialects()[artifact.dialect].loads)
        return RefusedError(
            f"{artifact.path}: {artifact.dialect} files load in {loads}, which compress cannot start",
            "serve it there, or write another container: compress export",
        )
    told = "; ".join(map(str, errors))
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return RefusedError(f"no engine here serves {artifact.path}: {told}", "; or ".join(hints))


def _service(target: str, wish: Wish, python: Path | None) -> Service:
    """How `target` serves. Raises CompressError for what keeps it from that."""
    reasons = objections(target, wish.artifact, wish.machine)
    if reasons and all(reasons.values()):
        raise next(filter(None, reasons.values()))
    return first_installed(target, python, lambda place: _asked(target, wish, place, reasons))


def first_installed(target: str, python: Path | None, ask: Callable[[Path], _Found]) -> _Found:
    """What the first interpreter says that `target` is installed for, or `python` if it is given.

    Raises RefusedError if it is nowhere, and whatever else `ask` raises.
    """
    missing: CompressError | None = None
    for place in [python] if python else places(target):
        try:
            return ask(place)
        except MissingPackageError as error:
            missing = missing or not_installed(target, place, error)
    assert missing
    raise missing


def _asked(target: str, wish: Wish, python: Path, reasons: Mapping[str, RefusedError | None]) -> Service:
    """The same of the engine that is installed for `python`. Starting that takes its time: only where it matters."""
    script = script_name(target)
    if any(reasons.values()) and (reason := reasons.get(build_of(script, python))):
        raise reason
    return serving(script, python, wish.artifact.path, wish.port, wish.options)


def objections(target: str, artifact: Checkpoint, machine: Machine) -> dict[str, RefusedError | None]:
    """Of every build of `target`, what the facts say against its loading `artifact` on `machine`."""
    subject, path = subject_of(artifact), str(artifact.path)
    return {build: _objection(verdict(build, path, subject, machine)) for build in builds_of(target)}


def _objection(found: Verdict) -> RefusedError | None:
    if not found.loads:
        source = f" (source: {found.source})" if found.source else ""
        return RefusedError(f"{found.target}: {found.reason}{source}", "write another container: compress export")
    if found.not_here:
        return RefusedError(f"{found.target}: {found.not_here}", "serve it on another machine, or in another engine")
    return None


def places(target: str) -> Iterator[Path]:
    """The interpreters that `target` may be installed for: this one, and that of its program on PATH."""
    yield Path(sys.executable)
    program = shutil.which(target)
    beside = Path(program).resolve().with_name("python") if program else None
    if beside and beside.is_file():
        yield beside
