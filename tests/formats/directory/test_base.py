"""What containers in a Hugging Face directory have in common."""

import pytest

from compress.formats import dialects, open_checkpoint
from compress.formats.directory.base import InDirectory
from compress.formats.directory.parts import InParts
from compress.formats.errors import RefusedError
from compress.kernels.numbers.codebook import CodebookFormat
from compress.kernels.numbers.int import IntFormat

IN_DIRECTORY = [kind for kind in dialects().values() if issubclass(kind, InDirectory)]
IN_PARTS = [kind for kind in IN_DIRECTORY if issubclass(kind, InParts)]


@pytest.fixture
def out(tmp_path):
    """An empty directory."""
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


def test_every_container_but_gguf_lies_in_a_directory():
    assert {kind.name for kind in dialects().values()} - {kind.name for kind in IN_DIRECTORY} == {"gguf"}
    assert {kind.name for kind in IN_DIRECTORY} - {kind.name for kind in IN_PARTS} == {"dense"}


def test_bases_are_no_containers():
    assert not {InDirectory, InParts} & set(dialects().values())


@pytest.mark.parametrize("kind", IN_PARTS, ids=lambda kind: kind.name)
def test_a_container_of_quantized_weights_refuses_a_model_without_any(kind, tiny_llama, out):
    model = open_checkpoint(tiny_llama)
    with pytest.raises(RefusedError, match=f"no tensor is quantized, and {kind.label} files"):
        kind().layout(model.spec)
    with pytest.raises(RefusedError, match="no tensor is quantized"):
        kind().write(model, out, lambda name: None)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", IN_DIRECTORY, ids=lambda kind: kind.name)
def test_whoever_writes_what_was_not_fitted_is_refused_before_anything_is_written(kind, quantized, out):
    model = quantized(CodebookFormat("lloyd_max", 64))
    options = {"dtype": "float16"} if kind.name == "dense" else {}
    for act in (lambda: kind(**options).layout(model.spec), lambda: kind(**options).write(model, out, print)):
        with pytest.raises(RefusedError, match="exactly"):
            act()
    assert list(out.iterdir()) == []


def test_a_larger_limit_makes_fewer_files_of_the_same_tensors(quantized):
    kind = dialects()["gptq"]
    model = quantized(IntFormat(4, 32)).spec
    few, many = (kind(max_shard_size=size).shards(model) for size in (1 << 30, 20_000))
    assert len(few) == 1 and len(many) > 1
    assert {name for shard in many.values() for name in shard} == set(next(iter(few.values())))
