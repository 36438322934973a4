"""GGUF files put together byte by byte: the honest ones are read, the malformed ones refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from compress.formats.errors import InputError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import GGUFFile, write_gguf
from compress.formats.gguf.header import Value, ValueType

F32, Q4_0 = 0, 2
U8, I8, U16, I16, U32, I32, F, BOOL, STRING, ARRAY, U64, I64, D = range(13)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(element: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", element, count) + raw


def tensor(name: str | bytes = "w", dims: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def container(
    pairs: list[bytes],
    tensors: list[bytes],
    data: int = 4096,
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    """A file put together by hand: counts may lie."""
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count) + b"".join(pairs) + b"".join(tensors)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(data)


def opened(path: Path, raw: bytes) -> GGUFFile:
    path.write_bytes(raw)
    return GGUFFile(path)


HUGE = 1 << 63
ONE_TENSOR = [tensor()]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "magic only": (b"GGUF", "not a GGUF file"),
    "another file": (b"PK\3\4".ljust(100), "not a GGUF file"),
    "version 1": (container([], [], version=1), "version 1"),
    "version 4": (container([], [], version=4), "version 4"),
    "big-endian": (container([], [], version=3 << 24), "big-endian"),
    "tensor count": (container([], ONE_TENSOR, counts=(HUGE, 0)), "9,223,372,036,854,775,808 tensors"),
    "tensor count, plausible": (
        container([], ONE_TENSOR, counts=(65_537, 0), data=1 << 22),
        "65,537 tensors",
    ),
    "tensor count, one more": (container([], ONE_TENSOR, counts=(2, 0), data=16), "2 tensors"),
    "pair count": (container([], [], counts=(0, HUGE)), "metadata keys"),
    "key length": (container([struct.pack("<QI", 1 << 40, U8) + b"\0"], []), "string"),
    "string length": (container([pair("k", STRING, struct.pack("<Q", HUGE))], []), "string"),
    "string past the end": (container([pair("k", STRING, struct.pack("<Q", 1 << 20))], []), "past the end"),
    "string not UTF-8": (container([pair("k", STRING, text(b"\xff\xfe"))], []), "UTF-8"),
    "token not UTF-8": (container([pair("k", ARRAY, array(STRING, 1, text(b"\xff")))], []), "UTF-8"),
    "token too long": (
        container([pair("k", ARRAY, array(STRING, 1, text(b"a" * 65_536)))], []),
        "65,536 bytes",
    ),
    "key not UTF-8": (container([pair(b"\xff", U8, b"\0")], []), "UTF-8"),
    "key with a control character": (container([pair("a\nb", U8, b"\0")], []), "control"),
    "key empty": (container([pair("", U8, b"\0")], []), "empty"),
    "key twice": (container([pair("k", U8, b"\0")] * 2, []), "twice"),
    "value type": (container([pair("k", 13, b"\0" * 8)], []), "unknown type 13"),
    "element type": (container([pair("k", ARRAY, array(99, 1, b"\0" * 8))], []), "unknown type 99"),
    "array length": (container([pair("k", ARRAY, array(U8, HUGE))], []), "elements"),
    "array length times width": (container([pair("k", ARRAY, array(U64, 1 << 61))], []), "elements"),
    "array of strings": (container([pair("k", ARRAY, array(STRING, 1 << 61))], []), "elements"),
    "array of arrays": (
        container([pair("k", ARRAY, array(ARRAY, 1) * 5000 + array(U8, 0))], []),
        "array of arrays",
    ),
    "bool": (container([pair("k", BOOL, b"\2")], []), "bool"),
    "alignment 0": (
        container([pair("general.alignment", U32, struct.pack("<I", 0))], ONE_TENSOR),
        "power of two",
    ),
    "alignment 3": (
        container([pair("general.alignment", U32, struct.pack("<I", 3))], ONE_TENSOR),
        "power of two",
    ),
    "alignment 2^31": (
        container([pair("general.alignment", U32, struct.pack("<I", 1 << 31))], ONE_TENSOR),
        "power of two",
    ),
    "alignment is a string": (
        container([pair("general.alignment", STRING, text("32"))], ONE_TENSOR),
        "STRING",
    ),
    "no dimensions": (container([], [tensor(dims=())]), "0 dimensions"),
    "eight dimensions": (container([], [tensor(dims=(1,) * 8)]), "8 dimensions"),
    "2^32 - 1 dimensions": (container([], [text("w") + struct.pack("<I", (1 << 32) - 1)]), "dimensions"),
    "dimensions wrap": (container([], [tensor(dims=(1 << 62, 4, 1, 1))]), "impossible"),
    "dimension 2^63": (container([], [tensor(dims=(HUGE,))]), "impossible"),
    "dimension 2^40": (container([], [tensor(dims=(1 << 40,))]), "ends at byte"),
    "dimension 0": (container([], [tensor(dims=(0, 1 << 40))]), "impossible"),
    "rows and blocks": (container([], [tensor(dims=(48, 2), kind=Q4_0)]), "blocks of 32"),
    "tensor type": (container([], [tensor(kind=77)]), "type 77"),
    "tensor type that nothing decodes": (container([], [tensor(dims=(32,), kind=9)]), "type 9"),
    "offset 2^62": (container([], [tensor(offset=1 << 62)]), "hole"),
    "offset wraps into the header": (container([], [tensor(offset=(1 << 64) - 32)]), "hole"),
    "offset misaligned": (container([], [tensor(), tensor("v", offset=17)]), "overlap"),
    "offsets overlap": (container([], [tensor(dims=(64,)), tensor("v", offset=32)]), "overlap"),
    "truncated data": (container([], [tensor(dims=(1041,))]), "'w' ends at byte 4,228, the file at 4,160"),
    "too many elements": (container([pair("k", ARRAY, array(U8, (1 << 22) + 1))], [], 5 << 20), "elements"),
    "name twice": (container([], [tensor(), tensor(offset=32)]), "twice"),
    "name not UTF-8": (container([], [tensor(b"\xff")]), "UTF-8"),
    "name of 64 bytes": (container([], [tensor("n" * 64)]), "string"),
    "name empty": (container([], [tensor("")]), "empty"),
    "name is a path": (container([], [tensor("../../x")]), "path"),
    "name with NUL": (container([], [tensor("x\0y")]), "control"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    raw, message = HOSTILE[case]
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "hostile.gguf", raw)
    assert "hostile.gguf" in str(caught.value)
    assert caught.value.hint


def test_honest_file_made_by_hand(tmp_path: Path) -> None:
    """Version 2, odd alignment, no padding after the last tensor: none of it is wrong."""
    pairs = [pair("general.alignment", U32, struct.pack("<I", 8)), pair("k", ARRAY, array(BOOL, 2, b"\0\1"))]
    head = b"GGUF" + struct.pack("<IQQ", 2, 2, 2) + b"".join(pairs)
    head += tensor("a", (3,)) + tensor("b.weight", (2, 1), F32, 16)
    raw = head.ljust(-(-len(head) // 8) * 8, b"\0") + np.arange(6, dtype="<f4").tobytes()
    file = opened(tmp_path / "x.gguf", raw)
    assert file.header.metadata["k"] == Value(ValueType.ARRAY, [False, True], ValueType.BOOL)
    assert file.header.alignment == 8
    assert file.read("a").tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert file.read("b.weight").tolist() == [[4, 5]]  # type: ignore[union-attr]


def test_file_without_tensors(tmp_path: Path) -> None:
    assert opened(tmp_path / "vocab.gguf", container([pair("k", U8, b"\7")], [], data=0)).header.tensors == {}


def test_large_arrays_cross_the_read_window(tmp_path: Path) -> None:
    tokens = [f"t{i}" + "é" * (i % 60) for i in range(49_152)]
    numbers = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    long = "x" * (3 << 20)
    raw = container(
        [
            pair("tokens", ARRAY, array(STRING, len(tokens), b"".join(map(text, tokens)))),
            pair("numbers", ARRAY, array(U8, len(numbers), numbers.tobytes())),
            pair("template", STRING, text(long)),
            pair("last", U16, b"\1\0"),
        ],
        ONE_TENSOR,
    )
    metadata = opened(tmp_path / "x.gguf", raw).header.metadata
    assert metadata["tokens"].value == tokens
    assert metadata["numbers"].value == numbers.tolist()
    assert metadata["template"].value == long
    assert metadata["last"].value == 1


def test_literal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {"k": Value(ValueType.UINT8, 7)}, [("w", (1, 4), BLOCKS["f32"])], lambda _: b"\1" * 16)
    assert path.read_bytes() == container([pair("k", U8, b"\7")], [tensor("w", (4, 1))], 0) + b"\1" * 16 + bytes(16)


def test_file_that_changes_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    file = opened(path, container([], ONE_TENSOR))
    os.truncate(path, 200)
    with pytest.raises(InputError, match="changed"):
        file.read("w")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(InputError, match=path.name):
            GGUFFile(path)
