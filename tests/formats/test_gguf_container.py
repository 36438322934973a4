"""The GGUF container: our reader and writer against gguf-py's, and against files made to hurt."""

from __future__ import annotations

import errno
import os
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.formats.errors import InputError, RefusedError, StorageError
from compress.formats.ggml_blocks import BLOCKS
from compress.formats.gguf_file import GGUFFile, NewTensor, file_size, write_gguf
from compress.formats.gguf_header import Value, ValueType, encode_header, lay_out
from compress.kernels.qtensor import QTensor

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


METADATA = {
    "general.architecture": Value(ValueType.STRING, "llama"),
    "a.u8": Value(ValueType.UINT8, 255),
    "a.i8": Value(ValueType.INT8, -128),
    "a.u16": Value(ValueType.UINT16, 65_535),
    "a.i16": Value(ValueType.INT16, -1),
    "a.u32": Value(ValueType.UINT32, (1 << 32) - 1),
    "a.i32": Value(ValueType.INT32, -(1 << 31)),
    "a.f32": Value(ValueType.FLOAT32, 0.5),
    "a.bool": Value(ValueType.BOOL, True),
    "a.u64": Value(ValueType.UINT64, (1 << 64) - 1),
    "a.i64": Value(ValueType.INT64, -1),
    "a.f64": Value(ValueType.FLOAT64, 0.1),
    "a.text": Value(ValueType.STRING, "Grüße\n\0"),
    "a.tokens": Value(ValueType.ARRAY, ["a", "", "Ġb"], ValueType.STRING),
    "a.scores": Value(ValueType.ARRAY, [0.5, -1.0], ValueType.FLOAT32),
    "a.kinds": Value(ValueType.ARRAY, [1, 2, 3], ValueType.INT32),
    "a.flags": Value(ValueType.ARRAY, [True, False], ValueType.BOOL),
}
SHAPES: list[NewTensor] = [
    ("token_embd.weight", (10, 64), BLOCKS["q8_0"]),
    ("blk.0.attn_norm.weight", (3,), BLOCKS["f32"]),
    ("blk.0.ffn_up.weight", (5, 64), BLOCKS["q4_1"]),
    ("blk.0.ffn_down.weight", (2, 3, 32), BLOCKS["q5_0"]),
    ("output.weight", (7, 3), BLOCKS["bf16"]),
]


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in SHAPES}


def fill(name: str) -> memoryview:
    kinds = {name: kind for name, _, kind in SHAPES}
    return kinds[name].encode(weights()[name])


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "ours.gguf"
    heard: list[str] = []
    write_gguf(path, METADATA, SHAPES, fill, heard.append)
    assert path.stat().st_size == file_size(METADATA, SHAPES)
    assert heard == [name for name, _, _ in SHAPES]
    reader = gguf.GGUFReader(path)
    for key, value in METADATA.items():
        field = reader.fields[key]
        assert field.contents() == value.value
        kinds = [value.type] if value.element is None else [value.type, value.element]
        assert [kind.value for kind in field.types] == kinds
    ours = GGUFFile(path)
    assert ours.header.metadata == METADATA
    assert [read.name for read in reader.tensors] == list(ours.header.tensors)
    for read in reader.tensors:
        values = ours.read(read.name)
        values = values.dequantize() if isinstance(values, QTensor) else values.float()
        assert np.array_equal(values.numpy(), gguf.quants.dequantize(read.data, read.tensor_type))
        assert bytes(ours.read_raw(read.name)) == read.data.tobytes()


def test_we_read_what_gguf_py_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for key, value in METADATA.items():
        if key != "general.architecture":
            element = None if value.element is None else gguf.GGUFValueType(value.element)
            writer.add_key_value(key, value.value, gguf.GGUFValueType(value.type), element)
    for name, _, kind in SHAPES:
        theirs = gguf.GGMLQuantizationType(kind.id)
        writer.add_tensor(name, gguf.quants.quantize(weights()[name].numpy(), theirs), raw_dtype=theirs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = GGUFFile(path)
    alignment = ours.header.metadata["general.alignment"]
    assert dict(ours.header.metadata) == {**METADATA, "general.alignment": alignment}
    assert ours.header.alignment == alignment.value == 64
    for name, shape, kind in SHAPES:
        info = ours.header.tensors[name]
        assert (info.shape, info.type) == (shape, kind)
        assert bytes(ours.read_raw(name)) == bytes(fill(name))


def test_literal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {"k": Value(ValueType.UINT8, 7)}, [("w", (1, 4), BLOCKS["f32"])], lambda _: b"\1" * 16)
    assert path.read_bytes() == container([pair("k", U8, b"\7")], [tensor("w", (4, 1))], 0) + b"\1" * 16 + bytes(16)


