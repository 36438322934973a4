"""Hostile and damaged safetensors files: input errors, or read as the `safetensors` library reads them."""

import json
import os
import random

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from compress.formats.errors import InputError
from compress.formats.files.safetensors.file import SafetensorsFile, write_file
from compress.formats.files.safetensors.header import parse_header


def raw_file(path, described, data=b"", pad=b""):
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    path.write_bytes(len(text + pad).to_bytes(8, "little") + text + pad + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


F = entry([2], 0, 8)
HOSTILE = {
    "duplicate name": (b'{"a": %b, "a": %b}' % ((json.dumps(F).encode(),) * 2), bytes(8)),
    "duplicate field": (b'{"a": {"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "overlap": ({"a": F, "b": entry([2], 4, 12)}, bytes(12)),
    "two on one place": ({"a": F, "b": F}, bytes(8)),
    "hole": ({"a": F, "b": entry([2], 12, 20)}, bytes(20)),
    "hole at the start": ({"a": entry([2], 4, 12)}, bytes(12)),
    "trailing bytes": ({"a": F}, bytes(12)),
    "truncated data": ({"a": F}, bytes(7)),
    "no data at all": ({"a": F}, b""),
    "reversed offsets": ({"a": entry([0], 8, 0)}, bytes(8)),
    "negative offset": ({"a": entry([2], -8, 0)}, bytes(8)),
    "wrapping shape": ({"a": entry([2**62, 4], 0, 0)}, b""),
    "empty but huge": ({"a": entry([0, 2**62], 0, 0)}, b""),
    "shape of 2^64": ({"a": entry([2**64], 0, 8)}, bytes(8)),
    "fractional shape": ({"a": entry([2.0], 0, 8)}, bytes(8)),
    "boolean shape": ({"a": entry([True, 2], 0, 8)}, bytes(8)),
    "negative shape": ({"a": entry([-1, -2], 0, 8)}, bytes(8)),
    "shape is text": ({"a": entry("2", 0, 8)}, bytes(8)),
    "shape lies": ({"a": entry([3], 0, 8)}, bytes(8)),
    "rank 9": ({"a": entry([1] * 8 + [2], 0, 8)}, bytes(8)),
    "rank 10^5": ({"a": entry([1] * 100_000, 0, 4)}, bytes(4)),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, bytes(8)),
    "unknown dtype": ({"a": entry([2], 0, 8, "F33")}, bytes(8)),
    "dtype is a list": ({"a": entry([2], 0, 8, ["F32"])}, bytes(8)),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "extra field": ({"a": {**F, "pickle": "x"}}, bytes(8)),
    "entry is a number": ({"a": 1}, b""),
    "metadata not strings": ({"__metadata__": {"format": 1}, "a": F}, bytes(8)),
    "metadata is a list": ({"__metadata__": [], "a": F}, bytes(8)),
    "header is a list": (b"[]", b""),
    "header is empty": (b"", b""),
    "header with a mark": (b"\xef\xbb\xbf{}", b""),
    "header in UTF-16": ("{}".encode("utf-16"), b""),
    "name not UTF-8": (b'{"\xff": %b}' % json.dumps(F).encode(), bytes(8)),
    "name with a newline": ({"a\nb": F}, bytes(8)),
    "name with a nul": ({"a\0b": F}, bytes(8)),
    "name with half a surrogate": (b'{"\\ud800": %b}' % json.dumps(F).encode(), bytes(8)),
    "empty name": ({"": F}, bytes(8)),
    "deep nesting": (b'{"a":' + b"[" * 100_000, b""),
    "number of 10^4 digits": (b'{"a": ' + b"9" * 10_000 + b"}", b""),
    "100,001 tensors": ({f"t{index}": entry([0], 0, 0) for index in range(100_001)}, b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_input_errors(tmp_path, case):
    described, data = HOSTILE[case]
    path = raw_file(tmp_path / "hostile.safetensors", described, data)
    with pytest.raises(InputError, match=r"hostile\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 100_000_001, 3])
def test_header_lengths_that_lie_are_input_errors(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError):
        SafetensorsFile(path)


def test_a_header_of_commas_is_refused_before_it_is_parsed():
    with pytest.raises(InputError, match="can need"):
        parse_header(b'{"a":[' + b"0," * 5_000_000 + b"0]}", 0, "f")


def test_every_truncation_of_a_file_is_an_input_error(tmp_path):
    path = raw_file(tmp_path / "model.safetensors", {"a": F, "b": entry([1], 8, 12)}, bytes(12), pad=b"  ")
    whole = path.read_bytes()
    assert SafetensorsFile(path).read("b").tolist() == [0.0]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            SafetensorsFile(path)


def test_what_is_not_a_regular_file_is_an_input_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", ".", "missing"):
        with pytest.raises(InputError):
            SafetensorsFile(tmp_path / name)


def test_a_file_that_changes_after_it_was_opened_is_an_input_error(tmp_path):
    path = raw_file(tmp_path / "model.safetensors", {"a": F}, bytes(8))
    file = SafetensorsFile(path)
    whole = path.read_bytes()
    for changed in (whole[:-1], whole[:-1] + b"\1\0"):
        path.write_bytes(changed)
        with pytest.raises(InputError, match="was changed"):
            file.read("a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_named_by_tensor_and_index(tmp_path, dtype, value):
    tensor = torch.zeros(4, 5)
    tensor[2, 3] = tensor[3, 0] = value
    save_file({"layer.weight": tensor.to(dtype)}, tmp_path / "f")
    with pytest.raises(InputError, match=r"layer\.weight .* \[2, 3\]"):
        SafetensorsFile(tmp_path / "f").read("layer.weight")


def test_booleans_are_0_or_1(tmp_path):
    path = raw_file(tmp_path / "f", {"a": entry([2], 0, 2, "BOOL")}, b"\1\2")
    with pytest.raises(InputError, match="booleans"):
        SafetensorsFile(path).read("a")


def test_mutated_files_are_input_errors_or_are_read_as_the_library_reads_them(tmp_path, octets, specs_of):
    """3,000 seeded mutants; where we accept one, the library must accept it too and agree on every tensor."""
    chance = random.Random(0)
    seed = tmp_path / "seed"
    tensors = {"model.a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half(), "c": torch.ones(3).byte()}
    write_file(seed, specs_of(tensors), {"format": "pt"}, tensors.__getitem__)
    original = seed.read_bytes()
    path = tmp_path / "mutant"
    accepted = 0
    for _ in range(3000):
        mutant = bytearray(original)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            place = chance.randrange(len(mutant))
            match chance.randrange(4):
                case 0:
                    mutant[place] ^= 1 << chance.randrange(8)
                case 1:
                    mutant[place] = chance.choice(b'0123456789"[]{},:.-eF ')
                case 2:
                    del mutant[place : place + chance.randrange(1, 9)]
                case 3:
                    mutant[place:place] = mutant[place : place + chance.randrange(1, 9)]
        path.write_bytes(mutant)
        try:
            file = SafetensorsFile(path)
            ours = {name: file.read(name) for name in file.specs}
        except InputError:
            continue
        accepted += 1
        try:
            theirs = load_file(path)
        except SafetensorError as error:
            pytest.fail(f"we read what the library refuses: {error}")
        assert set(ours) == set(theirs) and all(octets(ours[name]) == octets(theirs[name]) for name in ours)
    assert accepted > 100
