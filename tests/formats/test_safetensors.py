"""Our safetensors reader and writer, against the `safetensors` library and against hostile files."""

import hashlib
import json
import os
import random

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from compress.formats.base import TensorSpec
from compress.formats.casting import cast
from compress.formats.errors import InputError, RefusedError, StorageError
from compress.formats.safetensors_file import SafetensorsFile, file_bytes, write_file
from compress.formats.safetensors_header import parse_header
from compress.formats.safetensors_shards import INDEX, Weights, plan_shards, planned_files, write_shards

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
    torch.bool,
]  # fmt: skip
SHAPES = [(), (0,), (3, 0, 2), (7,), (5, 3), (1, 1, 1, 1, 1, 1, 1, 2)]


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def specs_of(tensors):
    return {name: TensorSpec(tuple(tensor.shape), name_of(tensor.dtype)) for name, tensor in tensors.items()}


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name_of(dtype)}.{len(shape)}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype in DTYPES
        for shape in SHAPES
    }


def raw_file(path, described, data=b"", pad=b""):
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    path.write_bytes(len(text + pad).to_bytes(8, "little") + text + pad + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def same(left, right):
    assert left.dtype == right.dtype and left.shape == right.shape
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def test_what_we_write_the_library_reads(tmp_path):
    tensors = some_tensors()
    path = tmp_path / "model.safetensors"
    write_file(path, specs_of(tensors), {"b": "2", "a": "é"}, tensors.__getitem__)
    assert path.stat().st_size == file_bytes(specs_of(tensors), {"b": "2", "a": "é"})
    with safe_open(path, "pt") as theirs:
        assert theirs.metadata() == {"a": "é", "b": "2"}
    loaded = load_file(path)
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensors[name]) for name in tensors)


def test_what_the_library_writes_we_read(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert file.specs == specs_of(tensors)
    assert file.metadata == {"format": "pt"}
    assert all(same(file.read(name), tensors[name]) for name in tensors)


def test_the_bytes_are_these(tmp_path):
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([1.0])}
    write_file(tmp_path / "f", specs_of(tensors), {"format": "pt"}, tensors.__getitem__)
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f" + b"\1\2"
    assert (tmp_path / "f").read_bytes() == expected


def test_tensors_of_wider_elements_come_first_so_that_all_are_aligned(tmp_path):
    tensors = {"odd": torch.zeros(3, dtype=torch.uint8), "half": torch.zeros(3, dtype=torch.float16),
               "word": torch.zeros(3, dtype=torch.int32)}  # fmt: skip
    write_file(tmp_path / "f", specs_of(tensors), {}, tensors.__getitem__)
    raw = (tmp_path / "f").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    offsets = {name: value["data_offsets"][0] for name, value in json.loads(raw[8 : 8 + length]).items()}
    assert offsets == {"word": 0, "half": 12, "odd": 18} and length % 8 == 0


def test_non_contiguous_tensors_are_written_as_they_read(tmp_path):
    matrix = torch.arange(12.0).view(3, 4)
    write_file(tmp_path / "f", {"t": TensorSpec((4, 3), "float32")}, {}, lambda _: matrix.T)
    assert torch.equal(load_file(tmp_path / "f")["t"], matrix.T)


def test_a_tensor_that_was_not_planned_is_not_written(tmp_path):
    for wrong in (torch.zeros(3), torch.zeros(2, 2), torch.zeros(2, dtype=torch.float16)):
        with pytest.raises(ValueError, match="tensor t was planned"):
            write_file(tmp_path / "f", {"t": TensorSpec((2,), "float32")}, {}, lambda _, wrong=wrong: wrong)
        assert list(tmp_path.iterdir()) == []


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


def test_mutated_files_are_input_errors_or_are_read_as_the_library_reads_them(tmp_path):
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
        assert set(ours) == set(theirs) and all(same(ours[name], theirs[name]) for name in ours)
    assert accepted > 100


def shard_specs():
    tensors = {f"layer.{index}.weight": torch.full((4, 4), float(index)) for index in range(5)}
    tensors["big"] = torch.ones(100)
    return tensors, specs_of(tensors)


