"""What became of every tensor, from headers and readings alone; and what is not as it was recorded."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.formats import open_checkpoint
from compress.formats.base import ModelSpec, TensorSpec
from compress.kernels.numbers.int import IntFormat
from compress.passes.artifact.inventory import Reading, bits_of, check_inventory, digests, format_name, take_inventory

DENSE, HALF = TensorSpec((4, 32), "float32"), TensorSpec((4, 32), "float16")
CODES = TensorSpec((4, 32), "float32", IntFormat(4, 32))


def spec(**tensors: TensorSpec) -> ModelSpec:
    return ModelSpec({}, tensors)


def test_every_state_a_tensor_can_come_to() -> None:
    source = spec(kept=DENSE, half=DENSE, solved=DENSE, folded=DENSE, head=DENSE, gone=DENSE, was=CODES)
    model = spec(kept=DENSE, half=DENSE, solved=CODES, folded=DENSE, head=DENSE, was=CODES)
    artifact = spec(kept=DENSE, half=HALF, solved=CODES, folded=DENSE, was=CODES, extra=DENSE)
    kept = {"kept", "folded"}
    readings = {name: Reading({"values": name}, name in kept) for name in artifact.tensors}
    found = take_inventory(
        artifact, model, source, readings, {"solved": "gptq", "folded": "awq"},
        container="export to x", rewritten=frozenset({"solved", "folded"}), tied="head",
    )  # fmt: skip
    assert {name: (entry.state, entry.by) for name, entry in found.items()} == {
        "kept": ("copied", "export to x"),
        "half": ("converted", "export to x"),
        "solved": ("quantized", "gptq"),
        "folded": ("rewritten", "awq"),
        "head": ("tied", "export to x"),
        "gone": ("dropped", "a pass"),
        "was": ("quantized", "the source"),
        "extra": ("added", "export to x"),
    }
    assert found["solved"].sha256 == {"values": "solved"} and found["gone"].sha256 == {}


def test_formats_have_names_and_bits() -> None:
    assert (format_name(HALF), bits_of(HALF)) == ("float16", 16)
    assert (format_name(CODES), bits_of(CODES)) == (IntFormat(4, 32).name, 4.5)


def test_what_differs_from_the_inventory_is_named(written_as_gptq: Path) -> None:
    artifact = open_checkpoint(written_as_gptq)
    names = list(artifact.spec.tensors)
    readings = {name: Reading(digests(artifact.read(name)), True) for name in names}
    right = take_inventory(
        artifact.spec, artifact.spec, artifact.spec, readings, {}, container="x", rewritten=frozenset(), tied=None
    )
    assert list(check_inventory(artifact, right, {})) == []
    norm, up = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
    wrong = {
        **{name: entry for name, entry in right.items() if name != names[0]},
        norm: right[norm].model_copy(update={"shape": (1,)}),
        up: right[up].model_copy(update={"sha256": {**right[up].sha256, "scale": "x"}}),
        "more": right[norm],
    }
    found = dict(check_inventory(artifact, wrong, readings))
    assert set(found) == {names[0], norm, up, "more"}
    assert found[up] == "has other scale than were written" and found["more"].startswith("is missing")


def test_digests_are_of_bytes_not_of_strides() -> None:
    values = torch.arange(12.0).view(3, 4)
    assert digests(values.T.contiguous().T) == digests(values) != digests(values.double())
