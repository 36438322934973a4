"""Whether an artifact came out again, and what is installed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType

from compress.cli.terminal.tables import new_table
from compress.cli.terminal.units import file_size, memory_size

if TYPE_CHECKING:
    from compress.recipes.jobs.doctor import Doctor, Engine
    from compress.recipes.jobs.replay import Replay


def replay(found: Replay) -> list[RenderableType]:
    """What is missing or differs, and the verdict."""
    lines = [f"{each.part}: {each.where} {each.what}" for each in found.unlike]
    if found.reproduced:
        return [*lines, f"{found.path}: {found.files} files came out byte for byte, in {found.output}"]
    made = f"was made anew in {found.output}, with other bytes" if found.output else "was not made anew"
    return [*lines, f"{found.path} {made}"]


def doctor(found: Doctor) -> list[RenderableType]:
    """The machine, room, packages, engines, and what is wrong."""
    machine = found.machine
    features = f" ({', '.join(machine.features)})" if machine.features else ""
    memory = f"{memory_size(machine.memory_bytes)} of memory, {memory_size(machine.available_bytes)} free"
    head = f"{machine.system}, {machine.architecture}, {machine.cores} cores{features}, {memory}"
    gpus = [f"{gpu.device}: {gpu.name}, {memory_size(gpu.memory_bytes)}, {gpu.capability}" for gpu in found.gpus]
    disks = [f"{disk.path}: {file_size(disk.free_bytes)} free" for disk in found.disks]
    versions = ", ".join(f"{name} {number or '(not installed)'}" for name, number in found.versions.items())
    engines = new_table("engine", "found", "loads", "serve")
    for engine in found.engines:
        engines.add_row(engine.engine, _place(engine), ", ".join(engine.loads), "yes" if engine.serves else "no")
    wrong = [f"wrong: {line}" for line in found.wrong]
    return [head, *(gpus or ["no GPU that torch sees"]), *disks, versions, engines, *wrong]


def _place(engine: Engine) -> str:
    if engine.python is None:
        return f"no: {engine.missing}"
    versions = ", ".join(f"{name} {number}" for name, number in engine.versions.items())
    return f"{versions} in {engine.python}" + (f", but {engine.missing}" if engine.missing else "")
