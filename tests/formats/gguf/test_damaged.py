"""Honest GGUF files that were cut, mutated, or filled with bits at random: read, or refused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.formats.errors import InputError
from compress.formats.gguf.blocks.types import BLOCKS
from compress.formats.gguf.file import GGUFFile, NewTensor, write_gguf
from compress.formats.gguf.header import Value, ValueType
from compress.kernels.qtensor import QTensor


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
    raw, path = small_file(tmp_path), tmp_path / "cut.gguf"
    last = len(raw) - 12  # the padding after the last tensor
    for length in range(last):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            GGUFFile(path)
    path.write_bytes(raw[:last])
    GGUFFile(path)


def mutants(raw: bytes, count: int) -> Iterator[bytes]:
    """Files with flipped, overwritten, inserted, removed and copied bytes, most of them in the header."""
    rng = random.Random(0)
    numbers = [0, 1, 2, 3, 8, 9, 31, 0x7F, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]
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
    accepted, path = 0, tmp_path / "mutant.gguf"
    for mutant in mutants(small_file(tmp_path), 4000):
        path.write_bytes(mutant)
        try:
            file = GGUFFile(path)
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
        ("iq4_nl", (18, b"\0\x7c"), r"x.gguf: w \(scale\) holds inf at index \[1, 0\]"),
        ("mxfp4", (17, b"\xff\x01"), r"x.gguf: w: mxfp4 blocks hold the exponent 255"),
        ("nvfp4", (36, b"\xb8"), r"x.gguf: w: nvfp4 blocks hold the scale 0xb8"),
        ("iq3_s", (110, b"\0\x7c"), r"x.gguf: w holds (nan|-?inf) at index \[1, 0\]"),
    ],
)
def test_nan_and_inf_are_named(tmp_path: Path, kind: str, damage: tuple[int, bytes], message: str | None) -> None:
    at, raw = damage
    shape = (2, max(32, BLOCKS[kind].block))
    data = bytearray(BLOCKS[kind].nbytes(shape))
    data[at : at + len(raw)] = raw
    write_gguf(tmp_path / "x.gguf", {}, [("w", shape, BLOCKS[kind])], lambda _: data)
    file = GGUFFile(tmp_path / "x.gguf")
    if message is None:
        file.read("w")
        return
    with pytest.raises(InputError, match=message):
        file.read("w")
