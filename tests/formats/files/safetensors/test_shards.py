"""Weights in several safetensors files and their index: planned, written, read, and refused where they disagree."""

import hashlib
import json
import os
import random

import pytest
import torch
from safetensors import safe_open

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError, StorageError
from compress.formats.files.safetensors.shards import INDEX, Weights, plan_shards, planned_files, write_shards


@pytest.fixture
def small_model(specs_of):
    """Five layers and a larger tensor: the tensors, and their specs."""
    tensors = {f"layer.{index}.weight": torch.full((4, 4), float(index)) for index in range(5)}
    tensors["big"] = torch.ones(100)
    return tensors, specs_of(tensors)


def test_shards_are_planned_exactly_and_read_back(tmp_path, octets, small_model):
    tensors, specs = small_model
    shards = plan_shards(specs, 130)
    assert list(shards) == [f"model-{index:05}-of-00004.safetensors" for index in (1, 2, 3, 4)]
    write_shards(tmp_path, shards, tensors.__getitem__)
    written = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert written == {file.name: file.nbytes for file in planned_files(shards)}
    weights = Weights(tmp_path)
    assert weights.specs == specs
    assert weights.nbytes == sum(written.values()) - written[INDEX]
    assert all(octets(weights.read(name)) == octets(tensors[name]) for name in tensors)
    index = json.loads((tmp_path / INDEX).read_bytes())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / shard, "pt") as file:
            assert octets(file.get_tensor(name)) == octets(tensors[name]) and file.metadata() == {"format": "pt"}


def test_shards_do_not_depend_on_the_order_and_follow_the_layers():
    specs = {f"layers.{index}.weight": TensorSpec((4,), "float32") for index in (10, 9, 2, 11, 1)}
    shards = plan_shards(specs, 32)
    layers = [[int(name.split(".")[1]) for name in held] for held in shards.values()]
    assert layers == [[1, 2], [9, 10], [11]]


def test_one_file_needs_no_index_and_the_same_bytes_come_every_time(tmp_path, small_model):
    tensors, specs = small_model
    digests = set()
    for run in range(5):
        directory = tmp_path / str(run)
        directory.mkdir()
        write_shards(directory, plan_shards(specs, 10_000), tensors.__getitem__)
        assert [path.name for path in directory.iterdir()] == ["model.safetensors"]
        digests.add(hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_disk_that_fails_at_the_last_shard_leaves_no_index(tmp_path, small_model):
    tensors, specs = small_model
    shards = plan_shards(specs, 130)
    (tmp_path / list(shards)[-1]).mkdir()  # a real obstacle: no file can be renamed onto a directory
    with pytest.raises(StorageError):
        write_shards(tmp_path, shards, tensors.__getitem__)
    assert not (tmp_path / INDEX).exists() and not list(tmp_path.glob("*.partial"))


def test_shards_in_a_hub_cache_are_symlinks(tmp_path, octets, small_model):
    tensors, specs = small_model
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_shards(tmp_path / "blobs", plan_shards(specs, 130), tensors.__getitem__)
    for number, path in enumerate(sorted((tmp_path / "blobs").iterdir())):
        blob = path.rename(path.with_name(f"{number:064}"))
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{blob.name}")
    weights = Weights(tmp_path / "snapshot")
    assert all(octets(weights.read(name)) == octets(tensors[name]) for name in tensors)


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
def test_index_and_shards_must_agree(tmp_path, fault, small_model):
    tensors, specs = small_model
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


def test_mutated_indexes_are_input_errors_or_say_the_same(tmp_path, small_model):
    tensors, specs = small_model
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
