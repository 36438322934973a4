"""Whatever metadata and tensors are written as GGUF are read back, and written again as the same bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import GGUFFile, NewTensor, file_size, write_gguf
from compress.formats.gguf.header import Value, ValueType

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