def test_shards_are_planned_exactly_and_read_back(tmp_path):
    tensors, specs = shard_specs()
    shards = plan_shards(specs, 130)
    assert list(shards) == [f"model-{index:05}-of-00004.safetensors" for index in (1, 2, 3, 4)]
    write_shards(tmp_path, shards, tensors.__getitem__)
    written = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert written == {file.name: file.nbytes for file in planned_files(shards)}
    weights = Weights(tmp_path)
    assert weights.specs == specs
    assert weights.nbytes == sum(written.values()) - written[INDEX]
    assert all(same(weights.read(name), tensors[name]) for name in tensors)
    index = json.loads((tmp_path / INDEX).read_bytes())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, "pt") as file:
            assert same(file.get_tensor(name), tensors[name]) and file.metadata() == {"format": "pt"}


def test_shards_do_not_depend_on_the_order_and_follow_the_layers():
    specs = {f"layers.{index}.weight": TensorSpec((4,), "float32") for index in (10, 9, 2, 11, 1)}
    shards = plan_shards(specs, 32)
    layers = [[int(name.split(".")[1]) for name in held] for held in shards.values()]
    assert layers == [[1, 2], [9, 10], [11]]


def test_one_file_needs_no_index_and_the_same_bytes_come_every_time(tmp_path):
    tensors, specs = shard_specs()
    digests = set()
    for run in range(5):
        directory = tmp_path / str(run)
        directory.mkdir()
        write_shards(directory, plan_shards(specs, 10_000), tensors.__getitem__)
        assert [path.name for path in directory.iterdir()] == ["model.safetensors"]
        digests.add(hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_disk_that_fails_at_the_last_shard_leaves_no_index(tmp_path):
    tensors, specs = shard_specs()
    shards = plan_shards(specs, 130)
    (tmp_path / list(shards)[-1]).mkdir()  # a real obstacle: no file can be renamed onto a directory
    with pytest.raises(StorageError):
        write_shards(tmp_path, shards, tensors.__getitem__)
    assert not (tmp_path / INDEX).exists() and not list(tmp_path.glob("*.partial"))


def test_shards_in_a_hub_cache_are_symlinks(tmp_path):
    tensors, specs = shard_specs()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shards(tmp_path / "blobs", plan_shards(specs, 130), tensors.__getitem__)
    for number, path in enumerate(sorted((tmp_path / "blobs").iterdir())):
        blob = path.rename(path.with_name(f"{number:064}"))
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{blob.name}")
    weights = Weights(tmp_path / "snapshot")
    assert all(same(weights.read(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../model.safetensors",
        "a/b.safetensors",
        "model.bin",
        "",
        "x.safetensors\n",
        "a\0.safetensors",
    ],
)
def test_paths_in_an_index_are_input_errors(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(InputError, match="is not the name of"):
        Weights(tmp_path)


def rewrite_index(directory, change):
    index = json.loads((directory / INDEX).read_bytes())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("fault", ["missing", "unlisted", "moved"])
def test_index_and_shards_must_agree(tmp_path, fault):
    tensors, specs = shard_specs()
    shards = plan_shards(specs, 130)
    write_shards(tmp_path, shards, tensors.__getitem__)
    first, *_, last = shards
    rewrite_index(tmp_path, {
        "missing": lambda homes: homes.update(extra=first),
        "unlisted": lambda homes: homes.pop("layer.0.weight"),
        "moved": lambda homes: homes.update({"layer.0.weight": last}),
    }[fault])  # fmt: skip
    with pytest.raises(InputError, match="disagree on tensor"):
        Weights(tmp_path)


@pytest.mark.parametrize("index", [b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1}}', b"{"])
def test_a_broken_index_is_an_input_error(tmp_path, index):
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(InputError, match="index"):
        Weights(tmp_path)


def test_mutated_indexes_are_input_errors_or_say_the_same(tmp_path):
    tensors, specs = shard_specs()
    write_shards(tmp_path, plan_shards(specs, 130), tensors.__getitem__)
    original, chance, read = (tmp_path / INDEX).read_bytes(), random.Random(0), 0
    for _ in range(1000):
        mutant = bytearray(original)
        mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        (tmp_path / INDEX).write_bytes(mutant)
        try:
            weights = Weights(tmp_path)
        except InputError:
            continue
        assert weights.specs == specs
        read += 1
    assert 20 < read < 900


def test_a_directory_without_weights_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"0 \.safetensors files"):
        Weights(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not a regular file"):
        Weights(tmp_path)


def test_a_cast_that_would_overflow_is_refused_by_name():
    assert cast("t", torch.tensor([65504.0]), "float16").tolist() == [65504.0]
    with pytest.raises(RefusedError, match="tensor t holds 70000"):
        cast("t", torch.tensor([1.0, -70000.0]), "float16")
    assert cast("t", torch.tensor([70000.0]), "bfloat16").dtype == torch.bfloat16
