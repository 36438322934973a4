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
