"""gguf-py's reading of our files, under Hugging Face's names."""

import pytest
import torch

from compress.formats import open_checkpoint
from compress.formats.gguf.checkpoint import GGUFCheckpoint
from compress.formats.gguf.dialect import GGUF
from compress.formats.gguf.witness import read_with_library
from compress.kernels.numbers.int import IntFormat


@pytest.mark.parametrize("number_format", [IntFormat(4, 32), IntFormat(5, 32, "real"), IntFormat(8, 32)])
def test_the_library_reads_what_our_reader_does(quantized, export, number_format):
    directory = export(GGUF(type="f32"), quantized(number_format))
    artifact = open_checkpoint(directory)
    assert isinstance(artifact, GGUFCheckpoint)
    read = read_with_library(artifact.path)
    for name, spec in artifact.spec.tensors.items():
        found = artifact.read(name)
        torch.testing.assert_close(read(name), found.dequantize() if spec.format else found.float(), rtol=0, atol=0)
    with pytest.raises(KeyError):
        read("model.layers.9.mlp.up_proj.weight")


def test_a_tied_head_is_read_as_the_embedding(tiny_llama, export):
    directory = export(GGUF(), open_checkpoint(tiny_llama))
    read = read_with_library(next(directory.glob("*.gguf")))
    assert torch.equal(read("lm_head.weight"), read("model.embed_tokens.weight"))


def test_files_beside_it_whose_names_begin_alike_are_not_read(make_model, tmp_path, export):
    """And brackets in a name are no pattern."""
    directories = [make_model(tmp_path / name, "llama", seed=seed) for name, seed in (("a", 0), ("b", 1))]
    beside = tmp_path / "beside"
    beside.mkdir()
    for directory, name in zip(directories, ("m[1].gguf", "m[1]-more.gguf")):
        out = tmp_path / f"{directory.name}-out"
        out.mkdir()
        GGUF(type="f32").write(open_checkpoint(directory), out, lambda name: None)
        next(out.iterdir()).rename(beside / name)
    read, original = read_with_library(beside / "m[1].gguf"), open_checkpoint(directories[0])
    assert torch.equal(read("model.norm.weight"), original.read("model.norm.weight").float())
