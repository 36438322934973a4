"""`compress doctor`: what is installed here, what it can load, and how much room there is."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from compress.formats.errors import CompressError
from compress.formats.files.source import cache_directory
from compress.recipes.engines import scripts
from compress.recipes.engines.ask import build_of, engines, engines_with, script_name
from compress.recipes.engines.choice import places
from compress.recipes.engines.machine import Machine, cores, this_machine
from compress.recipes.engines.verdicts import readable, targets
from compress.recipes.figures.budgets import memory_here
from compress.recipes.figures.cache import Figures

_OURS = "compress-llm"
_SECONDS = 120.0
_ASK = """\
import json, sys
from importlib.metadata import packages_distributions, version
found = packages_distributions()
print(json.dumps({name: version(found[name][0]) for name in sys.argv[1:] if name in found}))
"""
_TELLING = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimd", "sve")
"""What a processor can do that engines and kernels ask for."""


class Processor(Figures):
    """The machine: its architecture, cores that this process may use, what its processor can do, bytes of memory."""

    architecture: str
    system: str
    cores: int
    features: list[str]
    memory_bytes: int
    available_bytes: int


class Gpu(Figures):
    """A device that torch sees, and bytes of its memory."""

    device: str
    name: str
    memory_bytes: int
    capability: str


class Disk(Figures):
    """A folder that a run writes to, and the bytes that are free there."""

    path: str
    free_bytes: int


class Engine(Figures):
    """An engine: where it was found, with which packages, which containers it loads, and whether `serve` starts it.

    `python` is None, and `missing` says what to do, where it was not found.
    """

    engine: str
    python: str | None
    versions: dict[str, str]
    loads: list[str]
    serves: bool
    missing: str = ""


class Doctor(Figures):
    """What `compress doctor` found; `wrong` says what keeps things from working, and what to do."""

    versions: dict[str, str]
    machine: Processor
    gpus: list[Gpu]
    disks: list[Disk]
    engines: list[Engine]
    wrong: list[str]


def examine(output: Path = Path(), machine: Machine | None = None) -> Doctor:
    """Look at this machine; `output` is where runs would write."""
    versions = {"python": platform.python_version(), _OURS: version(_OURS), **dict(_dependencies())}
    return Doctor(
        versions=versions,
        machine=_processor(machine or this_machine()),
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        disks=[_disk(path) for path in dict.fromkeys([output.absolute(), cache_directory().absolute()])],
        engines=[_engine(target) for target in _targets()],
        wrong=list(_wrong(versions)),
    )


def _dependencies() -> Iterator[tuple[str, str]]:
    for wanted in _requirements():
        try:
            yield wanted.name, version(wanted.name)
        except ModuleNotFoundError:
            yield wanted.name, ""


def _requirements() -> list[Requirement]:
    """What the program cannot do without, by its own metadata."""
    found = (Requirement(line) for line in requires(_OURS) or ())
    return [wanted for wanted in found if wanted.marker is None or wanted.marker.evaluate({"extra": ""})]


def _wrong(versions: Mapping[str, str]) -> Iterator[str]:
    for wanted in _requirements():
        have = versions[wanted.name]
        if not have or not wanted.specifier.contains(have, prereleases=True):
            yield f"{wanted.name} is {have or 'not installed'}: {sys.executable} -m pip install '{wanted}'"
    if torch.version.cuda and not torch.cuda.is_available():
        yield "torch was built for CUDA and sees no device: is the driver there, and new enough?"


def _processor(machine: Machine) -> Processor:
    return Processor(
        architecture=machine.architecture,
        system=f"{platform.system()} {platform.release()}",
        cores=cores(),
        features=[flag for flag in _TELLING if flag in machine.flags],
        memory_bytes=memory_here(),
        available_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"),
    )


def _gpu(index: int) -> Gpu:
    found = torch.cuda.get_device_properties(index)
    capability = f"{found.major}.{found.minor}"
    return Gpu(device=f"cuda:{index}", name=found.name, memory_bytes=found.total_memory, capability=capability)


def _disk(path: Path) -> Disk:
    """Of a folder that may be made yet: that of the nearest one that is there."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return Disk(path=str(path), free_bytes=shutil.disk_usage(there).free)


def _targets() -> list[str]:
    """The engines that can be asked; their builds are told apart where they are found."""
    return [name for name in targets() if script_name(name) in engines()]


def _engine(target: str) -> Engine:
    script = script_name(target)
    packages = _packages(script)
    for python in places(target):
        found = _installed(python, packages)
        if packages[0] in found:
            return _found(target, script, python, found)
    return _told(target, script, None, {}, f"{sys.executable} -m pip install {packages[0].replace('_', '-')}")


def _found(target: str, script: str, python: Path, versions: dict[str, str]) -> Engine:
    try:
        build, missing = build_of(script, python, _SECONDS), ""
    except CompressError as error:
        build, missing = target, str(error)
    return _told(build if build in targets() else target, script, python, versions, missing)


def _told(target: str, script: str, python: Path | None, versions: dict[str, str], missing: str) -> Engine:
    return Engine(
        engine=target,
        python=str(python) if python else None,
        versions=versions,
        loads=sorted(readable(target)),
        serves=script in engines_with("command"),
        missing=missing,
    )


def _packages(script: str) -> list[str]:
    """Those that an engine's script names, the engine's own first; read from the file, which is not imported."""
    tree = ast.parse((Path(scripts.__path__[0]) / f"{script}.py").read_text())
    values = (node.value for node in tree.body if isinstance(node, ast.Assign) and _assigns(node, "PACKAGES"))
    return list(ast.literal_eval(next(values)))


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


def _installed(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed for an interpreter; none where it does not start."""
    try:
        done = subprocess.run(
            [str(python), "-P", "-c", _ASK, *packages], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):  # what it would say is that there is no engine
        return {}
    found: dict[str, str] = json.loads(done.stdout)
    return found
