"""`compress verify`: is an artifact still what was written? Asks neither its source nor anyone's word for it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from compress.formats.errors import InputError, RefusedError
from compress.passes.artifact.record import (
    MANIFEST,
    Record,
)
from compress.passes.core.report import Reporter
from compress.recipes.artifacts import artifact_at, manifest_at, missed_gates
from compress.recipes.engines.ask import script_of
from compress.recipes.engines.machine import Machine
from compress.recipes.trust.checks import CheckName, Checks, Problem
from compress.recipes.trust.signature import Identity


class Verification(BaseModel):
    """What `compress verify` found; `checked` counts what was compared, check by check.

    `missed_gates` are those of the run that made it: it may be whole, and not as good as it was to be.
    `not_here` is why the engine was not asked: nothing is known of it then, good or bad.
    """

    path: str
    dialect: str
    passed: bool
    checked: dict[CheckName, int]
    largest_difference: float | None
    problems: list[Problem]
    engine: dict[str, str] = {}
    engine_difference: float | None = None
    not_here: str = ""
    missed_gates: list[str] = []
    signature: Literal["none", "not checked", "checked"] = "none"


def verify(
    path: Path,
    *,
    public_key: Path | None = None,
    identity: Identity | None = None,
    engine: str | None = None,
    python: Path | None = None,
    machine: Machine | None = None,
    reporter: Reporter | None = None,
) -> Verification:
    """Check the artifact at `path`: hashes, settings, every tensor, the tokenizer, logits, and an `engine`'s logits.

    With `public_key`, or the `identity` that sigstore vouched for, its signature as well: who answers for all of them.

    What is wrong with the artifact is in the result. Raises InputError if `path` is no artifact of ours,
    RefusedError if the engine is not installed for the interpreter `python` (by default this one). `machine` is
    what the engine runs on, by default this one.
    """
    path = artifact_at(path, "compress verify")
    python = python or Path(sys.executable)
    if engine is not None:
        engine = script_of(engine)
        if shutil.which(python) is None:
            raise RefusedError(f"{python} is not an interpreter that can be started", "give the path of a python")
    checks = Checks(path, read_record(path), reporter or Reporter(), asks=engine is not None)
    if signer := public_key or identity:
        checks.sign(signer)
    checks.run()
    if engine is not None:
        checks.ask(engine, python, machine)
    return _result(checks)


def _result(checks: Checks) -> Verification:
    return Verification(
        path=str(checks.path),
        dialect=checks.dialect,
        passed=not checks.problems,
        checked=checks.checked,
        largest_difference=checks.difference,
        problems=checks.problems,
        engine=checks.versions,
        missed_gates=missed_gates(checks.path),
        engine_difference=checks.engine_difference,
        not_here=checks.not_here,
        signature=checks.signature,
    )


def read_record(path: Path) -> tuple[str, Record]:
    """The dialect that the manifest names, and its record. Raises InputError."""
    where, data = path / MANIFEST, manifest_at(path)
    if data is None:
        raise InputError(f"{path} is no artifact of compress: it has no {MANIFEST}", "look into it: compress inspect")
    try:
        return str(data["artifact"]["dialect"]), Record.model_validate(data)
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} does not say what it describes") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {place}: {first['msg']}", "was it written by an older version?") from error