KEYS = st.text(st.characters(blacklist_categories=["C", "Z"]), min_size=1, max_size=20)
SCALARS: dict[ValueType, st.SearchStrategy[Any]] = {
    **{
        kind: st.integers(-(1 << bits - 1) if signed else 0, (1 << bits - signed) - 1)
        for kind, bits, signed in [
            (ValueType.UINT8, 8, False),
            (ValueType.INT8, 8, True),
            (ValueType.UINT16, 16, False),
            (ValueType.INT16, 16, True),
            (ValueType.UINT32, 32, False),
            (ValueType.INT32, 32, True),
            (ValueType.UINT64, 64, False),
            (ValueType.INT64, 64, True),
        ]
    },
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(st.characters(blacklist_categories=["Cs"]), max_size=30),
}
VALUES = st.one_of(
    *(scalar.map(lambda value, kind=kind: Value(kind, value)) for kind, scalar in SCALARS.items()),
    *(
        st.lists(scalar, max_size=5).map(lambda value, kind=kind: Value(ValueType.ARRAY, value, kind))
        for kind, scalar in SCALARS.items()
    ),
)


@st.composite
def new_tensors(draw: st.DrawFn) -> list[NewTensor]:
    names = draw(st.lists(st.text("abc._0", min_size=1, max_size=63), max_size=5, unique=True))
    tensors: list[NewTensor] = []
    for name in names:
        kind = BLOCKS[draw(st.sampled_from(["f32", "f16", "i8", "q4_0", "q5_1", "q6_k", "mxfp4"]))]
        rows = draw(st.lists(st.integers(1, 3), max_size=3))
        tensors.append((name, (*rows, kind.block * draw(st.integers(1, 3))), kind))
    return tensors


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(KEYS, VALUES, max_size=6), tensors=new_tensors(), seed=st.integers(0, 99))
def test_what_is_written_is_read(
    tmp_path: Path, metadata: dict[str, Value], tensors: list[NewTensor], seed: int
) -> None:
    metadata.pop("general.alignment", None)
    data = {name: random.Random(seed).randbytes(kind.nbytes(shape)) for name, shape, kind in tensors}
    path = tmp_path / "x.gguf"
    write_gguf(path, metadata, tensors, data.__getitem__)
    assert path.stat().st_size == file_size(metadata, tensors)
    file = GGUFFile(path)
    assert dict(file.header.metadata) == metadata
    assert list(file.header.metadata) == list(metadata)
    assert [(info.name, info.shape, info.type) for info in file.header.tensors.values()] == tensors
    assert {name: bytes(file.read_raw(name)) for name in file.header.tensors} == data
    first = path.read_bytes()
    write_gguf(path, metadata, tensors, data.__getitem__)
    assert path.read_bytes() == first


def small_file(tmp_path: Path) -> bytes:
    path = tmp_path / "small.gguf"
    tensors: list[NewTensor] = [("a", (2, 32), BLOCKS["q4_0"]), ("b", (5,), BLOCKS["f32"])]
    metadata = {
        "general.alignment": Value(ValueType.UINT32, 32),
        "tokens": Value(ValueType.ARRAY, ["a", "bc", ""], ValueType.STRING),
        "kinds": Value(ValueType.ARRAY, [1, 2], ValueType.INT32),
        "flag": Value(ValueType.BOOL, True),
    }
    write_gguf(path, metadata, tensors, lambda name: bytes(36 if name == "a" else 20))
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = small_file(tmp_path)
    last = len(raw) - 12  # the padding after the last tensor
    for length in range(last):
        with pytest.raises(InputError):
            opened(tmp_path / "cut.gguf", raw[:length])
    opened(tmp_path / "cut.gguf", raw[:last])


def mutants(raw: bytes, count: int) -> Iterator[bytes]:
    """Files with flipped, overwritten, inserted, removed and copied bytes, most of them in the header."""
    rng = random.Random(0)
    numbers = [0, 1, 2, 3, 8, 9, 31, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, HUGE, (1 << 64) - 32, (1 << 64) - 1]
    for _ in range(count):
        mutant = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(mutant) - 8)
            kind = rng.randrange(6)
            if kind == 0:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutant[at] = rng.randrange(256)
            elif kind == 2:
                mutant[at : at + 8] = rng.choice(numbers).to_bytes(8, "little")
            elif kind == 3:
                mutant[at : at + 4] = (rng.choice(numbers) & 0xFFFFFFFF).to_bytes(4, "little")
            elif kind == 4:
                del mutant[at : at + rng.randint(1, 16)]
            else:
                start = rng.randrange(len(mutant))
                mutant[at:at] = mutant[start : start + rng.randint(1, 64)]
        yield bytes(mutant)


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    accepted = 0
    for mutant in mutants(small_file(tmp_path), 4000):
        try:
            file = opened(tmp_path / "mutant.gguf", mutant)
            for name in file.header.tensors:
                file.read(name)
            accepted += 1
        except InputError:
            pass
    assert 0 < accepted < 1500


