"""Importance matrices, read and written: gguf-py and llama.cpp's own layout are the judges."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ggml import decoded, encoded
from torch import Tensor

from compress.formats.base import ModelSpec, TensorSpec
from compress.formats.errors import InputError, RefusedError
from compress.formats.gguf.importance.entry import Entry, entry
from compress.formats.gguf.importance.file import read_imatrix, write_imatrix
from compress.formats.gguf.importance.legacy import parse_legacy
from compress.formats.gguf.importance.modules import Energy, Names, Part, energies, entries_of

MOE = {"model_type": "mixtral", "num_hidden_layers": 1}
Q, EXPERT = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.{}.down_proj"
MODULES = [Q, *(EXPERT.format(number) for number in range(3))]
WIDTH, INNER = 8, 6


def model(config: dict[str, Any] = MOE) -> ModelSpec:
    widths = {name: WIDTH if name == Q else INNER for name in MODULES}
    return ModelSpec(config, {f"{name}.weight": TensorSpec((4, width), "float32") for name, width in widths.items()})


def found() -> dict[str, Energy]:
    """Two of three experts were reached."""
    sums = torch.arange(1.0, 1 + WIDTH)
    experts = [torch.full((INNER,), 3.0), torch.zeros(INNER), torch.arange(2.0, 2 + INNER)]
    return {Q: Energy(sums, 40), **{name: Energy(x, n) for name, x, n in zip(MODULES[1:], experts, (7, 0, 33))}}


def same(left: Energy, right: Energy) -> bool:
    return torch.equal(left.sums, right.sums) and left.tokens == right.tokens


def test_gguf_py_reads_what_is_written_and_so_do_we(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, entries_of(found(), MOE), ["tokens abc"], chunks=2, length=20)
    reader = gguf.GGUFReader(path)
    held = {tensor.name: (tensor.data.shape, tensor.data.copy()) for tensor in reader.tensors}
    assert {name: shape for name, (shape, _) in held.items()} == {
        "blk.0.attn_q.weight.in_sum2": (1, WIDTH), "blk.0.attn_q.weight.counts": (1, 1),
        "blk.0.ffn_down_exps.weight.in_sum2": (3, INNER), "blk.0.ffn_down_exps.weight.counts": (3, 1),
    }  # fmt: skip
    assert held["blk.0.ffn_down_exps.weight.counts"][1].tolist() == [[7], [0], [33]]
    assert held["blk.0.attn_q.weight.in_sum2"][1].tolist() == [list(range(1, 1 + WIDTH))]
    said = {name: field.contents() for name, field in reader.fields.items() if name.startswith(("imatrix", "general"))}
    assert said["general.type"] == "imatrix" and said["imatrix.datasets"] == ["tokens abc"]
    assert (said["imatrix.chunk_count"], said["imatrix.chunk_size"]) == (2, 20)
    again = energies(read_imatrix(path), MODULES, model())
    assert all(same(energy, again[name]) for name, energy in found().items())


def test_a_file_as_ggml_writes_it_is_read(tmp_path: Path) -> None:
    """It drops trailing extents of 1; newer ones hold means of inputs, too."""
    writer = gguf.GGUFWriter(path := tmp_path / "im.gguf", "none")
    writer.add_type("imatrix")
    for kind, values in (("in_sum2", np.arange(1, 9)), ("in_sum", np.ones(8)), ("counts", np.array([40]))):
        writer.add_tensor(f"blk.0.attn_q.weight.{kind}", values.astype(np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    read = energies(read_imatrix(path), MODULES, model())
    assert same(read[Q], found()[Q]) and not read[MODULES[1]].tokens


def legacy(*rows: tuple[str, int, list[float]], tail: bool = True) -> bytes:
    """The old form by hand, as save_imatrix_legacy writes it."""
    data = struct.pack("<i", len(rows))
    for name, calls, values in rows:
        data += struct.pack(f"<i{len(name)}s", len(name), name.encode())
        data += struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return data + (struct.pack("<ii4s", 9, 4, b"text") if tail else b"")


@pytest.mark.parametrize("tail", [True, False])
def test_the_old_form_is_read(tmp_path: Path, tail: bool) -> None:
    experts = [6.0] * INNER + [3.0] * INNER + [float(x) for x in range(INNER)]
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy(("blk.0.attn_q.weight", 5, [2.5] * WIDTH), ("blk.0.ffn_down_exps.weight", 3, experts),
                            tail=tail))  # fmt: skip
    read = energies(read_imatrix(path), MODULES, model())
    assert same(read[Q], Energy(torch.full((WIDTH,), 2.5), 5))
    assert [read[name].tokens for name in MODULES[1:]] == [3, 0, 3]  # the second has a mean of 1: it was never reached
    assert read[MODULES[3]].sums.tolist() == list(range(INNER))


def test_what_is_cut_off_or_lies_is_refused_by_name() -> None:
    whole = legacy(("blk.0.attn_q.weight", 5, [2.5] * WIDTH), tail=False)
    for length in range(len(whole)):
        with pytest.raises(InputError, match=r"im\.dat"):
            parse_legacy(whole[:length], "im.dat")
    random = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(whole)
        broken[random.integers(len(whole))] = random.integers(256)
        try:
            entries = parse_legacy(bytes(broken), "im.dat")
        except InputError:
            continue
        assert all(bool((each.sums.isfinite() & (each.sums >= 0)).all()) for each in entries.values())
    twice = ("blk.0.attn_q.weight", 1, [1.0])
    for rows in ([twice, twice], [("../x", 1, [1.0])], [("a", 0, [1.0])], [("a", 1, [float("nan")])], [("a", 1, [])]):
        with pytest.raises(InputError):
            parse_legacy(legacy(*rows), "im.dat")


@pytest.mark.parametrize(("change", "said"), [
    (lambda tensors: tensors.pop("a.weight.counts"), "no counts"),
    (lambda tensors: tensors.update({"a.weight.counts": np.array([-1.0], np.float32)}), "negative"),
    (lambda tensors: tensors.update({"a.weight.in_sum2": np.full(8, np.nan, np.float32)}), "nan"),
    (lambda tensors: tensors.update({"a.weight.in_sum2": np.ones(8, np.float16)}), "not f32"),
    (lambda tensors: tensors.update({"a.weight.counts": np.ones(3, np.float32)}), "do not divide"),
    (lambda tensors: tensors.update({"a.weight": np.ones(8, np.float32)}), "nothing that an importance"),
    (lambda tensors: tensors.clear(), "of no tensor"),
])  # fmt: skip
def test_a_gguf_that_is_none_is_refused(
    change: Callable[[dict[str, np.ndarray[Any, Any]]], object], said: str, tmp_path: Path
) -> None:
    tensors = {"a.weight.in_sum2": np.ones(8, np.float32), "a.weight.counts": np.ones(1, np.float32)}
    change(tensors)
    writer = gguf.GGUFWriter(path := tmp_path / "im.gguf", "none")
    writer.add_type("imatrix")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(InputError, match=f"(?i){said}"):
        read_imatrix(path)


def test_another_models_is_refused(tmp_path: Path) -> None:
    entries = {"blk.0.attn_q.weight": entry("im: q", torch.ones(WIDTH + 1), torch.ones(1))}
    with pytest.raises(InputError, match=r"im: q: 9 values .* 1 matrices of 8 columns"):
        energies(entries, MODULES, model())
    with pytest.raises(InputError, match="nothing of what it speaks of"):
        energies({"blk.7.attn_q.weight": entry("im", torch.ones(WIDTH), torch.ones(1))}, MODULES, model())
    with pytest.raises(RefusedError, match="'bert3' models"):
        Names({"model_type": "bert3", "num_hidden_layers": 1})
    for layers in (1 << 40, True, "2"):  # each would have names, or none
        with pytest.raises(RefusedError, match="'llama' models"):
            Names({"model_type": "llama", "num_hidden_layers": layers})


@pytest.mark.parametrize(("config", "module", "expected"), [
    (MOE, "lm_head", [Part("output.weight", None)]),
    ({"model_type": "qwen3_moe", "num_hidden_layers": 1}, "model.layers.0.mlp.experts.5.gate_up_proj",
     [Part("blk.0.ffn_gate_exps.weight", 5), Part("blk.0.ffn_up_exps.weight", 5)]),
    ({"model_type": "granitemoe", "num_hidden_layers": 1}, "model.layers.0.block_sparse_moe.experts.1.down_proj",
     [Part("blk.0.ffn_down_exps.weight", 1)]),
    ({"model_type": "gpt2", "n_layer": 1}, "transformer.h.0.attn.c_attn", [Part("blk.0.attn_qkv.weight", None)]),
])  # fmt: skip
def test_names_are_llama_cpps(config: dict[str, Any], module: str, expected: list[Part]) -> None:
    assert list(Names(config).parts(module)) == expected


def test_llama_cpps_quantizer_takes_the_vector() -> None:
    """Columns that count more err less."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 256, generator=generator)
    importance = Entry(torch.rand(256, generator=generator) ** 8 * 10, torch.tensor([10.0]), "im")
    mean = importance.matrix(0, 1, 256)[0] / importance.counts

    def error(vector: Tensor | None) -> float:
        return float(((decoded(encoded(weight, "q4_k", vector), "q4_k", 16) - weight).square() * mean).sum())

    assert error(mean) < 0.9 * error(None)
