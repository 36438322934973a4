"""The file between stages: exact, reproducible, and never trusted."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress.formats.base import TensorSpec
from compress.formats.errors import InputError
from compress.formats.files.native import NativeFile, save_tensors
from compress.kernels.numbers.int import IntFormat
from compress.kernels.qtensor import QTensor, quantize

FORMATS = [IntFormat(4, 16), IntFormat(3, -1, "integer"), IntFormat(8, 32, "real")]


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {"norm.weight": torch.randn(64, generator=generator).bfloat16(), "ids": torch.arange(3)}
    for index, number_format in enumerate(FORMATS):
        weight = torch.randn(8, 64, generator=generator)
        tensors[f"layer.{index}.weight"] = quantize(weight, number_format, number_format.fit(weight))
    return tensors


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "layer.safetensors", some_tensors())
    return tmp_path / "layer.safetensors"


def test_everything_comes_back_exactly(path):
    tensors, file = some_tensors(), NativeFile(path)
    assert file.specs.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = file.read(name)
        if isinstance(tensor, QTensor):
            assert file.specs[name] == TensorSpec((8, 64), "float32", tensor.format)
            assert found.format == tensor.format and torch.equal(found.codes, tensor.codes)
            assert found.params.keys() == tensor.params.keys()
            assert all(torch.equal(found.params[key], tensor.params[key]) for key in tensor.params)
        else:
            assert file.specs[name].format is None
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_codes_wider_than_a_byte_that_span_columns_come_back(tmp_path, monkeypatch, pairs):
    monkeypatch.setattr("compress.formats.files.native.number_formats", lambda: [type(pairs)])
    tensor = pairs.search(torch.linspace(-1, 1, 24).view(3, 8))
    save_tensors(tmp_path / "wide", {"layer.weight": tensor})
    file = NativeFile(tmp_path / "wide")
    assert file.specs["layer.weight"] == TensorSpec((3, 8), "float32", pairs)
    found = file.read("layer.weight")
    assert found.codes.dtype == torch.int16 and torch.equal(found.codes, tensor.codes)
    save_tensors(tmp_path / "wide", {"layer.weight": QTensor(pairs, -tensor.codes, tensor.params)})
    with pytest.raises(InputError, match="codes that toy pairs does not have"):
        NativeFile(tmp_path / "wide").read("layer.weight")


def test_the_bytes_do_not_depend_on_the_order(path, tmp_path):
    save_tensors(tmp_path / "other", dict(reversed(some_tensors().items())))
    assert (tmp_path / "other").read_bytes() == path.read_bytes()


def test_the_library_reads_what_lies_there(path):
    tensors = some_tensors()
    assert torch.equal(load_file(path)["layer.1.weight.codes"], tensors["layer.1.weight"].codes)
    assert set(load_file(path)) >= {"layer.1.weight.scale", "layer.1.weight.zero", "layer.2.weight.minimum"}


def rewrite(path, change_format=None, tensors=None):
    """Save the file again with the library, after `change_format(description)` and with other tensors."""
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["number_formats"])
    described = change_format(described) if change_format else described
    held = load_file(path) | (tensors or {})
    text = described if isinstance(described, str) else json.dumps(described)
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    save_file(kept, path, {"number_formats": text})


def with_entry(**entry):
    return lambda described: described | {"layer.0.weight": described["layer.0.weight"] | entry}


@pytest.mark.parametrize(
    "change",
    [
        with_entry(**{"class": "NumberFormat"}),
        with_entry(**{"class": "os.system"}),
        with_entry(**{"class": None}),
        with_entry(fields={"bits": 4}),
        with_entry(fields={"bits": 99, "group_size": 16, "zero": "middle"}),
        with_entry(fields={"bits": "4", "group_size": 16, "zero": "middle"}),
        with_entry(fields={"bits": 4.0, "group_size": 16, "zero": "middle"}),
        with_entry(fields={"bits": True, "group_size": 16, "zero": "middle"}),
        with_entry(fields={"bits": "four", "group_size": 16, "zero": "middle"}),
        with_entry(fields={"bits": 4, "group_size": 16, "zero": "none"}),
        with_entry(fields={"bits": 4, "group_size": 16, "zero": "middle", "more": 1}),
        with_entry(fields={"bits": 4, "group_size": 24, "zero": "middle"}),
        with_entry(fields={"bits": 4, "group_size": 32, "zero": "middle"}),
        with_entry(fields={"bits": 4, "group_size": 16, "zero": "integer"}),
        with_entry(fields=[4, 16]),
        with_entry(fields=None),
        lambda described: described | {"ghost": described["layer.0.weight"]},
        lambda described: described | {"ghost": 1},
        lambda described: [],
        lambda described: "{",
        lambda described: "[" * 100_000,
    ],
)
def test_descriptions_that_do_not_fit_are_input_errors(path, change):
    rewrite(path, change)
    with pytest.raises(InputError, match=r"layer\.safetensors"):
        NativeFile(path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("codes", None),
        ("scale", None),
        ("codes", torch.zeros(8, 64)),
        ("codes", torch.zeros(512, dtype=torch.uint8)),
        ("codes", torch.zeros(8, 32, dtype=torch.uint8)),
        ("scale", torch.zeros(8, 4)),
        ("scale", torch.zeros(4, 8).half()),
    ],
)
def test_tensors_that_do_not_fit_are_input_errors(path, name, tensor):
    rewrite(path, tensors={f"layer.0.weight.{name}": tensor})
    with pytest.raises(InputError, match=r"layer\.0\.weight has no"):
        NativeFile(path)


def test_codes_beyond_the_format_and_broken_scales_are_input_errors(path):
    rewrite(path, tensors={"layer.0.weight.codes": torch.full((8, 64), 16, dtype=torch.uint8)})
    with pytest.raises(InputError, match="holds codes"):
        NativeFile(path).read("layer.0.weight")
    rewrite(path, tensors={"layer.1.weight.scale": torch.full((8, 1), float("nan")).half()})
    with pytest.raises(InputError, match=r"layer\.1\.weight\.scale"):
        NativeFile(path).read("layer.1.weight")