def test_data_mutants_are_decoded_or_refused(tmp_path: Path) -> None:
    """Random data under every block type: values that are finite, or an InputError."""
    rng = random.Random(0)
    tensors: list[NewTensor] = [(name, (2, kind.block), kind) for name, kind in BLOCKS.items()]
    write_gguf(tmp_path / "x.gguf", {}, tensors, lambda name: rng.randbytes(2 * BLOCKS[name].size))
    file = GGUFFile(tmp_path / "x.gguf")
    finite = 0
    for name in BLOCKS:
        try:
            values = file.read(name)
        except InputError as error:
            assert name in str(error)
            continue
        finite += 1
        values = values.dequantize() if isinstance(values, QTensor) else values
        assert values.shape == (2, BLOCKS[name].block)
        assert bool(values.isfinite().all())
    assert finite > 20


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("f32", (4 * 40, b"\0\0\xc0\x7f"), r"x.gguf: w holds nan at index \[1, 8\]"),
        ("f16", (2 * 40, b"\0\xfc"), r"x.gguf: w holds -inf at index \[1, 8\]"),
        ("q4_0", (18, b"\0\x7c"), r"x.gguf: w \(scale\) holds inf at index \[1, 0\]"),
        ("q4_1", (20 + 2, b"\1\x7e"), r"x.gguf: w \(minimum\) holds nan at index \[1, 0\]"),
        ("mxfp4", (17, b"\xff"), None),
        ("iq4_nl", (18, b"\0\x7c"), r"x.gguf: w holds (nan|-?inf) at index \[1, 0\]"),
    ],
)
def test_nan_and_inf_are_named(tmp_path: Path, kind: str, damage: tuple[int, bytes], message: str | None) -> None:
    at, raw = damage
    data = bytearray(BLOCKS[kind].nbytes((2, 32)))
    data[at : at + len(raw)] = raw
    write_gguf(tmp_path / "x.gguf", {}, [("w", (2, 32), BLOCKS[kind])], lambda _: data)
    file = GGUFFile(tmp_path / "x.gguf")
    if message is None:
        file.read("w")
        return
    with pytest.raises(InputError, match=message):
        file.read("w")


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


def failing(call: Callable[..., Any], at: int) -> tuple[Callable[..., Any], list[int]]:
    """`call`, whose `at`-th use fails for want of space; and how often it was used."""
    used = [0]

    def wrapped(*arguments: Any) -> Any:
        used[0] += 1
        if used[0] == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    return wrapped, used


@pytest.mark.parametrize("name", ["open", "posix_fallocate", "pwrite", "fsync", "replace"])
def test_every_failing_call_is_a_storage_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    for at in range(1, 50):
        wrapped, used = failing(getattr(os, name), at)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, name, wrapped)
                write_gguf(path, METADATA, SHAPES, fill)
        except StorageError as error:
            assert str(path) in str(error)
            assert "free some space" in error.hint
            assert os.listdir(tmp_path) == []
            continue
        assert used[0] == at - 1 > 0
        break
    assert GGUFFile(path).header.metadata == METADATA
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_file_larger_than_allowed_fails_before_any_work(tmp_path: Path) -> None:
    """The kernel itself refuses, at preallocation: `fill` is never called."""
    needed = file_size(METADATA, SHAPES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    called: list[str] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (needed - 1, limits[1]))
    try:
        with pytest.raises(StorageError, match=f"{needed:,} bytes"):
            write_gguf(tmp_path / "x.gguf", METADATA, SHAPES, fill, called.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert called == []
    assert os.listdir(tmp_path) == []


def test_a_failing_or_wrong_source_leaves_no_file(tmp_path: Path) -> None:
    for data in (bytes(3), bytes(17)):
        with pytest.raises(ValueError, match="takes 16 bytes"):
            write_gguf(tmp_path / "x.gguf", {}, [("w", (4,), BLOCKS["f32"])], lambda _, data=data: data)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Value(ValueType.UINT32, 1 << 32), "'k'"),
        (Value(ValueType.INT8, 1000), "'k'"),
        (Value(ValueType.FLOAT32, 1e300), "'k'"),
        (Value(ValueType.STRING, "\ud800"), "'k'"),
        (Value(ValueType.ARRAY, [1, -1], ValueType.UINT8), "'k'"),
    ],
)
def test_values_that_do_not_fit_are_refused(value: Value, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode_header({"k": value}, [])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (("n" * 64, (4,), "f32"), "longer than 63 bytes"),
        (("a/b", (4,), "f32"), "path"),
        (("\ud800", (4,), "f32"), "control"),
        (("w", (), "f32"), "shape"),
        (("w", (2, 0), "f32"), "shape"),
        (("w", (1, 1, 1, 1, 4), "f32"), "shape"),
        (("w", (4, 48), "q4_0"), "blocks of 32"),
    ],
)
def test_tensors_that_gguf_cannot_hold(new: tuple[str, tuple[int, ...], str], message: str) -> None:
    name, shape, kind = new
    with pytest.raises(RefusedError, match=message):
        lay_out([(name, shape, BLOCKS[kind])], 32)
